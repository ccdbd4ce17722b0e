"""How far each token is learned from the old model: 1 wholly, 0 not at all (then from the new one)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from pytest_muscle.adapter.config import Mask
    from pytest_muscle.adapter.moments import TokenMoments

CONSTANT = {"old_only": 1.0, "average": 0.5, "new_only": 0.0}
USES_STUDENT = frozenset({"student_wrong", "token_likelihood", "sequence_likelihood"})
USES_OLD = frozenset({"old_correct", "token_likelihood", "sequence_likelihood", "truth_weighted"})
USES_NEW = frozenset({"truth_weighted"})


def old_weight(
    mask: Mask,
    student: Tensor | None,
    old: Tensor | TokenMoments | None,
    new: Tensor | TokenMoments | None,
    targets: Tensor,
    sequence: Tensor | None = None,
    truthful: Tensor | None = None,
) -> Tensor:
    """The weight of the old teacher for each of n tokens, shape [n]; no gradient flows through it.

    ``student``, ``old`` and ``new`` are logits, [n, vocabulary] (teachers may be given by their moments);
    only those that the mask uses are looked at. ``targets`` [n] are the tokens that follow, ``sequence`` [n]
    the text that each belongs to, ``truthful`` [n] whether that text is right (default: all are).

    ``student_wrong`` is the paper's mask (equation 2); ``old_correct``, ``old_only``,
    ``token_likelihood`` and ``sequence_likelihood`` (the summed log-likelihoods of the text's tokens are
    compared) are those of its ablation. ``truth_weighted`` is a soft mask, p_old(y) / (p_old(y) +
    p_new(y)): each teacher counts as far as it believes in the text, in a wrong one as far as it does not.
    ``average`` is half of each, which makes the student imitate both models averaged at inference.
    ``new_only`` is a control: the old model has no say.
    """
    if mask in CONSTANT:
        return torch.full((len(targets),), CONSTANT[mask], device=targets.device)
    if mask == "student_wrong":
        return (~_right(student, targets)).float()
    if mask == "old_correct":
        return _right(old, targets).float()
    truth_old = target_loglikelihood(old, targets)
    if mask == "truth_weighted":
        belief = truth_old - target_loglikelihood(new, targets)
        return torch.sigmoid(belief if truthful is None else torch.where(truthful, belief, -belief))
    truth_student = target_loglikelihood(student, targets)
    if mask == "sequence_likelihood":
        assert sequence is not None
        return sequence_weight(truth_student, truth_old, sequence)
    return (truth_student < truth_old).float()


def sequence_weight(student: Tensor, old: Tensor, sequence: Tensor) -> Tensor:
    """1 for the tokens of each text whose summed log-likelihood [n] is lower under the student."""
    gap = (old - student).new_zeros(int(sequence.max()) + 1 if len(sequence) else 0)
    return (gap.index_add(0, sequence, old - student) > 0).float()[sequence]


def target_loglikelihood(said: Tensor | TokenMoments | None, targets: Tensor) -> Tensor:
    """log p(target) in nats, [n], of logits [n, vocabulary] or moments."""
    assert said is not None, "the mask needs what it was not given"
    if isinstance(said, torch.Tensor):
        return said.gather(-1, targets[:, None])[:, 0] - said.logsumexp(-1)
    return said.target_loglikelihood


def _right(said: Tensor | TokenMoments | None, targets: Tensor) -> Tensor:
    assert said is not None, "the mask needs what it was not given"
    return said.argmax(-1) == targets if isinstance(said, torch.Tensor) else said.right
