"""Logits that are made of hidden states when they are asked for, some tokens at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from pytest_muscle.adapter.products import product

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

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


def chunks(tokens: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """Tokens, so many at a time that their logits may be held at once."""
    elements = _CHUNK_ELEMENTS.get(device.type, _CHUNK_ELEMENTS_ELSEWHERE)
    size = max(1, elements // vocabulary)
    for start in range(0, tokens, size):
        yield slice(start, min(start + size, tokens))


def softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities [n, vocabulary] and logarithms of the sums of exponentials [n] of logits.

    In separate passes, whose sums are pairwise: over 49152 entries in float32 torch's own softmax adds up
    to 1 within 8e-6 on a CPU, this within 3e-7.
    """
    highest = logits.amax(-1, keepdim=True)
    share = torch.sub(logits, highest).exp_()
    total = share.sum(-1, keepdim=True)
    return share.div_(total), (highest + total.log())[:, 0]


def widest(device: torch.device) -> torch.dtype:
    """float64 where the device has it: for sums over many numbers, and for differences of large ones."""
    return torch.float32 if device.type == "mps" else torch.float64
