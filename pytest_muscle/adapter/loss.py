"""The loss of the compatibility adapter, exact and in little memory.

Per token, teachers first (forward KL), all at temperature T:

    w KL(old || student) + (1 - w) KL(new || student),    w = the mask's weight of the old teacher,

and with cross-entropy weight c the sum (1 - c) KL + c CE (the paper's equations 1 and 5, c = 1 - lambda).
Its gradient is formed by hand, some tokens at a time, while the loss is computed: [tokens, vocabulary]
never exists whole, neither for the student nor for a teacher. A teacher may be given by its moments (see
:mod:`pytest_muscle.adapter.moments`): then no logits of it are made at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from pytest_muscle.adapter import masks
from pytest_muscle.adapter.logits import TokenLogits, chunks, softmax, widest
from pytest_muscle.adapter.moments import TokenMoments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from pytest_muscle.adapter.config import Recipe
    from pytest_muscle.adapter.vocabulary.teacher import MappedLogits

    Prediction: TypeAlias = TokenLogits | TokenMoments | MappedLogits

IGNORED = -100


@dataclass(frozen=True, slots=True)
class TokenLoss:
    """The loss summed over tokens (differentiable), and the old teacher's weights summed over tokens."""

    total: Tensor
    from_old: Tensor


def compatibility_loss(
    student: Tensor,
    old: Tensor | None,
    new: Tensor | None,
    labels: Tensor,
    recipe: Recipe,
) -> Tensor:
    """The mean loss over the counted tokens of a batch, a scalar.

    ``student``, ``old`` and ``new`` are logits [batch, tokens, vocabulary]; a vocabulary may be padded
    at its end: what all have in common counts. ``labels`` [batch, tokens] are the input tokens, -100
    where a token (padding on either side, say) does not count; they are shifted here, so that position
    i is judged by label i + 1. A teacher that the recipe has no use for may be ``None``.
    """
    counted = labels[:, 1:] != IGNORED
    given = [logits for logits in (student, old, new) if logits is not None]
    vocabulary = min(logits.shape[-1] for logits in given)
    sources = [
        None if logits is None else TokenLogits(logits[:, :-1][counted], vocabulary)
        for logits in (student, old, new)
    ]
    assert sources[0] is not None
    sequence = torch.arange(len(labels), device=labels.device)[:, None].expand_as(counted)[counted]
    targets = labels[:, 1:][counted]
    loss = token_loss(sources[0], sources[1], sources[2], targets, recipe, sequence=sequence)
    return loss.total / max(1, len(targets))


def token_loss(
    student: TokenLogits,
    old: Prediction | None,
    new: Prediction | None,
    targets: Tensor,
    recipe: Recipe,
    *,
    sequence: Tensor | None = None,
    truthful: Tensor | None = None,
    trusted: Tensor | None = None,
    both: TokenMoments | None = None,
) -> TokenLoss:
    """The loss summed over n tokens.

    ``targets`` [n] are the tokens that follow, ``sequence`` [n] the text each belongs to, ``truthful``
    [n] marks those of right texts (default: all): the cross-entropy learns only these. ``trusted`` [n]
    marks where the old teacher may teach (default: everywhere); elsewhere the new one does. ``both`` are
    the moments of both teachers by the recipe's weights, where these are known before: neither is asked then.
    """
    problem = _Problem(student, old, new, targets, recipe, sequence, truthful, trusted, both)
    total, from_old = _FusedLoss.apply(student.states, problem)  # type: ignore[no-untyped-call]
    return TokenLoss(total, from_old)


