"""``openai:MODEL``: a model behind a server that speaks OpenAI's API, such as vLLM's or a vendor's."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import GoldenCase
from pytest_muscle.models import Batch, ModelOptions, Response
from pytest_muscle.models.openai.endpoint import Endpoint
from pytest_muscle.models.prompts import plain_prompt, valid

if TYPE_CHECKING:
    from pytest_muscle.models.openai.choosing import Method
    from pytest_muscle.models.openai.server import Server

_RESERVED = (
    "model", "prompt", "messages", "stream", "n", "stop", "temperature", "seed", "echo", "logprobs",
    "prompt_logprobs",
)  # fmt: skip


class OpenAIModel:
    """A model that a server answers for, asked with several requests under way at a time.

    Prompts are continued as they stand and messages go through the server's chat template, as with a
    local model; OpenAI's own server, and any with ``api = "chat"``, gets prompts as a chat as well.
    Multiple choice is scored by log-likelihood where the server tells those of a prompt, else the model
    is asked for a letter. A server may change what a name stands for, so that responses hold for one run
    only, unless a ``revision`` says what it is.
    """

    stored = False

    def __init__(self, spec: str, options: ModelOptions) -> None:
        """Find the server's address and key; raises MuscleError where they or the client are missing."""
        if find_spec("openai") is None:
            raise MuscleError(f"model '{spec}': needs the openai client: pip install 'pytest-muscle[api]'")
        self.spec = spec
        self.notices: list[str] = []
        self.model = spec.partition(":")[2]
        self._options = options
        self._endpoint = Endpoint(spec, options)
        if taken := sorted(set(options.extra_body) & set(_RESERVED)):
            raise MuscleError(
                f"model '{spec}': '{taken[0]}' cannot stand in extra_body, for pytest-muscle sets it; the "
                "table has 'temperature', 'seed' and 'choices' of its own"
            )
        self._chat = options.api == "chat" or (options.api is None and self._endpoint.is_own)
        if self._chat and options.choices == "log-likelihood":
            raise MuscleError(
                f"model '{spec}': chats have no log-likelihoods of a prompt; set api = 'completions' or "
                "choices = 'letter'"
            )
        self._server: Server | None = None
        self._deadline: float | None = None
        self._method: Method | None = None
        self._is_probed = False

    @property
    def fingerprint(self) -> str:
        """A digest of the server, the name, what it stands for and how it is asked."""
        options = self._options
        parts: list[object] = [
            self.model,
            self._endpoint.url,
            options.revision or f"run {options.run_id}",
            options.system_prompt,
            options.temperature,
            options.seed if options.temperature else None,
            "chat" if self._chat else "completions",
            options.choices,
            options.extra_body,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def request_digest(self, case: GoldenCase) -> str:
        """Return the digest of the request; each draw is asked anew, for servers do not repeat themselves."""
        return case.request_digest()

    def respond(self, cases: Sequence[GoldenCase]) -> Iterator[Batch]:
        """Ask each request once, and yield as the answers come; raises MuscleError where none can be had."""
        from pytest_muscle.models.openai.parallel import as_completed

        asked: dict[str, list[GoldenCase]] = {}
        for case in cases:
            asked.setdefault(self.request_digest(case), []).append(case)
        if not asked:
            return
        server = self._open()
        try:
            if any(self._can_score(case) for case in cases):
                self._probe(server)
            answer = partial(self._answer, server)
            for same, response in as_completed(answer, list(asked.values()), self._options.concurrency):
                yield [(case, response) for case in same]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def _open(self) -> Server:
        from pytest_muscle.models.openai.server import Server

        budget = self._options.time_budget
        if self._deadline is None and budget is not None:
            self._deadline = time.monotonic() + budget
        if self._server is None:
            self._server = Server(self.model, self._endpoint, self._options, self._deadline)
        return self._server

    @property
    def _where(self) -> str:
        return f"{self.spec} at {self._endpoint.url}"

    def _probe(self, server: Server) -> None:
        """Find out, once, how the server can be made to score choices."""
        from pytest_muscle.models.openai.choosing import find_method
        from pytest_muscle.models.openai.server import UnansweredError

        if self._is_probed:
            return
        try:
            self._method = find_method(server)
        except UnansweredError as error:
            raise MuscleError(
                f"{self._where}: {error} (asked for the log-probabilities of a prompt)"
            ) from None
        self._is_probed = True
        if self._method is None and self._options.choices == "log-likelihood":
            raise MuscleError(
                f"{self._where}: the server tells no log-probabilities of a prompt, neither by "
                "prompt_logprobs nor by echo; set choices = 'letter', for both models"
            )
        if self._method is None:
            self.notices.append(
                f"{self._where}: no log-probabilities of a prompt to be had; choices are asked for by letter"
            )

    def _answer(self, server: Server, same: Sequence[GoldenCase]) -> Response:
        from pytest_muscle.models.openai.server import HopelessError, UnansweredError

        case = same[0]
        try:
            return self._ask(server, case)
        except HopelessError as error:
            raise MuscleError(
                f"{self._where}: {error} (asked for case {case.id!a} of {case.dataset})"
            ) from None
        except UnansweredError as error:
            return Response(error=f"{self._where}: {error}")

    def _can_score(self, case: GoldenCase) -> bool:
        is_letter = self._chat or self._options.choices == "letter"
        return bool(case.choices) and not case.messages and not is_letter

    def _ask(self, server: Server, case: GoldenCase) -> Response:
        from pytest_muscle.models.openai.choosing import chosen, score_choices
        from pytest_muscle.models.openai.server import UnansweredError
        from pytest_muscle.models.openai.writing import read_text, text_request

        if case.choices and case.messages and self._options.choices == "log-likelihood":
            raise UnansweredError("messages are a chat, which has no log-likelihoods; set choices = 'letter'")
        if self._method is not None and self._can_score(case):
            tails = [valid(case.delimiter + choice) for choice in case.choices]
            context = plain_prompt(case, self._options.system_prompt)
            return score_choices(server, self._method, context, tails)
        path, body = text_request(case, self._options, chat=self._chat, is_own=self._endpoint.is_own)
        text = read_text(path, server.ask(path, body), case)
        return chosen(case, text) if case.choices else Response(text=text)
