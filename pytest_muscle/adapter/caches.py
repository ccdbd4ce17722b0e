"""Numbers for every counted token of the training texts, on disk and memory-mapped."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pytest_muscle.adapter.loss import IGNORED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from pytest_muscle.adapter.data import Collator, Example
    from pytest_muscle.adapter.processes import Processes


@dataclass(frozen=True, slots=True)
class TokenRows:
    """A row [width] for each counted token: those of the first example, then those of the second, ..."""

    values: Tensor
    offsets: tuple[int, ...]

    def of(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The rows of a batch's examples, in reading order."""
        return torch.cat([self.values[self._place(index)] for index in batch["example"].tolist()])

    def put(self, examples: Sequence[Example], rows: Tensor) -> None:
        """Take over the rows of some examples."""
        places = [self._place(example.index) for example in examples]
        parts = torch.split(rows, [place.stop - place.start for place in places])
        for place, part in zip(places, parts, strict=True):
            self.values[place] = part.to("cpu", self.values.dtype)

    def _place(self, index: int) -> slice:
        return slice(self.offsets[index], self.offsets[index + 1])


class NoRoomError(Exception):
    """The disk has no room for a cache; the message says how much is needed, and how much is free."""


@dataclass(frozen=True, slots=True)
class Filling:
    """What goes into a cache, how much at a time, and by which processes."""

    examples: Sequence[Example]
    collator: Collator
    batch_tokens: int
    processes: Processes


@dataclass(frozen=True, slots=True)
class TokenCache:
    """A folder that holds, once it is complete, a row of numbers for each counted token."""

    folder: Path

    @property
    def complete(self) -> bool:
        """Whether every example's rows are there."""
        return (self.folder / "index.json").is_file()

    def allocate(self, filling: Filling, width: int, dtype: torch.dtype) -> TokenRows:
        """Room for all rows.

        Raises NoRoomError, in every process, where the disk has none.
        """
        offsets, processes = _offsets(filling.examples, filling.collator.answer_only), filling.processes
        size = offsets[-1] * width * dtype.itemsize
        if shortage := processes.from_first(lambda: self._shortage(size)):
            raise NoRoomError(shortage)
        if processes.first:
            _allocate(self._file, size)
        processes.wait()
        return TokenRows(_map(self._file, offsets[-1], width, dtype), offsets)

    def fill(
        self, filling: Filling, rows: TokenRows, make: Callable[[Mapping[str, Tensor], Tensor], Tensor]
    ) -> None:
        """Write the rows; ``make`` gives those of a batch's ``counted`` positions."""
        processes = filling.processes
        mine = filling.examples[processes.number :: processes.count]
        for examples in _batches(mine, filling.batch_tokens):
            batch = {name: tensor.to(processes.device) for name, tensor in filling.collator(examples).items()}
            with torch.no_grad():
                rows.put(examples, make(batch, batch["labels"][:, 1:] != IGNORED))
        processes.wait()
        if processes.first:
            values = rows.values
            index = {"width": values.shape[1], "dtype": str(values.dtype).removeprefix("torch.")}
            unfinished = self.folder / "index.part"
            unfinished.write_text(json.dumps(index))
            unfinished.rename(self.folder / "index.json")
        processes.wait()

    def rows(self, examples: Sequence[Example], answer_only: bool) -> TokenRows:
        """What has been written."""
        index = json.loads((self.folder / "index.json").read_text())
        offsets = _offsets(examples, answer_only)
        dtype = getattr(torch, index["dtype"])
        return TokenRows(_map(self._file, offsets[-1], index["width"], dtype), offsets)

    @property
    def _file(self) -> Path:
        return self.folder / "rows"

    def _shortage(self, size: int) -> str | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # What an interrupted run has left is written over.
        self._file.unlink(missing_ok=True)
        free = shutil.disk_usage(self.folder).free
        if size <= free:
            return None
        return f"{size / 1e9:.1f} GB in {self.folder.parent}, where {free / 1e9:.1f} GB are free"


def _offsets(examples: Sequence[Example], answer_only: bool) -> tuple[int, ...]:
    offsets = [0]
    for example in examples:
        offsets.append(offsets[-1] + len(example.counted(answer_only)))
    return tuple(offsets)


def _allocate(file: Path, size: int) -> None:
    """Take the room on disk at once: a mapped file that runs out of it later kills the process."""
    with file.open("wb") as stream:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)
        else:
            stream.truncate(size)


def _map(file: Path, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    flat = torch.from_file(str(file), shared=True, size=rows * width, dtype=dtype)
    return flat.view(rows, width)


def _batches(examples: Sequence[Example], tokens: int) -> list[list[Example]]:
    """Examples by length, so many that a batch with its padding stays within ``tokens``."""
    batches: list[list[Example]] = []
    for example in sorted(examples, key=lambda example: -len(example.tokens)):
        if batches and (len(batches[-1]) + 1) * len(batches[-1][0].tokens) <= tokens:
            batches[-1].append(example)
        else:
            batches.append([example])
    return batches
