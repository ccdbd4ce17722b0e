"""Where the teachers' distributions come from: a live model, the student's own base, or disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from pytest_muscle.adapter.caches import TokenCache
from pytest_muscle.adapter.heads import token_logits
from pytest_muscle.adapter.logits import TokenLogits
from pytest_muscle.adapter.moments import TokenMoments, moments_width, token_moments
from pytest_muscle.models.local.output import OutputLayer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from pytest_muscle.adapter.caches import Filling, TokenRows
    from pytest_muscle.adapter.data import Example
    from pytest_muscle.adapter.student import Student

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
class StartingTeacher:
    """The new model, as the student began: the same base in memory, with its first adapter."""

    student: Student

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor], counted: Tensor, vocabulary: int) -> TokenLogits:
        """Run the student's base with the adapter it began with."""
        with self.student.as_new():
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
        """Run the model over the examples."""
        from safetensors.torch import save_file

        def states(batch: Mapping[str, Tensor], counted: Tensor) -> Tensor:
            return token_logits(model, output, batch, counted, 0).states

        if filling.share[0] == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            layer = {name: p.detach().cpu().contiguous() for name, p in output.layer.named_parameters()}
            save_file(layer, self.folder / _LAYER)
        self.fill(filling, states, output.layer.in_features, output.layer.weight.dtype)

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
        teacher: CachedTeacher,
        output: OutputLayer,
        vocabulary: int,
        temperature: float,
    ) -> None:
        """Take the moments of what a teacher says, by the output layer of the student."""
        layer = output.layer

        def moments(batch: Mapping[str, Tensor], counted: Tensor) -> Tensor:
            said = teacher.predict(batch, counted, vocabulary)
            targets = batch["labels"][:, 1:][counted]
            return token_moments(said, layer.weight, layer.bias, targets, temperature).values

        self.fill(filling, moments, moments_width(layer.in_features), layer.weight.dtype)

    def open(self, examples: Sequence[Example], answer_only: bool) -> CachedMoments:
        """The teacher that reads these moments."""
        return CachedMoments(self.rows(examples, answer_only))
