"""The gradients of an adapter as one vector.

An adapter is hundreds of small tensors. Gradients that outlive the backward pass one by one keep the freed
activations that lie between them from being joined, and those then fit nothing of the next step: the heap
grows with every step. One vector leaves it as it was.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn


class Gradients:
    """The gradients of one or more losses, added up; a parameter that none depends on has none."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self._reached = [False] * len(parameters)
        sizes = [parameter.numel() for parameter in parameters]
        exact = reduce(torch.promote_types, (parameter.dtype for parameter in parameters))
        self._values = torch.zeros(sum(sizes), dtype=exact)
        pieces = zip(torch.split(self._values, sizes), parameters, strict=True)
        self._places = [piece.view_as(parameter) for piece, parameter in pieces]

    def add_from(self, loss: Tensor) -> None:
        """Go back from a loss and add its gradients; its graph is gone afterwards."""
        found = torch.autograd.grad(loss, self._parameters, allow_unused=True)
        for number, gradient in enumerate(found):
            if gradient is not None:
                self._places[number].add_(gradient)
                self._reached[number] = True

    def add(self, other: Gradients) -> None:
        """Add those of other losses, of the same parameters."""
        self._values.add_(other._values)
        self._reached = [a or b for a, b in zip(self._reached, other._reached, strict=True)]

    def hand_over(self) -> None:
        """Add them to the parameters' ``grad``, which may become a view of the vector."""
        for parameter, reached, place in zip(self._parameters, self._reached, self._places, strict=True):
            if reached:
                gradient = place.to(parameter.dtype)
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
