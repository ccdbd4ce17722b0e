"""What a server is sent for a text, and the text in its answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from pytest_muscle.golden import GoldenCase
from pytest_muscle.models import ModelOptions
from pytest_muscle.models.openai.choosing import letter_question
from pytest_muscle.models.openai.server import Body, Path, UnansweredError
from pytest_muscle.models.prompts import chat_messages, plain_prompt

_MOST_STOPS = 4
_LETTER_TOKENS = 16


def text_request(case: GoldenCase, options: ModelOptions, *, chat: bool, is_own: bool) -> tuple[Path, Body]:
    """Return where a case is sent and what is sent.

    ``messages`` are a chat. A prompt is one too where ``chat`` says so, else it is continued as it stands,
    as a local model does it. A multiple choice is asked for the letter of a choice. Raises UnansweredError
    where no server can be asked so.
    """
    body: Body = {"temperature": options.temperature}
    if options.temperature:
        body["seed"] = _seed(case, options.seed)
    stop = [] if case.choices else list(case.stop[:_MOST_STOPS])
    if stop:
        body["stop"] = stop
    if not case.messages and not chat:
        prompt = plain_prompt(case, options.system_prompt)
        if case.choices:
            return "completions", {
                **body,
                "prompt": letter_question(prompt, case.choices),
                "max_tokens": _LETTER_TOKENS,
            }
        return "completions", {**body, "prompt": prompt, "max_tokens": case.max_new_tokens}
    body["messages"] = _messages(case, options.system_prompt)
    return "chat", {**body, "max_completion_tokens" if is_own else "max_tokens": case.max_new_tokens}


def _messages(case: GoldenCase, system_prompt: str | None) -> list[dict[str, str]]:
    if case.messages:
        messages = chat_messages(case, system_prompt)
    else:
        messages = [{"role": "user", "content": plain_prompt(case, None)}]
        if system_prompt:
            messages = [{"role": "system", "content": system_prompt}, *messages]
    last = messages[-1]
    if last.get("role") == "assistant":
        raise UnansweredError("its messages end with the assistant's, which servers do not go on with")
    if case.choices:
        messages[-1] = {**last, "content": letter_question(last.get("content", ""), case.choices)}
    return messages


def _seed(case: GoldenCase, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}/{case.request_digest()}".encode()).digest()
    # Some servers take 32 bits only.
    return int.from_bytes(digest[:4], "big") >> 1


def read_text(path: Path, answer: Mapping[str, Any], case: GoldenCase) -> str:
    """Return the text of an answer, up to the first stop string.

    Raises UnansweredError where there is none. An empty text is an answer only where the model itself
    ended it.
    """
    choice = answer["choices"][0]
    message = choice.get("message")
    text = choice.get("text") if path == "completions" else _content(message)
    reason = choice.get("finish_reason")
    if reason == "content_filter":
        raise UnansweredError("the server's content filter withheld the answer")
    if not isinstance(text, str) or (not text and reason != "stop"):
        hint = "; it may have spent them on thinking: raise 'max_new_tokens'" if reason == "length" else ""
        raise UnansweredError(f"the answer has no text (finish_reason {str(reason)[:40]!a}){hint}")
    ends = [end for stop in case.stop if not case.choices and (end := text.find(stop)) >= 0]
    return text[: min(ends, default=len(text))]


def _content(message: object) -> object:
    return message.get("content") if isinstance(message, Mapping) else None
