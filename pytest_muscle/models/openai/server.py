"""One server: requests sent, repeated where that may help, and their answers checked."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from itertools import count
from threading import Event, Lock
from typing import Any, Literal

from pytest_muscle.models import ModelOptions
from pytest_muscle.models.openai.endpoint import Endpoint

Path = Literal["chat", "completions"]
Body = dict[str, Any]

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_LONGEST_WISH = 600.0
_TRIES_AT_FIRST = 2
_OMENS = 3
_PATIENCE = 20


class UnansweredError(Exception):
    """This request has no answer; the message says why and what can be done."""


class RefusedError(UnansweredError):
    """The server does not take this request, however often it is sent."""


class HopelessError(UnansweredError):
    """No request can have an answer, such as one to a model that the server does not know."""


class OverError(UnansweredError):
    """No time is left, or the run was ended."""


class _PassingError(Exception):
    """A failure that may pass.

    ``wait`` is how many seconds the server asks to wait. ``is_usual`` failures happen on servers that
    work; some others in a row mean, when nothing has worked yet, that nothing will.
    """

    def __init__(self, message: str, *, wait: float | None = None, is_usual: bool = False) -> None:
        super().__init__(message)
        self.wait = wait
        self.is_usual = is_usual


class Server:
    """Asks one model on one server; may be used from several threads.

    A request is repeated after 408, 409, 425, 429 and 5xx, after a time-out, a cut connection and an
    answer that is none, each time after a longer pause with some chance in it, or after the pause that
    the server asks for, which then holds for all requests. ``deadline`` (``time.monotonic()``) bounds all
    of it. Where many requests in a row were given up, no more are sent.
    """

    def __init__(self, model: str, endpoint: Endpoint, options: ModelOptions, deadline: float | None) -> None:
        from openai import OpenAI

        self.model = model
        self.endpoint = endpoint
        self._options = options
        self._deadline = deadline
        self._client = OpenAI(
            base_url=endpoint.url, api_key=endpoint.key or "none", timeout=options.timeout, max_retries=0
        )
        self._closed = Event()
        self._lock = Lock()
        self._not_before = 0.0
        self._answered = 0
        self._given_up = 0

    def ask(self, path: Path, body: Body) -> Mapping[str, Any]:
        """Return the answer to a request: a mapping that has ``choices``, each of them a mapping.

        Raises UnansweredError.
        """
        answer = self._ask_again(path, {**body, **self._options.extra_body})
        with self._lock:
            self._answered += 1
            self._given_up = 0
        return answer

    def close(self) -> None:
        """Give up what is under way and close the connections."""
        self._closed.set()
        self._client.close()

    def _ask_again(self, path: Path, body: Body) -> Mapping[str, Any]:
        if self._given_up >= _PATIENCE:
            raise UnansweredError(f"not asked, for {self._given_up} requests before it were given up")
        for attempt in count(1):
            self._wait_until(self._not_before)
            try:
                return self._read(self._send(path, body))
            except _PassingError as problem:
                self._pause(problem, attempt)
        raise AssertionError

    # Pausing

    def _pause(self, problem: _PassingError, attempt: int) -> None:
        tries = self._options.retries + 1
        is_ominous = not self._answered and not problem.is_usual
        if is_ominous:
            tries = min(tries, _TRIES_AT_FIRST)
        if attempt >= tries:
            with self._lock:
                self._given_up += 1
            is_hopeless = is_ominous and self._given_up >= _OMENS
            kind = HopelessError if is_hopeless else UnansweredError
            raise kind(f"{problem} ({attempt} {'tries' if attempt > 1 else 'try'})")
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (attempt - 1))
        pause = longest * random.uniform(0.5, 1.0)
        if problem.wait is not None:
            if problem.wait > _LONGEST_WISH:
                raise UnansweredError(
                    f"{problem}; the server asks to wait for {problem.wait:,.0f} s: run later"
                )
            # Not all at once when the wait is over.
            pause = problem.wait + pause * min(1.0, problem.wait)
            with self._lock:
                self._not_before = max(self._not_before, time.monotonic() + problem.wait)
        self._wait_until(time.monotonic() + pause, str(problem))

    def _wait_until(self, moment: float, why: str = "") -> None:
        if self._deadline is not None and max(moment, time.monotonic()) >= self._deadline:
            raise OverError(
                f"the time budget of {self._options.time_budget:g} s is used up{why and f': {why}'}; raise "
                "'time_budget', or run again"
            )
        if self._closed.wait(max(0.0, moment - time.monotonic())):
            raise OverError("the run was ended")

    # Sending and reading

    def _send(self, path: Path, body: Body) -> str:
        import openai

        resource: Any = self._client.chat.completions if path == "chat" else self._client.completions
        own = "messages" if path == "chat" else "prompt"
        rest = {name: value for name, value in body.items() if name != own}
        timeout = self._options.timeout
        if self._deadline is not None:
            timeout = min(timeout, max(0.1, self._deadline - time.monotonic()))
        try:
            raw = resource.with_raw_response.create(
                model=self.model, **{own: body[own]}, extra_body=rest, timeout=timeout
            )
            return self.endpoint.hide(raw.http_response.text)
        except openai.APITimeoutError:
            raise _PassingError(
                f"no answer within {timeout:g} s; raise 'timeout' or lower 'concurrency'", is_usual=True
            ) from None
        except openai.APIConnectionError as error:
            cause = self._shown(str(error.__cause__ or error))
            raise _PassingError(f"the connection failed ({cause}); is the server running there?") from None
        except openai.APIStatusError as error:
            raise self._status_error(path, error) from None

    def _status_error(self, path: Path, error: Any) -> Exception:
        status, code = error.status_code, getattr(error, "code", None)
        said = f"HTTP {status}: {self._shown(_message(error.body))}"
        if code == "insufficient_quota":
            return HopelessError(said)
        if status in (408, 409, 425, 429) or status >= 500:
            return _PassingError(said, wait=_wish(error.response.headers), is_usual=True)
        if status in (401, 403):
            return HopelessError(
                f"{said}; put the key into the environment and name its variable in 'api_key_env'"
            )
        if status == 404:
            return HopelessError(f"{said}; {self._advice(path)}")
        return RefusedError(said)

    def _advice(self, path: Path) -> str:
        import openai

        try:
            names = [self._shown(str(model.id)) for model in self._client.models.list()]
        except (openai.OpenAIError, ValueError, AttributeError):
            names = []
        if names and self.model not in names:
            return f"the server has no model {self.model!a}; it has {', '.join(names[:10])}"
        other = "set api = 'chat', or " if path == "completions" else ""
        return f"{other}correct 'base_url', which usually ends in /v1, or the model's name"

    def _read(self, text: str) -> Mapping[str, Any]:
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            raise _PassingError(f"the answer is no JSON: {self._shown(text)!a}; correct 'base_url'") from None
        if not isinstance(answer, dict):
            raise _PassingError(f"the answer is no JSON object: {self._shown(text)!a}")
        if answer.get("error"):
            raise _PassingError(
                f"the answer is an error: {self._shown(_message(answer['error']))}", is_usual=True
            )
        self._check_name(answer.get("model"))
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices or not all(isinstance(c, dict) for c in choices):
            raise _PassingError(f"the answer has no choices: {self._shown(text)!a}")
        return answer

    def _check_name(self, name: object) -> None:
        expected = self._options.answers_as or self.model
        if name is None or _is_same_name(expected, str(name)):
            return
        raise _PassingError(
            f"asked for {expected!a}, it answered as {self._shown(str(name))!a}; if that is the same model, "
            "set 'answers_as' to that name"
        )

    def _shown(self, text: str) -> str:
        line = " ".join(self.endpoint.hide(text).split())
        printable = "".join(character if character.isprintable() else "?" for character in line)
        return printable if len(printable) <= 300 else f"{printable[:300]}..."


def _is_same_name(asked: str, answered: str) -> bool:
    # Vendors add a date, others a revision or the folder.
    short, long = sorted((asked.casefold(), answered.casefold()), key=len)
    return re.search(rf"(?<![a-z0-9]){re.escape(short)}(?![a-z0-9])", long) is not None


def _message(body: object) -> str:
    for key in ("error", "message", "detail"):
        if isinstance(body, Mapping) and body.get(key):
            body = body[key]
    return body if isinstance(body, str) else json.dumps(body)


def _wish(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of ``Retry-After`` (RFC 9110, 10.2.3), which may be a date."""
    return next(_wishes(headers), None)


def _wishes(headers: Mapping[str, str]) -> Iterator[float]:
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            yield max(0.0, float(value) / unit)
        except ValueError:
            try:
                yield max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
            except (ValueError, TypeError, OverflowError):
                continue
