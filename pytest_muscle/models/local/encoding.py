"""Golden cases as token ids: the same tokens that lm-evaluation-harness gives a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_muscle.errors import MuscleError
from pytest_muscle.models.prompts import chat_messages, plain_prompt, valid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pytest_muscle.golden import GoldenCase

_NO_LIMIT = 10**18
_DEFAULT_LENGTH = 2048


class UnaskableError(Exception):
    """This one case cannot be put to this model; the message becomes the response's error."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """One choice after its context; the last ``scored`` of the tokens are the choice's own."""

    tokens: tuple[int, ...]
    scored: int


Choices = tuple[Continuation, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens to continue by at most ``limit`` more, or until one of the ``stop`` strings.

    At a ``temperature`` above 0 the continuation is drawn, by ``seed`` alone.
    """

    tokens: list[int]
    limit: int
    stop: tuple[str, ...]
    temperature: float = 0.0
    seed: int = 0


class Encoder:
    """Turns cases into token ids for one tokenizer, system prompt and context length (in tokens).

    ``cut`` holds the keys of the cases that were too long and lost tokens on the left.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_length: int, system_prompt: str | None
    ) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.system_prompt = system_prompt
        self.cut: set[tuple[str, str]] = set()
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        self._first = int(first) if isinstance(first, int) else 0
        self._first_text = str(tokenizer.decode([self._first]))

    def choices(self, case: GoldenCase) -> Choices:
        """The choices of a case, encoded as lm-evaluation-harness's ``TemplateLM.loglikelihood`` does.

        Context and context + continuation are encoded apart, and the continuation is what the second has
        beyond the first one's length; spaces that end the context go to the continuation; an empty context
        is the BOS (else EOS) token; what is longer than the model's context is cut on the left.
        """
        context = self.text(case)
        stripped = context.rstrip()
        spaces, head = context[len(stripped) :], self._encode(stripped) if stripped else []
        tails = [spaces + valid(case.delimiter + choice) for choice in case.choices]
        whole = [self._continuation(stripped, head, tail) for tail in tails]
        room = self.max_length + 1  # The last token is predicted, not read.
        if any(len(choice.tokens) > room for choice in whole):
            self.cut.add(case.key)
        return tuple(Continuation(choice.tokens[-room:], choice.scored) for choice in whole)

    def spans(self, case: GoldenCase, choice: int = 0) -> tuple[str, list[int]]:
        """Context and choice as one text, and in which character of it each of the tokens that ``choices``
        makes of them ends; a token that is not in the text ends where it begins. Needs a fast tokenizer.
        """
        context = self.text(case)
        stripped = context.rstrip()
        text = context + valid(case.delimiter + case.choices[choice])
        if stripped:
            head = self._ends(stripped)
            return text, head + self._ends(text)[len(head) :]
        ends = self._ends(text, special=False)
        return text, ends if self._ids(text, special=False)[:1] == [self._first] else [0, *ends]

    def prompt(self, case: GoldenCase) -> Prompt:
        """The tokens to continue, cut on the left so that ``max_new_tokens`` more fit where possible."""
        text = self.text(case)
        bos = self.tokenizer.bos_token
        ids = self._ids(text, special=not (isinstance(bos, str) and text.startswith(bos))) or [self._first]
        kept = ids[-max(1, self.max_length - case.max_new_tokens) :]
        if len(kept) < len(ids):
            self.cut.add(case.key)
        return Prompt(kept, max(1, min(case.max_new_tokens, self.max_length - len(kept))), case.stop)

    def text(self, case: GoldenCase) -> str:
        """What the model is given, the chat template applied; without the choices."""
        if not case.messages:
            return plain_prompt(case, self.system_prompt)
        return self._chat(chat_messages(case, self.system_prompt), case)

    def _chat(self, messages: list[dict[str, str]], case: GoldenCase) -> str:
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            raise MuscleError(
                f"{case.dataset}:{case.line}: case {case.id!r} has messages, but this model's tokenizer has "
                "no chat template; give the case a prompt, or save the tokenizer with its template"
            )
        try:
            return self._render(messages)
        except TemplateError:
            # As the harness does: some templates have no place for a system message.
            plain = [message for message in messages if message.get("role") != "system"]
        try:
            return self._render(plain)
        except (TemplateError, ValueError, TypeError) as error:
            raise UnaskableError(f"the model's chat template refuses the messages: {error}") from None

    def _render(self, messages: list[dict[str, str]]) -> str:
        unfinished = bool(messages) and messages[-1].get("role") == "assistant"
        rendered: Any = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=not unfinished, continue_final_message=unfinished
        )
        return str(rendered)

    def _continuation(self, context: str, head: list[int], tail: str) -> Continuation:
        own = self._encode(context + tail)[len(head) :] if context else self._ids(tail, special=False)
        if not context:
            head, own = ([self._first], own) if own[:1] != [self._first] else (own[:1], own[1:])
        if not own:
            raise UnaskableError(f"choice {tail!r} adds no token to the prompt")
        if len(own) > self.max_length:
            raise UnaskableError(f"a choice has {len(own)} tokens, the model's context {self.max_length}")
        return Continuation(tuple(head + own), len(own))

    def _encode(self, text: str) -> list[int]:
        return self._ids(text, special=not text.startswith(self._first_text))

    def _ends(self, text: str, *, special: bool = True) -> list[int]:
        special = special and not text.startswith(self._first_text)
        made: Any = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
        return [end for _, end in made["offset_mapping"]]

    def _ids(self, text: str, *, special: bool) -> list[int]:
        # True is the tokenizer's own default, and some custom tokenizers know no such argument.
        return list(
            self.tokenizer.encode(text) if special else self.tokenizer.encode(text, add_special_tokens=False)
        )


def context_length(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """The model's context in tokens, found where lm-evaluation-harness looks for it."""
    text = getattr(config, "text_config", None) or config
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if (length := getattr(text, name, None)) is not None:
            return int(length)
    length = tokenizer.model_max_length
    return int(length) if length and length < _NO_LIMIT else _DEFAULT_LENGTH
