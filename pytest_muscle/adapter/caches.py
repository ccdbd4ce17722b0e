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
from pytest_muscle.errors import MuscleError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from pytest_muscle.adapter.data import Collator, Example


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


@dataclass(frozen=True, slots=True)
class Filling:
    """What goes into a cache, how much at a time, and by which of how many processes."""

    examples: Sequence[Example]
    collator: Collator
    device: torch.device
    batch_tokens: int
    share: tuple[int, int] = (0, 1)
    wait: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class TokenCache:
    """A folder that holds, once it is complete, a row of numbers for each counted token."""

    folder: Path

    @property
    def complete(self) -> bool:
        """Whether every example's rows are there."""
        return (self.folder / "index.json").is_file()

    def fill(
        self,
        filling: Filling,
        make: Callable[[Mapping[str, Tensor], Tensor], Tensor],
        width: int,
        dtype: torch.dtype,
    ) -> None:
        """Write all rows; ``make`` gives those of a batch's ``counted`` positions.

        Raises MuscleError where the disk has no room for them.
        """
        offsets = _offsets(filling.examples, filling.collator.answer_only)
        number, count = filling.share
        if number == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            _allocate(self._file, offsets[-1] * width * dtype.itemsize)
        filling.wait()
        rows = TokenRows(_map(self._file, offsets[-1], width, dtype), offsets)
        for examples in _batches(filling.examples[number::count], filling.batch_tokens):
            batch = {name: tensor.to(filling.device) for name, tensor in filling.collator(examples).items()}
            with torch.no_grad():
                rows.put(examples, make(batch, batch["labels"][:, 1:] != IGNORED))
        filling.wait()
        if number == 0:
            index = {"width": width, "dtype": str(dtype).removeprefix("torch.")}
            unfinished = self.folder / "index.part"
            unfinished.write_text(json.dumps(index))
            unfinished.rename(self.folder / "index.json")
        filling.wait()

    def rows(self, examples: Sequence[Example], answer_only: bool) -> TokenRows:
        """What has been written."""
        index = json.loads((self.folder / "index.json").read_text())
        offsets = _offsets(examples, answer_only)
        dtype = getattr(torch, index["dtype"])
        return TokenRows(_map(self._file, offsets[-1], index["width"], dtype), offsets)

    @property
    def _file(self) -> Path:
        return self.folder / "rows"


def _offsets(examples: Sequence[Example], answer_only: bool) -> tuple[int, ...]:
    offsets = [0]
    for example in examples:
        offsets.append(offsets[-1] + len(example.counted(answer_only)))
    return tuple(offsets)


def _allocate(file: Path, size: int) -> None:
    """Take the room on disk at once: a mapped file that runs out of it later kills the process."""
    free = shutil.disk_usage(file.parent).free
    if size > free:
        raise MuscleError(
            f"what a teacher says of the tokens needs {size / 1e9:.1f} GB in {file.parent}, "
            f"where {free / 1e9:.1f} GB are free; free some, choose another output, or set teacher to live"
        )
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
