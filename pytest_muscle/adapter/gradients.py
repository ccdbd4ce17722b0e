"""The gradients of an adapter as one vector.

An adapter is hundreds of small tensors. Gradients that outlive the backward pass one by one keep the freed
activations that lie between them from being joined, and those then fit nothing of the next step: the heap
grows with every step. One vector leaves it as it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn


class Gradients:
    """What losses say of parameters, added up; parameters that no loss depends on have no gradient."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._reached = [False] * len(parameters)
        self._values = torch.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype)
        sizes = [parameter.numel() for parameter in parameters]
        pieces = zip(torch.split(self._values, sizes), parameters, strict=True)
        self._places = [piece.view_as(parameter) for piece, parameter in pieces]

    def add_from(self, loss: Tensor) -> None:
        """Go back from a loss; its graph is gone afterwards."""
        found = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        for number, gradient in enumerate(found):
            if gradient is not None:
                self._places[number].add_(gradient)
                self._reached[number] = True

    def add(self, other: Gradients) -> None:
        """Add another loss's, of the same parameters."""
        self._values.add_(other._values)
        self._reached = [a or b for a, b in zip(self._reached, other._reached, strict=True)]

    def hand_over(self) -> None:
        """Add them to the parameters' ``grad``."""
        for parameter, reached, place in zip(self._parameters, self._reached, self._places, strict=True):
            if not reached:
                continue
            gradient: Tensor = place.to(parameter.dtype)
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