@dataclass(frozen=True, slots=True)
class _Problem:
    student: TokenLogits
    old: Prediction | None
    new: Prediction | None
    targets: Tensor
    recipe: Recipe
    sequence: Tensor | None
    truthful: Tensor | None
    trusted: Tensor | None
    both: TokenMoments | None

    def chunks(self) -> Iterator[slice]:
        return chunks(len(self.targets), self.student.vocabulary, self.targets.device)

    def text_weights(self) -> Tensor | None:
        """The old teacher's weights [n] where a whole text decides, which takes a pass of its own."""
        if self.recipe.mask != "sequence_likelihood" or not self.recipe.uses_old:
            return None
        assert self.old is not None
        assert self.sequence is not None
        likelihoods = [
            torch.cat(
                [masks.target_loglikelihood(model.rows(rows), self.targets[rows]) for rows in self.chunks()]
                or [torch.zeros(0, device=self.targets.device)]
            )
            for model in (self.student, self.old)
        ]
        if self._covered is not None:
            likelihoods[1] = torch.where(self._covered, likelihoods[1], likelihoods[0])
        return masks.sequence_weight(likelihoods[0], likelihoods[1], self.sequence)

    def chunk(self, rows: slice, text_weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Loss [rows], the old teacher's weights [rows] and the gradient [rows, ...] in the states."""
        logits = self.student.rows(rows)
        share = self.recipe.cross_entropy_weight
        loss, from_old = torch.zeros_like(logits[:, 0]), torch.zeros_like(logits[:, 0])
        slope, pull = torch.zeros_like(logits) if share == 1 else logits, None
        if share < 1:
            loss, from_old, slope, pull = self._distil(logits, rows, text_weights)
            loss, slope = loss.mul_(1 - share), slope.mul_(1 - share)
        if share > 0:
            learned, towards_text = self._learn(logits, rows)
            loss, slope = loss.add_(learned, alpha=share), slope.add_(towards_text, alpha=share)
        gradient = self.student.pull_back(slope)
        return loss, from_old, gradient if pull is None else gradient.sub_(pull, alpha=1 - share)

    def _distil(
        self, logits: Tensor, rows: slice, text_weights: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The divergence, its weights, its gradient in the logits, and what that lacks in the states."""
        temperature = self.recipe.temperature
        known = {
            "old": self.old.rows(rows) if self.old and self.recipe.mask in masks.USES_OLD else None,
            "new": self.new.rows(rows) if self.new and self.recipe.mask in masks.USES_NEW else None,
        }
        weight = self._weight(logits, known["old"], known["new"], rows, text_weights)
        softened = logits if temperature == 1 else logits / temperature
        slope, log_partition = softmax(softened)
        loss, pull = torch.zeros_like(weight), None
        for name, teacher, share in self._teachers(weight):
            taught = share.nonzero()[:, 0]
            if not len(taught):
                continue
            assert teacher is not None, f"the recipe needs the {name} model"
            given, numbers = known.get(name), rows.start + taught
            target: Any = teacher.rows(numbers) if given is None else given[taught]
            if isinstance(teacher, TokenMoments):
                states = self.student.states[rows]
                apart = target.divergence(states[taught], log_partition[taught], temperature)
                pull = states.new_zeros(states.shape, dtype=target.means.dtype) if pull is None else pull
                pull.index_add_(0, taught, target.means * share[taught, None], alpha=1 / temperature)
            elif isinstance(teacher, TokenLogits):
                towards, log_sum = softmax(target.div_(temperature))
                apart = target.sub_(softened[taught]).mul_(towards).sum(-1) - log_sum + log_partition[taught]
                slope.index_add_(0, taught, towards.mul_(share[taught, None]), alpha=-1)
            else:
                apart, towards = teacher.divergence(logits[taught], target, numbers, temperature)
                towards = towards.sub_((softened[taught] - log_partition[taught, None]).exp_())
                slope.index_add_(0, taught, towards.mul_(share[taught, None]))
            loss[taught] += share[taught] * apart
        return loss, weight, slope.div_(temperature), pull

    def _teachers(self, weight: Tensor) -> list[tuple[str, Prediction | None, Tensor]]:
        """Who teaches, and how much of each token, [rows]."""
        if self.both:
            return [("mixed", self.both, torch.ones_like(weight))]
        return [("old", self.old, weight), ("new", self.new, 1 - weight)]

    def _weight(
        self,
        logits: Tensor,
        old: Tensor | TokenMoments | None,
        new: Tensor | TokenMoments | None,
        rows: slice,
        text_weights: Tensor | None,
    ) -> Tensor:
        """The old teacher's weights [rows]."""
        if text_weights is None:
            truthful = None if self.truthful is None else self.truthful[rows]
            targets, mask = self.targets[rows], self.recipe.mask
            weight = masks.old_weight(mask, logits, old, new, targets, truthful=truthful)
        else:
            weight = text_weights[rows]
        weight = weight.to(logits.dtype)
        if self.new and self._covered is not None:
            weight = weight * self._covered[rows]
        return weight if self.trusted is None else weight * self.trusted[rows]

    @property
    def _covered(self) -> Tensor | None:
        """Where an old teacher with another tokenizer says anything, [n]."""
        if self.old is None or isinstance(self.old, TokenLogits | TokenMoments):
            return None
        return self.old.covered

    def _learn(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        targets = self.targets[rows]
        slope, log_partition = softmax(logits)
        loss = log_partition - logits.gather(-1, targets[:, None])[:, 0]
        slope[torch.arange(len(targets), device=targets.device), targets] -= 1
        if self.truthful is not None:
            learnable = self.truthful[rows].to(loss.dtype)
            loss, slope = loss * learnable, slope.mul_(learnable[:, None])
        return loss, slope


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, problem: _Problem) -> tuple[Tensor, Tensor]:
        gradient = torch.empty_like(states)
        # Sums over thousands of tokens.
        wide = widest(states.device)
        total = torch.zeros((), dtype=wide, device=states.device)
        from_old = torch.zeros_like(total)
        text_weights = problem.text_weights()
        for rows in problem.chunks():
            loss, weight, slope = problem.chunk(rows, text_weights)
            total += loss.sum(dtype=wide)
            from_old += weight.sum(dtype=wide)
            gradient[rows] = slope.to(gradient.dtype)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(from_old)
        dtype = torch.promote_types(states.dtype, torch.float32)
        return total.to(dtype), from_old.to(dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None
