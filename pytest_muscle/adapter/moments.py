"""What the loss needs of a teacher's distributions, made once: exact, and as small as hidden states.

With a frozen output layer (rows w_v, bias b_v) the student's distribution over the tokens v,

    q(v) ~ exp((h w_v + b_v) / T),    h the student's final hidden state,

is an exponential family in h. The divergence of a teacher p from it then sees of p only the entropy and the
mean row (and bias) of the output layer, m = sum_v p(v) w_v and c = sum_v p(v) b_v:

    KL(p || q) = sum_v p(v) log p(v) - (h m + c) / T + log sum_v exp((h w_v + b_v) / T),

and so does its gradient in h, (sum_v q(v) w_v - m) / T. The teacher's own
output layer has no more work to do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pytest_muscle.adapter.logits import chunks, softmax, widest
from pytest_muscle.adapter.products import product

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pytest_muscle.adapter.logits import TokenLogits

_SCALARS = 3


@dataclass(frozen=True, slots=True)
class TokenMoments:
    """A teacher's distributions over what follows n tokens, by a student's output layer and at a temperature.

    ``values`` [n, width + 3] are the mean rows of the layer, the rest of the divergence that does not depend
    on the student (sum_v p(v) log p(v) - c / T), and, at T = 1, log p of the token that follows and whether
    that is the likeliest one.
    """

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice | Tensor) -> TokenMoments:
        return TokenMoments(self.values[rows])

    def rows(self, rows: slice | Tensor) -> TokenMoments:
        """Those of some tokens."""
        return self[rows]

    @property
    def means(self) -> Tensor:
        """The mean rows of the output layer, [n, width]."""
        return self.values[:, :-_SCALARS]

    @property
    def constants(self) -> Tensor:
        """What the divergence has of the teacher alone, [n]."""
        return self.values[:, -3]

    @property
    def target_loglikelihood(self) -> Tensor:
        """log p of the tokens that follow, [n], in nats."""
        return self.values[:, -2]

    @property
    def right(self) -> Tensor:
        """Whether the token that follows is the likeliest one, [n]."""
        return self.values[:, -1] == 1

    def divergence(self, states: Tensor, log_partition: Tensor, temperature: float) -> Tensor:
        """KL(teacher || student), [n].

        ``states`` [n, width] are the student's, ``log_partition`` [n] is the logarithm of the sum of the
        exponentials of its logits / T.
        """
        # Large numbers that nearly cancel.
        wide = widest(states.device)
        attraction = (states.to(wide) * self.means.to(wide)).sum(-1) / temperature
        return (self.constants.to(wide) - attraction + log_partition.to(wide)).to(log_partition.dtype)


def moments_width(width: int) -> int:
    """How many numbers there are for a token, given the width of the output layer."""
    return width + _SCALARS


@torch.no_grad()
def token_moments(
    teacher: TokenLogits, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
) -> TokenMoments:
    """The moments of a teacher's logits, by the student's output layer (``weight`` [entries, width]).

    ``targets`` [n] are the tokens that follow.
    """
    values = weight.new_empty(len(targets), moments_width(weight.shape[1]))
    for rows in chunks(len(targets), teacher.vocabulary, targets.device):
        logits, following = teacher.rows(rows), targets[rows]
        values[rows, -1] = (logits.argmax(-1) == following).to(values.dtype)
        values[rows, -2] = logits.gather(-1, following[:, None])[:, 0] - logits.logsumexp(-1)
        share, _ = softmax(logits / temperature)
        negentropy = torch.special.entr(share).sum(-1).neg()
        values[rows, :-2] = _seen(share, negentropy, weight, bias, temperature)
    return TokenMoments(values)


@torch.no_grad()
def mixed_moments(
    teachers: Sequence[tuple[TokenLogits, Tensor]], weight: Tensor, bias: Tensor | None, temperature: float
) -> TokenMoments:
    """The moments of teachers that each come with their weights [n], which add up to 1 for every token.

    The divergence of these moments is the sum of the teachers' own, by weight: it differs from that of their
    mixture by what does not depend on the student. What they say of the token that follows is left out (NaN).
    """
    (first, weights), *_ = teachers
    values = weight.new_full((len(weights), moments_width(weight.shape[1])), torch.nan)
    for rows in chunks(len(weights), first.vocabulary, weights.device):
        mixture = weight.new_zeros(rows.stop - rows.start, first.vocabulary)
        negentropy = mixture.new_zeros(len(mixture))
        for teacher, each in teachers:
            taught = each[rows].nonzero()[:, 0]
            own = each[rows][taught].to(mixture.dtype)
            share, _ = softmax(teacher.rows(rows.start + taught) / temperature)
            negentropy[taught] -= own * torch.special.entr(share).sum(-1)
            mixture.index_add_(0, taught, share.mul_(own[:, None]))
        values[rows, :-2] = _seen(mixture, negentropy, weight, bias, temperature)
    return TokenMoments(values)


def _seen(
    share: Tensor, negentropy: Tensor, weight: Tensor, bias: Tensor | None, temperature: float
) -> Tensor:
    """The mean rows of the output layer, and the constants, by probabilities [n, vocabulary]."""
    # Probabilities that do not quite add up to one would be multiplied by whole logits: hence ``softmax``.
    known = share.shape[1]
    means = product(share, weight[:known].T)
    offset = 0 if bias is None else share @ bias[:known] / temperature
    return torch.cat((means, (negentropy - offset)[:, None]), dim=1)
