"""What a model is given of a case, before any template or tokenizer."""

from __future__ import annotations

from pytest_muscle.golden import GoldenCase


def plain_prompt(case: GoldenCase, system_prompt: str | None) -> str:
    """The prompt, after the system prompt and an empty line if there is one."""
    return valid("\n\n".join(filter(None, (system_prompt, case.prompt))))


def chat_messages(case: GoldenCase, system_prompt: str | None) -> list[dict[str, str]]:
    """The messages, the system prompt before what the case's own system message says."""
    messages = [{key: valid(value) for key, value in message.items()} for message in case.messages]
    if not system_prompt:
        return messages
    first, *rest = messages
    if first.get("role") != "system":
        return [{"role": "system", "content": system_prompt}, first, *rest]
    return [{**first, "content": f"{system_prompt}\n\n{first.get('content', '')}"}, *rest]


def valid(text: str) -> str:
    """The text with lone surrogates replaced, which neither tokenizers nor JSON's readers take."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
