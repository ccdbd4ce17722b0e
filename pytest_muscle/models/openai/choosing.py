"""Multiple choice on a server: by the choices' log-likelihoods, else by asking for a letter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any, Literal

from pytest_muscle.golden import GoldenCase
from pytest_muscle.models import Response
from pytest_muscle.models.openai.server import Body, RefusedError, Server, UnansweredError
from pytest_muscle.models.prompts import valid

Method = Literal["prompt_logprobs", "echo"]
"""How a server gives the log-probabilities of a prompt: vLLM's parameter, or OpenAI's old one."""

LETTER_TEMPLATE = "{prompt}\n\n{choices}\n\nAnswer with the letter of the right choice alone.\nAnswer:"
"""What is asked where no log-likelihoods can be had; ``choices`` are lines such as ``A. delivery``."""

_PARAMETERS: Mapping[Method, Body] = {
    "prompt_logprobs": {"prompt_logprobs": 0, "max_tokens": 1},
    "echo": {"echo": True, "logprobs": 1, "max_tokens": 0},
}
_PROBE = ("The sky is", "The sky is blue today.")


def find_method(server: Server) -> Method | None:
    """Return a way in which the server scores prompts, found by trying; None where there is none."""
    for method in _PARAMETERS:
        try:
            scores = _score(server, method, _PROBE)
        except (RefusedError, _UnusableError):
            continue
        if len(scores[1]) > len(scores[0]) and any(scores[1][1:]):
            return method
    return None


def score_choices(server: Server, method: Method, context: str, tails: Sequence[str]) -> Response:
    """Return the log-likelihood of each tail after the context, in nats, summed over its tokens.

    A tail's tokens are those that context and tail together have beyond the context's own number, which
    is the rule of lm-evaluation-harness; spaces that end the context go to the tail.
    """
    head = context.rstrip()
    if not head:
        raise UnansweredError("its prompt is empty, and a server cannot score what follows nothing")
    whole = [context + tail for tail in tails]
    try:
        first, *others = _score(server, method, (head, *whole))
    except _UnusableError as error:
        raise UnansweredError(f"the log-probabilities cannot be used: {error}") from None
    if any(len(each) <= len(first) for each in others):
        raise UnansweredError("a choice adds no token to the prompt")
    return Response(loglikelihoods=tuple(sum(each[len(first) :]) for each in others), method=method)


class _UnusableError(Exception):
    """The answer does not hold the log-probabilities of the prompts' tokens."""


def _score(server: Server, method: Method, prompts: Sequence[str]) -> list[list[float]]:
    """Return the log-probabilities of each prompt's tokens; the first token's counts as 0."""
    body = {"prompt": list(prompts), "temperature": 0.0, **_PARAMETERS[method]}
    choices = server.ask("completions", body)["choices"]
    try:
        by_index = {int(choice.get("index", 0)): choice for choice in choices}
        ordered = [by_index[index] for index in range(len(prompts))]
        read = _prompt_logprobs if method == "prompt_logprobs" else _echoed
        return [read(choice, prompt) for choice, prompt in zip(ordered, prompts, strict=True)]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise _UnusableError(f"no log-probabilities of {len(prompts)} prompts by {method}") from None


def _prompt_logprobs(choice: Mapping[str, Any], prompt: str) -> list[float]:
    first, *rest = choice["prompt_logprobs"]
    if first is not None:
        raise ValueError
    # The prompt's own token stands before any likelier ones.
    return [0.0, *(float(next(iter(token.values()))["logprob"]) for token in rest)]


def _echoed(choice: Mapping[str, Any], prompt: str) -> list[float]:
    first, *rest = choice["logprobs"]["token_logprobs"]
    if first is not None or choice["text"] != prompt:
        raise ValueError
    return [0.0, *map(float, rest)]


# Letters ------------------------------------------------------------------------------------------


def letter_question(prompt: str, choices: Sequence[str]) -> str:
    """Return the prompt with lettered choices; raises UnansweredError where the alphabet is too short."""
    if len(choices) > len(ascii_uppercase):
        raise UnansweredError(f"it has {len(choices)} choices, more than there are letters")
    lines = (
        f"{letter}. {valid(text.strip())}" for letter, text in zip(ascii_uppercase, choices, strict=False)
    )
    return LETTER_TEMPLATE.format(prompt=prompt, choices="\n".join(lines))


def chosen(case: GoldenCase, text: str) -> Response:
    """Return the choice that a text names, or none: a model that names none is wrong, not unjudged."""
    return Response(text=text, choice=_find_letter(text, case.choices), method="letter")


def _find_letter(text: str, choices: Sequence[str]) -> int | None:
    """Find the letter that stands first and alone, or after "answer", or that is the only one named."""
    letters = ascii_uppercase[: len(choices)]
    end = r"(?=\s*(?:$|[.,:;)\]*\n]))"
    first = re.match(rf"[\s\W_]*([{letters}]){end}", text)
    if first:
        return letters.index(first[1])
    named = re.findall(rf"(?i:answer|choice|option)(?i:\s+is)?[\s:*(\"']*([{letters}])\b", text)
    named = named or re.findall(rf"(?<![\w'])([{letters}])(?=[.):\]*]|\s*$)", text)
    if len(set(named)) == 1:
        return letters.index(named[0])
    plain = [choice.strip().casefold() for choice in choices]
    said = text.strip().strip(".\"'*").casefold()
    return plain.index(said) if plain.count(said) == 1 else None
