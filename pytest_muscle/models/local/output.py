"""A model without its output layer gives its final hidden states; the logits are made of them later."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_muscle.models.local.linear import PackedLinear

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True)
class OutputLayer:
    """A linear output layer that is not trained, and where it hangs in the model."""

    parent: nn.Module
    name: str
    layer: nn.Linear | PackedLinear
    _users: int = 0
    _lock: Lock = field(default_factory=Lock)

    @property
    def dtype(self) -> torch.dtype:
        """Of its inputs and outputs."""
        return torch.float32 if isinstance(self.layer, PackedLinear) else self.layer.weight.dtype

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Within, the model's "logits" are its final hidden states, in every thread.

        Several threads may be within at a time; the last one out puts the layer back.
        """
        with self._lock:
            self._users += 1
            setattr(self.parent, self.name, nn.Identity())
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    setattr(self.parent, self.name, self.layer)


def find_output_layer(model: Any) -> OutputLayer | None:
    """The output layer of a causal LM, or none where logits are not a frozen linear map of states.

    Tried on a few tokens rather than looked up by the model's name: some models cap or scale their logits.
    """
    layer = model.get_output_embeddings()
    if type(layer) not in (nn.Linear, PackedLinear) or any(p.requires_grad for p in layer.parameters()):
        return None
    place = next((name for name, module in model.named_modules() if module is layer), None)
    if place is None:
        return None
    parent, _, name = place.rpartition(".")
    found = OutputLayer(model.get_submodule(parent), name, layer)
    return found if _is_whole_head(model, found) else None


@torch.no_grad()
def _is_whole_head(model: Any, found: OutputLayer) -> bool:
    width = min(8, found.layer.out_features)
    probe = torch.arange(width, device=model.device)[None]
    expected = model(input_ids=probe, use_cache=False).logits
    try:
        with found.removed():
            states = model(input_ids=probe, use_cache=False).logits
        made = found.layer(states.to(found.dtype))
    except (AttributeError, RuntimeError):
        return False
    return expected.shape == made.shape and torch.allclose(expected.float(), made.float(), 1e-2, 1e-2)
