"""Where the teachers' distributions come from: a live model, the student's own base, or disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from pytest_muscle.adapter.caches import TokenCache
from pytest_muscle.adapter.heads import token_logits
from pytest_muscle.adapter.logits import TokenLogits
from pytest_muscle.adapter.moments import TokenMoments, mixed_moments, moments_width, token_moments
from pytest_muscle.models.local.output import OutputLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from pytest_muscle.adapter.caches import Filling, TokenRows
    from pytest_muscle.adapter.data import Example
    from pytest_muscle.adapter.student import Role, Student

_LAYER = "output.safetensors"


class Teacher(Protocol):
    """A frozen model that says what follows, in the tokens of the batch."""

    def predict(self, batch: Mapping[str, Tensor], counted: Tensor, vocabulary: int) -> TokenLogits:
        """What follows the positions marked in ``counted`` [batch, tokens - 1], in reading order."""
        ...


@dataclass(frozen=True, slots=True)
class LiveTeacher:
    """A model in memory."""

    model: Any
    output: OutputLayer | None

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor], counted: Tensor, vocabulary: int) -> TokenLogits:
        """Run the model."""
        return token_logits(self.model, self.output, batch, counted, vocabulary)


@dataclass(frozen=True, slots=True)
class StudentTeacher:
    """A model that has the student's base, which is in memory once; ``role`` is what the student acts as."""

    student: Student
    role: Role

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor], counted: Tensor, vocabulary: int) -> TokenLogits:
        """Run the student's base with the adapter of that role."""
        with self.student.acting_as(self.role):
            return token_logits(self.student.model, self.student.output, batch, counted, vocabulary)


@dataclass(frozen=True, slots=True)
class CachedTeacher:
    """Final hidden states on disk, with the output layer they go through: exact."""

    states: TokenRows
    weight: Tensor
    bias: Tensor | None

    def predict(self, batch: Mapping[str, Tensor], counted: Tensor, vocabulary: int) -> TokenLogits:
        """Read the states of the batch's examples."""
        states = self.states.of(batch).to(self.weight.device)
        return TokenLogits(states, vocabulary, self.weight, self.bias)


class StateCache(TokenCache):
    """What a ``CachedTeacher`` reads."""

    def write(self, filling: Filling, model: Any, output: OutputLayer) -> None:
        """Run the model over the examples; raises NoRoomError."""
        from safetensors.torch import save_file

        def states(batch: Mapping[str, Tensor], counted: Tensor) -> Tensor:
            return token_logits(model, output, batch, counted, 0).states

        rows = self.allocate(filling, output.layer.in_features, output.layer.weight.dtype)
        if filling.processes.first:
            layer = {name: p.detach().cpu().contiguous() for name, p in output.layer.named_parameters()}
            save_file(layer, self.folder / _LAYER)
        self.fill(filling, rows, states)

    def open(self, examples: Sequence[Example], answer_only: bool, device: torch.device) -> CachedTeacher:
        """The teacher that reads these states."""
        from safetensors.torch import load_file

        layer = load_file(self.folder / _LAYER, device=str(device))
        return CachedTeacher(self.rows(examples, answer_only), layer["weight"], layer.get("bias"))


@dataclass(frozen=True, slots=True)
class CachedMoments:
    """A teacher's moments on disk, for a student with a given output layer: as exact, and less to do."""

    moments: TokenRows

    def predict(self, batch: Mapping[str, Tensor], counted: Tensor, vocabulary: int) -> TokenMoments:
        """Read the moments of the batch's examples; the vocabulary is that with which they were made."""
        return TokenMoments(self.moments.of(batch).to(counted.device))


class MomentCache(TokenCache):
    """What a ``CachedMoments`` reads."""

    def write(
        self,
        filling: Filling,
        teacher: Teacher,
        output: OutputLayer,
        vocabulary: int,
        temperature: float,
    ) -> None:
        """Take the moments of what a teacher says, by the output layer of the student; raises NoRoomError."""
        layer = output.layer

        def moments(batch: Mapping[str, Tensor], counted: Tensor) -> Tensor:
            said = teacher.predict(batch, counted, vocabulary)
            targets = batch["labels"][:, 1:][counted]
            return token_moments(said, layer.weight, layer.bias, targets, temperature).values

        self.fill(filling, self._allocate(filling, output), moments)

    def write_mixture(
        self,
        filling: Filling,
        teachers: tuple[Teacher, Teacher],
        old_weight: Callable[[Mapping[str, Tensor], Tensor], Tensor],
        output: OutputLayer,
        vocabulary: int,
        temperature: float,
    ) -> None:
        """As ``write``, of the old and the new teacher by the old one's weights of a batch's tokens."""
        layer = output.layer

        def moments(batch: Mapping[str, Tensor], counted: Tensor) -> Tensor:
            old, new = (teacher.predict(batch, counted, vocabulary) for teacher in teachers)
            weight = old_weight(batch, counted)
            told = [(old, weight), (new, 1 - weight)]
            return mixed_moments(told, layer.weight, layer.bias, temperature).values

        self.fill(filling, self._allocate(filling, output), moments)

    def _allocate(self, filling: Filling, output: OutputLayer) -> TokenRows:
        return self.allocate(filling, moments_width(output.layer.in_features), output.layer.weight.dtype)

    def open(self, examples: Sequence[Example], answer_only: bool) -> CachedMoments:
        """The teacher that reads these moments."""
        return CachedMoments(self.rows(examples, answer_only))
