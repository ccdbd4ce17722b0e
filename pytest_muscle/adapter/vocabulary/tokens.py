"""A tokenizer's vocabulary as bytes: what each token stands for, and how given bytes would be cut."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Protocol

import numpy

from pytest_muscle.errors import MuscleError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_META_SPACE = "▁"


class Vocabulary:
    """The tokens of a tokenizer as bytes; ``pieces`` is indexed by id and None where a token has no text.

    ``begin`` and ``end`` are the ids of the tokens for the beginning and the end of a text.
    """

    def __init__(
        self,
        pieces: Sequence[bytes | None],
        *,
        begin: int | None = None,
        end: int | None = None,
        cut: Callable[[bytes], int | None] = lambda text: None,
    ) -> None:
        self.pieces = pieces
        self.begin = begin
        self.end = end
        self._cut = cut
        written = sorted((piece, number) for number, piece in enumerate(pieces) if piece)
        self._sorted = [piece for piece, _ in written]
        self._numbers = numpy.array([number for _, number in written], dtype=numpy.int64)
        self._longest = max(map(len, self._sorted), default=0)
        self._first: dict[bytes, int | None] = {}
        for piece, number in written:
            # SentencePiece has letters as tokens and, again, as bytes: text is cut into the former.
            self._first[piece] = max(number, self._first.get(piece) or 0)

    def beginning_with(self, prefix: bytes) -> NDArray[numpy.int64]:
        """The ids of the tokens whose bytes begin with ``prefix``."""
        low = bisect_left(self._sorted, prefix)
        # No token goes on with so many of the highest byte.
        high = bisect_left(self._sorted, prefix + b"\xff" * (self._longest + 1))
        return self._numbers[low:high]

    def first_piece(self, text: bytes) -> int | None:
        """The id of the first token that the tokenizer cuts from ``text``, in the middle of a text.

        Where the tokenizer itself cannot say, as for half a character, it is the longest token that
        ``text`` begins with; None if there is none.
        """
        if text not in self._first:
            number = self._cut(text)
            piece = None if number is None else self.pieces[number]
            self._first[text] = number if piece and text.startswith(piece) else self._longest_piece(text)
        return self._first[text]

    def _longest_piece(self, text: bytes) -> int | None:
        for length in range(min(len(text) - 1, self._longest), 0, -1):
            head = text[:length]
            place = bisect_left(self._sorted, head)
            if place < len(self._sorted) and self._sorted[place] == head:
                return self._first[head]
        return None


def read_vocabulary(tokenizer: Any, spec: str) -> Vocabulary:
    """The vocabulary of a fast tokenizer: byte-level BPE, SentencePiece (BPE or Unigram) or WordPiece.

    A WordPiece that begins a word stands for a space and its letters. Raises ``MuscleError`` naming the
    model ``spec`` if the tokenizer is of another kind or says nothing about where its tokens lie.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise MuscleError(
            f"the tokenizer of {spec!r} ({type(tokenizer).__name__}) does not say where in a text its tokens "
            "lie; save it as tokenizer.json (a fast tokenizer), or take models with the same tokenizer"
        )
    backend = tokenizer.backend_tokenizer
    state = json.loads(backend.to_str())
    spelling = _spelling(state)
    if spelling is None:
        raise MuscleError(
            f"the tokenizer of {spec!r} ({state['model'].get('type')}) is none of byte-level BPE, "
            "SentencePiece and WordPiece, so its tokens cannot be read as bytes; take an old and a new model "
            "with the same tokenizer"
        )
    pieces = _pieces(tokenizer, spelling)

    def cut(text: bytes) -> int | None:
        written = spelling.write(text)
        found = backend.model.tokenize(written) if written else None
        return int(found[0].id) if found else None

    return Vocabulary(pieces, begin=tokenizer.bos_token_id, end=tokenizer.eos_token_id, cut=cut)


def _pieces(tokenizer: Any, spelling: _Spelling) -> list[bytes | None]:
    tokens = tokenizer.get_vocab()
    pieces: list[bytes | None] = [None] * (max(tokens.values()) + 1)
    for token, number in tokens.items():
        pieces[number] = spelling.read(token)
    for number, added in tokenizer.added_tokens_decoder.items():
        pieces[number] = None if added.special else added.content.encode()
    for number in tokenizer.all_special_ids:
        pieces[number] = None
    return pieces


class _Spelling(Protocol):
    """How a kind of tokenizer writes bytes as a token."""

    def read(self, token: str) -> bytes | None:
        """What a token stands for, or None if it has no text."""

    def write(self, text: bytes) -> str | None:
        """As the tokenizer's model takes it, or None if it cannot be given these bytes."""


class _ByteLevel:
    """Each byte is a character: itself where it is printable, one from 256 on where it is not."""

    def __init__(self) -> None:
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        others = [byte for byte in range(256) if byte not in printable]
        self._byte = {chr(byte): byte for byte in printable}
        self._byte |= {chr(256 + place): byte for place, byte in enumerate(others)}
        self._character = {byte: character for character, byte in self._byte.items()}

    def read(self, token: str) -> bytes | None:
        known = all(character in self._byte for character in token)
        return bytes(self._byte[character] for character in token) if known else None

    def write(self, text: bytes) -> str | None:
        return "".join(self._character[byte] for byte in text)


class _SentencePiece:
    """A space is a sign of its own, and a byte may be written as <0xE2>."""

    def __init__(self, space: str, *, bytes_too: bool) -> None:
        self._space = space
        self._bytes_too = bytes_too

    def read(self, token: str) -> bytes | None:
        if self._bytes_too and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        return token.replace(self._space, " ").encode()

    def write(self, text: bytes) -> str | None:
        try:
            return text.decode().replace(" ", self._space)
        except UnicodeDecodeError:
            return None


class _WordPiece:
    """Pieces inside a word have a prefix; before a word is a space, before punctuation more often none."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def read(self, token: str) -> bytes | None:
        if token.startswith(self._prefix) and token != self._prefix:
            return token.removeprefix(self._prefix).encode()
        return (" " + token if token[:1].isalnum() else token).encode()

    def write(self, text: bytes) -> str | None:
        return None  # WordPiece cuts the longest piece, which needs no help.


def _spelling(state: Any) -> _Spelling | None:
    parts = [*_flat(state.get("decoder")), *_flat(state.get("pre_tokenizer"))]
    kinds = {part["type"] for part in parts}
    if "ByteLevel" in kinds:
        return _ByteLevel()
    if "WordPiece" in kinds:
        return _WordPiece(next(part["prefix"] for part in parts if part["type"] == "WordPiece"))
    space = next((part["replacement"] for part in parts if part["type"] == "Metaspace"), None)
    if space is None and _META_SPACE in json.dumps(state.get("decoder"), ensure_ascii=False):
        space = _META_SPACE
    return None if space is None else _SentencePiece(space, bytes_too="ByteFallback" in kinds)


def _flat(part: Any) -> Iterator[Any]:
    """A decoder or pre-tokenizer and, where it is a sequence, its parts."""
    if part:
        yield part
        for inner in part.get("decoders") or part.get("pretokenizers") or ():
            yield from _flat(inner)
