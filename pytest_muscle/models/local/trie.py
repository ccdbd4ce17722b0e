"""Token sequences as a trie laid out in one row: what several begin with stands there once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from pytest_muscle.models.local.attention import Prefix, Segment

if TYPE_CHECKING:
    from collections.abc import Sequence

# A segment costs a copy of the prefix's keys, and its own length squared.
_COPY = 8


@dataclass(slots=True)
class Row:
    """The tokens of a trie behind ``depth`` tokens that all its sequences begin with."""

    depth: int
    divided: bool = True
    """Whether tokens that see nothing of each other are attended to apart."""
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    _parents: list[int] = field(default_factory=list)
    _children: dict[tuple[int, int], int] = field(default_factory=dict)
    _starts: list[int] = field(default_factory=list)

    @classmethod
    def behind(cls, prefix: Prefix, device: torch.device) -> Row:
        """A row to be filled, in segments on a CPU only: a GPU would launch each of them in each layer."""
        return cls(len(prefix.tokens), divided=device.type == "cpu")

    def begin(self) -> None:
        """Say that what is inserted from here on may be attended to apart from what is there."""
        opened = len(self.tokens) - (self._starts[-1] if self._starts else 0)
        if not self._starts or (self.divided and opened**2 > _COPY * self.depth):
            self._starts.append(len(self.tokens))

    def insert(self, sequence: Sequence[int]) -> list[int]:
        """The indices in the row of a sequence's tokens beyond the depth."""
        path, node = [], -1
        for position, token in enumerate(sequence[self.depth :], self.depth):
            place = self._children.setdefault((node, token), len(self.tokens))
            if place == len(self.tokens):
                self.tokens.append(token)
                self.positions.append(position)
                self._parents.append(node)
            path.append(node := place)
        return path

    def segments(self) -> list[Segment]:
        """The row in pieces between whose tokens little or nothing is seen."""
        size = len(self.tokens)
        seen = np.zeros((size, size), dtype=bool)
        for node, parent in enumerate(self._parents):
            if parent >= 0:
                seen[node] = seen[parent]
            seen[node, node] = True
        starts = [start for start in self._starts if start < size]
        return [_segment(seen, *ends) for ends in zip(starts, [*starts[1:], size], strict=True)]


def _segment(seen: np.ndarray, start: int, end: int) -> Segment:
    columns = np.flatnonzero(seen[start:end].any(axis=0))
    alone = columns[0] == start and len(columns) == end - start
    hidden = torch.from_numpy(~seen[start:end][:, columns])
    return Segment(start, end, None if alone else torch.from_numpy(columns), hidden)


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the common prefix."""
    size = min(len(a), len(b))
    if a[:size] == b[:size]:
        return size
    return next(i for i in range(size) if a[i] != b[i])
