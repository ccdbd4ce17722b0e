"""Final hidden states instead of logits: a model is run without its output layer, which comes later."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_muscle.adapter.loss import TokenLogits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor


@dataclass(frozen=True, slots=True)
class OutputLayer:
    """A frozen linear output layer, and where it hangs in the model."""

    parent: nn.Module
    name: str
    layer: nn.Linear

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Within, the model's "logits" are its final hidden states."""
        setattr(self.parent, self.name, nn.Identity())
        try:
            yield
        finally:
            setattr(self.parent, self.name, self.layer)


def find_output_layer(model: Any) -> OutputLayer | None:
    """The output layer of a causal LM, or none where logits are not a frozen linear map of states.

    Tried on a few tokens rather than looked up by the model's name: some models cap or scale their logits.
    """
    layer = model.get_output_embeddings()
    if type(layer) is not nn.Linear or any(p.requires_grad for p in layer.parameters()):
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
    probe = torch.arange(width, device=found.layer.weight.device)[None]
    expected = model(input_ids=probe, use_cache=False).logits
    try:
        with found.removed():
            states = model(input_ids=probe, use_cache=False).logits
        made = found.layer(states.to(found.layer.weight.dtype))
    except (AttributeError, RuntimeError):
        return False
    return expected.shape == made.shape and torch.allclose(expected.float(), made.float(), 1e-2, 1e-2)


def token_logits(
    model: Any, output: OutputLayer | None, batch: Mapping[str, Tensor], counted: Tensor, vocabulary: int
) -> TokenLogits:
    """Run the model; the logits of the positions marked in ``counted`` [batch, tokens - 1], in reading order.

    ``model`` may be wrapped for several processes; ``output`` is that of the model inside.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if output is None:
        return TokenLogits(model(**inputs, use_cache=False).logits[:, :-1][counted], vocabulary)
    with output.removed():
        states = model(**inputs, use_cache=False).logits[:, :-1][counted]
    return TokenLogits(states, vocabulary, output.layer.weight, output.layer.bias)
