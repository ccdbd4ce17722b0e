"""A teacher with another tokenizer than the student's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_muscle.adapter.logits import TokenLogits
from pytest_muscle.adapter.loss import IGNORED
from pytest_muscle.adapter.masks import target_loglikelihood
from pytest_muscle.adapter.vocabulary.mapping import VocabularyMap, soften

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

    from pytest_muscle.adapter.data import Collator
    from pytest_muscle.adapter.teachers import Teacher
    from pytest_muscle.adapter.vocabulary.texts import AlignedTexts

_SAMPLED_ROWS = 128


@dataclass(frozen=True, slots=True)
class MappedLogits:
    """What a model with another tokenizer says at n positions of the student.

    ``given`` are its own logits at its own positions, and ``read`` the tokens of its own that follow these.
    ``places`` [n] says which of its positions belongs to each of the student's (-1 where none does),
    ``steps`` [n] how many of its tokens lead over the student's next one, ``prefixes`` what of the text it
    has not read yet, ``following`` [n] the student's next tokens.
    """

    given: TokenLogits
    read: Tensor
    places: Tensor
    steps: Tensor
    prefixes: Sequence[bytes]
    following: Tensor
    between: VocabularyMap

    def __len__(self) -> int:
        return len(self.places)

    @property
    def covered(self) -> Tensor:
        """Whether the model says anything at each position, [n]."""
        return self.places >= 0

    def rows(self, rows: slice | Tensor) -> Tensor:
        """The log-probabilities [rows, student's tokens + 1], the last being the rest; -inf of other classes.

        Each class has its representative's place. Nothing is known where the position is not covered.
        """
        rest = self.between.sizes[1]
        numbers = torch.arange(len(self), device=self.places.device)[rows]
        dtype = torch.promote_types(self.given.states.dtype, torch.float32)
        carried = torch.zeros(len(numbers), rest + 1, device=numbers.device, dtype=dtype)
        carried[:, rest] = 1
        for prefix, group in self._groups(numbers):
            own = numbers[group]
            old = self.given.rows(self.places[own]).softmax(-1)
            read = self.read[self.places[own]]
            carried[group] = self.between.at(prefix).carry(old, read, self._along(own), self.following[own])
        return carried.log_()

    def divergence(
        self, logits: Tensor, target: Tensor, rows: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """KL(this model || student) between the classes, both softened, [rows], and T times its gradient.

        ``logits`` [rows, student's tokens] are the student's, ``target`` what ``rows`` gave.
        """
        loss, slope = torch.zeros_like(logits[:, 0]), torch.zeros_like(logits)
        for prefix, group in self._groups(rows):
            following = self.following[rows[group]]
            student = self.between.at(prefix).merge(logits[group], following)
            log_student = student.log_probabilities(temperature)
            log_target = soften(target[group].exp(), student.known, temperature)
            share = log_target.exp()
            gap = (log_target - log_student).masked_fill_(~student.known, 0)
            loss[group] = (share * gap).sum(-1)
            slope[group] = student.spread(log_student.exp_().sub_(share))
        return loss, slope

    def _groups(self, numbers: Tensor) -> Iterator[tuple[bytes, Tensor]]:
        """The covered ones among positions, as places in ``numbers``, by prefix."""
        groups: dict[bytes, list[int]] = {}
        covered = self.covered[numbers].tolist()
        for place, number in enumerate(numbers.tolist()):
            if covered[place]:
                groups.setdefault(self.prefixes[number], []).append(place)
        for prefix, group in groups.items():
            yield prefix, torch.tensor(group, device=numbers.device)

    def _along(self, numbers: Tensor) -> Tensor:
        """log p of the way on from the first token that is read to the last that the student's needs, [n]."""
        more = self.steps[numbers] - 1
        owner = torch.arange(len(numbers), device=numbers.device).repeat_interleave(more)
        along = torch.zeros(len(numbers), device=numbers.device, dtype=torch.float32)
        if not len(owner):
            return along
        first = torch.repeat_interleave(more.cumsum(0) - more, more)
        step = torch.arange(len(owner), device=numbers.device) - first + 1
        place = self.places[numbers][owner] + step
        likelihood = target_loglikelihood(self.given.rows(place), self.read[place])
        return along.to(likelihood.dtype).index_add_(0, owner, likelihood)


@dataclass(frozen=True, slots=True)
class MappedTeacher:
    """A teacher that reads the texts with its own tokenizer, told in the student's vocabulary."""

    inner: Teacher
    texts: AlignedTexts
    collator: Collator
    between: VocabularyMap

    def predict(self, batch: Mapping[str, Tensor], counted: Tensor, vocabulary: int) -> MappedLogits:
        """What the inner teacher says of its own tokens of the batch's texts, and where that belongs."""
        device = counted.device
        numbers = batch["example"].tolist()
        own = {name: t.to(device) for name, t in self.collator([self.texts.old[n] for n in numbers]).items()}
        own_counted = own["labels"][:, 1:] != IGNORED
        given = self.inner.predict(own, own_counted, self.between.sizes[0])
        begins = torch.cat([own_counted.new_zeros(1, dtype=torch.long), own_counted.sum(1).cumsum(0)])
        places, steps, prefixes = [], [], []
        for number, begin in zip(numbers, begins.tolist(), strict=False):
            text = self.texts.places[number]
            places.append(torch.where(text.rows >= 0, text.rows + begin, -1))
            steps.append(text.steps)
            prefixes += [self.texts.prefixes[each] for each in text.prefixes.tolist()]
        return MappedLogits(
            given,
            own["labels"][:, 1:][own_counted],
            torch.cat(places).to(device),
            torch.cat(steps).to(device),
            prefixes,
            batch["labels"][:, 1:][counted],
            self.between,
        )

    def rest(self, batches: Iterable[Mapping[str, Tensor]]) -> float:
        """The mean probability, over the covered positions of some batches, that has no counterpart."""
        total, count = 0.0, 0
        for batch in batches:
            logits = self.predict(batch, batch["labels"][:, 1:] != IGNORED, self.between.sizes[1])
            for rows in torch.split(logits.covered.nonzero()[:, 0], _SAMPLED_ROWS):
                total += float(logits.rows(rows)[:, -1].exp().sum())
                count += len(rows)
        return total / max(1, count)
