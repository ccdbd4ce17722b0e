"""Where the teachers' distributions come from: a live model, the student's own base, or disk."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from pytest_muscle.adapter.heads import token_logits
from pytest_muscle.adapter.loss import IGNORED, TokenLogits
from pytest_muscle.errors import MuscleError
from pytest_muscle.models.local.output import OutputLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from pytest_muscle.adapter.data import Collator, Example
    from pytest_muscle.adapter.student import Student


class Teacher(Protocol):
    """A frozen model that says what follows, in the tokens of the batch."""

    def logits(self, batch: Mapping[str, Tensor], counted: Tensor, vocabulary: int) -> TokenLogits:
        """Logits of the positions marked in ``counted`` [batch, tokens - 1], in reading order."""
        ...


@dataclass(frozen=True, slots=True)
class LiveTeacher:
    """A model in memory."""

    model: Any
    output: OutputLayer | None

    @torch.no_grad()
    def logits(self, batch: Mapping[str, Tensor], counted: Tensor, vocabulary: int) -> TokenLogits:
        """Run the model."""
        return token_logits(self.model, self.output, batch, counted, vocabulary)


@dataclass(frozen=True, slots=True)
class StartingTeacher:
    """The new model, as the student began: the same base in memory, with its first adapter."""

    student: Student

    @torch.no_grad()
    def logits(self, batch: Mapping[str, Tensor], counted: Tensor, vocabulary: int) -> TokenLogits:
        """Run the student's base with the adapter it began with."""
        with self.student.as_new():
            return token_logits(self.student.model, self.student.output, batch, counted, vocabulary)


@dataclass(frozen=True, slots=True)
class CachedTeacher:
    """Final hidden states on disk, memory-mapped, with the output layer they go through: exact."""

    states: Tensor
    offsets: tuple[int, ...]
    weight: Tensor
    bias: Tensor | None

    def logits(self, batch: Mapping[str, Tensor], counted: Tensor, vocabulary: int) -> TokenLogits:
        """Read the states of the batch's examples."""
        examples = batch["example"].tolist()
        rows = [self.states[self.offsets[i] : self.offsets[i + 1]] for i in examples]
        states = torch.cat(rows).to(self.weight.device)
        return TokenLogits(states, vocabulary, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class StateCache:
    """A folder that holds, once it is complete, what a ``CachedTeacher`` reads."""

    folder: Path

    @property
    def complete(self) -> bool:
        """Whether every example's states are there."""
        return (self.folder / "index.json").is_file()

    def write(
        self,
        model: Any,
        output: OutputLayer,
        examples: Sequence[Example],
        collator: Collator,
        batch_tokens: int,
        share: tuple[int, int] = (0, 1),
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        """Run the model over the examples; ``share`` (number, count) is this process's part of them."""
        offsets = _offsets(examples, collator.answer_only)
        width, dtype = output.layer.in_features, output.layer.weight.dtype
        number, count = share
        if number == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            _allocate(self.folder / "states", offsets[-1] * width * dtype.itemsize)
        wait()
        states = _map(self.folder / "states", offsets[-1], width, dtype)
        device = output.layer.weight.device
        for batch in _batches(examples[number::count], batch_tokens):
            tensors = {name: tensor.to(device) for name, tensor in collator(batch).items()}
            counted = tensors["labels"][:, 1:] != IGNORED
            with torch.no_grad():
                made = token_logits(model, output, tensors, counted, 0).states.to("cpu", dtype)
            lengths = counted.sum(1).tolist()
            for example, rows in zip(batch, torch.split(made, lengths), strict=True):
                states[offsets[example.index] : offsets[example.index + 1]] = rows
        wait()
        if number == 0:
            self._finish(output, width, dtype)
        wait()

    def _finish(self, output: OutputLayer, width: int, dtype: torch.dtype) -> None:
        from safetensors.torch import save_file

        layer = {name: tensor.detach().cpu().contiguous() for name, tensor in output.layer.named_parameters()}
        save_file(layer, self.folder / "output.safetensors")
        index = {"width": width, "dtype": str(dtype).removeprefix("torch.")}
        unfinished = self.folder / "index.part"
        unfinished.write_text(json.dumps(index))
        unfinished.rename(self.folder / "index.json")

    def open(self, examples: Sequence[Example], answer_only: bool, device: torch.device) -> CachedTeacher:
        """The teacher that reads these states."""
        from safetensors.torch import load_file

        index = json.loads((self.folder / "index.json").read_text())
        offsets = _offsets(examples, answer_only)
        states = _map(self.folder / "states", offsets[-1], index["width"], getattr(torch, index["dtype"]))
        layer = load_file(self.folder / "output.safetensors", device=str(device))
        return CachedTeacher(states, offsets, layer["weight"], layer.get("bias"))


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
            f"the teacher's hidden states need {size / 1e9:.1f} GB in {file.parent}, "
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
