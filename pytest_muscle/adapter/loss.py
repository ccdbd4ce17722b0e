"""The loss of the compatibility adapter, exact and in little memory.

Per token, teachers first (forward KL), all at temperature T:

    w KL(old || student) + (1 - w) KL(new || student),    w = the mask's weight of the old teacher,

and with cross-entropy weight c the sum (1 - c) KL + c CE (the paper's equations 1 and 5, c = 1 - lambda).
Its gradient is formed by hand, some tokens at a time, while the loss is computed: [tokens, vocabulary]
never exists whole, neither for the student nor for a teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from pytest_muscle.adapter import masks
from pytest_muscle.adapter.products import product

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from pytest_muscle.adapter.config import Recipe
    from pytest_muscle.adapter.vocabulary.teacher import MappedLogits

IGNORED = -100
# Logits held at once: what the caches of a processor like, and what keeps an accelerator busy.
_CHUNK_ELEMENTS = {"cpu": 2**23}
_CHUNK_ELEMENTS_ELSEWHERE = 2**26


@dataclass(frozen=True, slots=True)
class TokenLogits:
    """Logits of n tokens over the first ``vocabulary`` entries, computed for some rows when asked for.

    ``states`` are final hidden states [n, width] and ``weight`` [entries, width] (with ``bias``) the
    output layer; without a weight the states are the logits themselves.
    """

    states: Tensor
    vocabulary: int
    weight: Tensor | None = None
    bias: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def rows(self, rows: slice | Tensor) -> Tensor:
        """The logits [rows, vocabulary], in float32 at least."""
        if self.weight is None:
            logits = self.states[rows, : self.vocabulary]
        else:
            bias = None if self.bias is None else self.bias[: self.vocabulary]
            states = self.states[rows].to(self.weight.dtype)
            logits = product(states, self.weight[: self.vocabulary], bias)
        return logits if logits.dtype == torch.float64 else logits.float()

    def pull_back(self, gradient: Tensor) -> Tensor:
        """The gradient of the states [rows, ...] from that of their logits [rows, vocabulary]."""
        if self.weight is not None:
            return product(gradient.to(self.weight.dtype), self.weight[: self.vocabulary].T)
        extra = self.states.shape[-1] - self.vocabulary
        return functional.pad(gradient, (0, extra)) if extra else gradient


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
    old: TokenLogits | MappedLogits | None,
    new: TokenLogits | None,
    targets: Tensor,
    recipe: Recipe,
    *,
    sequence: Tensor | None = None,
    truthful: Tensor | None = None,
    trusted: Tensor | None = None,
) -> TokenLoss:
    """The loss summed over n tokens.

    ``targets`` [n] are the tokens that follow, ``sequence`` [n] the text each belongs to, ``truthful``
    [n] marks those of right texts (default: all): the cross-entropy learns only these. ``trusted`` [n]
    marks where the old teacher may teach (default: everywhere); elsewhere the new one does.
    """
    problem = _Problem(student, old, new, targets, recipe, sequence, truthful, trusted)
    total, from_old = _FusedLoss.apply(student.states, problem)  # type: ignore[no-untyped-call]
    return TokenLoss(total, from_old)


@dataclass(frozen=True, slots=True)
class _Problem:
    student: TokenLogits
    old: TokenLogits | MappedLogits | None
    new: TokenLogits | None
    targets: Tensor
    recipe: Recipe
    sequence: Tensor | None
    truthful: Tensor | None
    trusted: Tensor | None

    def chunks(self) -> Iterator[slice]:
        elements = _CHUNK_ELEMENTS.get(self.targets.device.type, _CHUNK_ELEMENTS_ELSEWHERE)
        size = max(1, elements // self.student.vocabulary)
        for start in range(0, len(self.targets), size):
            yield slice(start, min(start + size, len(self.targets)))

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
        if not isinstance(self.old, TokenLogits):
            likelihoods[1] = torch.where(self.old.covered, likelihoods[1], likelihoods[0])
        return masks.sequence_weight(likelihoods[0], likelihoods[1], self.sequence)

    def chunk(self, rows: slice, text_weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Loss [rows], the old teacher's weights [rows] and the gradient [rows, vocabulary] of the loss."""
        logits = self.student.rows(rows)
        share = self.recipe.cross_entropy_weight
        loss, from_old = torch.zeros_like(logits[:, 0]), torch.zeros_like(logits[:, 0])
        slope = torch.zeros_like(logits) if share == 1 else logits
        if share < 1:
            loss, from_old, slope = self._distil(logits, rows, text_weights)
            loss, slope = loss.mul_(1 - share), slope.mul_(1 - share)
        if share > 0:
            learned, towards_text = self._learn(logits, rows)
            loss, slope = loss.add_(learned, alpha=share), slope.add_(towards_text, alpha=share)
        return loss, from_old, slope

    def _distil(
        self, logits: Tensor, rows: slice, text_weights: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        temperature, mask = self.recipe.temperature, self.recipe.mask
        known = {
            "old": self.old.rows(rows) if self.old and mask in masks.USES_OLD else None,
            "new": self.new.rows(rows) if self.new and mask in masks.USES_NEW else None,
        }
        weight = (
            masks.old_weight(
                mask,
                logits,
                known["old"],
                known["new"],
                self.targets[rows],
                truthful=None if self.truthful is None else self.truthful[rows],
            )
            if text_weights is None
            else text_weights[rows]
        ).to(logits.dtype)
        if self.old and self.new and not isinstance(self.old, TokenLogits):
            weight = weight * self.old.covered[rows]
        if self.trusted is not None:
            weight = weight * self.trusted[rows]
        log_student = functional.log_softmax(logits if temperature == 1 else logits / temperature, -1)
        slope = log_student.exp()
        loss = torch.zeros_like(weight)
        for name, teacher, share in (("old", self.old, weight), ("new", self.new, 1 - weight)):
            taught = share.nonzero()[:, 0]
            if not len(taught):
                continue
            assert teacher is not None, f"the recipe needs the {name} model"
            given = known[name]
            target = teacher.rows(rows.start + taught) if given is None else given[taught]
            if not isinstance(teacher, TokenLogits):
                apart, towards = teacher.divergence(logits[taught], target, rows.start + taught, temperature)
                loss[taught] += share[taught] * apart
                towards = towards.sub_(log_student[taught].exp())
                slope.index_add_(0, taught, towards.mul_(share[taught, None]))
                continue
            log_target = functional.log_softmax(target.div_(temperature), -1)
            target = torch.exp(log_target, out=target)
            apart = log_target.sub_(log_student[taught]).mul_(target).sum(-1)
            loss[taught] += share[taught] * apart
            slope.index_add_(0, taught, target.mul_(share[taught, None]), alpha=-1)
        return loss, weight, slope.div_(temperature)

    def _learn(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        targets = self.targets[rows]
        log_student = functional.log_softmax(logits, -1)
        loss = -log_student.gather(-1, targets[:, None])[:, 0]
        slope = log_student.exp_()
        slope[torch.arange(len(targets), device=targets.device), targets] -= 1
        if self.truthful is not None:
            learnable = self.truthful[rows].to(loss.dtype)
            loss, slope = loss * learnable, slope.mul_(learnable[:, None])
        return loss, slope


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, problem: _Problem) -> tuple[Tensor, Tensor]:
        gradient = torch.empty_like(states)
        # Sums over thousands of tokens are kept in float64 where the device has it.
        wide = torch.float32 if states.device.type == "mps" else torch.float64
        total = torch.zeros((), dtype=wide, device=states.device)
        from_old = torch.zeros_like(total)
        text_weights = problem.text_weights()
        for rows in problem.chunks():
            loss, weight, slope = problem.chunk(rows, text_weights)
            total += loss.sum(dtype=wide)
            from_old += weight.sum(dtype=wide)
            gradient[rows] = problem.student.pull_back(slope).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(from_old)
        dtype = torch.promote_types(states.dtype, torch.float32)
        return total.to(dtype), from_old.to(dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None
