"""Where two models stand in the same text, byte by byte, though each cuts it into its own tokens."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pytest_muscle.adapter.vocabulary.tokens import Vocabulary
    from pytest_muscle.golden import GoldenCase
    from pytest_muscle.models.local.encoding import Encoder

_LONGEST_CHARACTER = 4


@dataclass(frozen=True, slots=True)
class Reading:
    """A text as one model reads it.

    ``ends`` are the bytes of ``text`` at which the ``tokens`` end (the first begins at ``begin``);
    ``literal`` marks the tokens that stand for just those bytes: a special token does not, nor one that
    a tokenizer made of other letters than the text has.
    """

    text: bytes
    tokens: tuple[int, ...]
    begin: int
    ends: tuple[int, ...]
    literal: tuple[bool, ...]

    def start(self, token: int) -> int:
        """The byte at which a token begins."""
        return self.ends[token - 1] if token else self.begin


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes that both models read: ``length`` of them, from ``old`` and ``new`` on in the two texts."""

    old: int
    new: int
    length: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where the old model stands when the new one is to say its next token.

    The old model has read its tokens before ``token``; the text already given goes on beyond these by
    ``prefix``. Tokens ``token`` to ``last`` are the old model's way over the new model's next token.
    """

    token: int
    last: int
    prefix: bytes


def read(
    vocabulary: Vocabulary, tokens: Sequence[int], text: str, ends: Sequence[int], begin: int = 0
) -> Reading:
    """Follow tokens through a text, from the character ``begin`` on.

    ``ends`` says with which character each token ends, as the tokenizer sees it. Bytes decide where they
    can: the pieces of one character all end with it, by the tokenizer's account.
    """
    raw = text.encode()
    byte_of = [0, *accumulate(len(character.encode()) for character in text)]
    places: list[int] = []
    literal: list[bool] = []
    place = byte_of[begin]
    for token, end in zip(tokens, ends, strict=True):
        piece = vocabulary.pieces[token] if token < len(vocabulary.pieces) else None
        after = place + len(piece or b"")
        fits = bool(piece) and raw.startswith(piece or b"", place)
        literal.append(fits and 0 <= byte_of[end] - after < _LONGEST_CHARACTER)
        place = after if literal[-1] else max(place, byte_of[end])
        places.append(place)
    return Reading(raw, tuple(tokens), byte_of[begin], tuple(places), tuple(literal))


def align(
    old: Reading, new: Reading, parts: Sequence[Part], positions: range, ends: tuple[int | None, int | None]
) -> list[Place | None]:
    """For each of the new model's tokens numbered by ``positions``, where the old model stands before it.

    None where that cannot be said: the token is no text, lies in the template, or one of the models reads
    other letters there than the text has. ``ends`` are the old and new ids for the end of a text, which
    stand for each other after its last byte.
    """
    return [
        _place(old, new, part, token)
        if (part := _part_of(parts, new, token))
        else _at_the_end(old, new, token, ends)
        for token in positions
    ]


def _part_of(parts: Sequence[Part], new: Reading, token: int) -> Part | None:
    if not new.literal[token]:
        return None
    begin, end = new.start(token), new.ends[token]
    return next((part for part in parts if part.new <= begin and end <= part.new + part.length), None)


def _place(old: Reading, new: Reading, part: Part, token: int) -> Place | None:
    shift = part.old - part.new
    begin, end = new.start(token) + shift, new.ends[token] + shift
    first = last = bisect_right(old.ends, begin)
    while last < len(old.ends) and old.ends[last] < end:
        last += 1
    if first == 0 or last == len(old.ends) or not all(old.literal[first : last + 1]):
        return None
    start = old.start(first)
    return Place(first, last, old.text[start:begin]) if start >= part.old else None


def _at_the_end(old: Reading, new: Reading, token: int, ends: tuple[int | None, int | None]) -> Place | None:
    tokens = old.tokens[-1], new.tokens[token]
    last = len(old.tokens) - 1
    whole = token == len(new.tokens) - 1 and new.start(token) == len(new.text)
    return Place(last, last, b"") if whole and tokens == ends and old.start(last) == len(old.text) else None


def shared_parts(case: GoldenCase, old: Encoder, new: Encoder, length: int) -> list[Part]:
    """What the texts of a case have in common when each model renders it; the new one's has ``length`` bytes.

    Without messages that is all of it. With messages it is the messages themselves and the answer, but not
    the templates around them where they differ.
    """
    contexts = [_encoded(encoder.text(case)) for encoder in (old, new)]
    answer = length - len(contexts[1])
    if contexts[0] == contexts[1]:
        return [Part(0, 0, length)]
    told, asked = (dict(_messages(case, encoder)) for encoder in (old, new))
    return [
        *(
            Part(told[number][0], begin, len(content))
            for number, (begin, content) in asked.items()
            if number in told and told[number][1] == content
        ),
        Part(len(contexts[0]), len(contexts[1]), answer),
    ]


def _messages(case: GoldenCase, encoder: Encoder) -> Iterator[tuple[int, tuple[int, bytes]]]:
    """Number, place and bytes of each message in the rendered text, found by rendering marks in its stead."""
    marked = [{**message, "content": f"\ue000{n}\ue001"} for n, message in enumerate(case.messages)]
    pieces = re.split("\ue000(\\d+)\ue001", encoder.text(replace(case, messages=tuple(marked))))
    rendered = encoder.text(case)
    for trim in (str, str.strip):  # Some templates strip what they are given.
        contents = [trim(case.messages[int(number)]["content"]) for number in pieces[1::2]]
        filled = [text for pair in zip(pieces[::2], [*contents, ""], strict=True) for text in pair]
        if "".join(filled) == rendered:
            begins = [0, *accumulate(len(_encoded(text)) for text in filled)]
            for place, number in enumerate(pieces[1::2]):
                yield int(number), (begins[2 * place + 1], _encoded(contents[place]))
            return


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "replace")
