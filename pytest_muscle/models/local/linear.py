"""Linear layers with their weights laid out for the processor's matrix kernels ahead of time.

PyTorch hands single-precision products to a library that arranges the weights anew at every call; oneDNN can
be given them arranged. What that gains depends on the processor and is most for few rows, as in decoding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

# The number of rows that the layout is made for; the others get nearly the same out of it.
_ROWS = 256

# The output features of one block: the logits of some hundred rows stay in the caches.
_BLOCK = 4096


class PackedLinear(nn.Module):
    """What a linear layer computes, for inference on a CPU in single precision."""

    bias: torch.Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach(), persistent=False)
        parts = torch.split(layer.weight.detach(), _BLOCK)
        self._packed = [torch.ops.mkldnn._reorder_linear_weight(part, _ROWS) for part in parts]

    @property
    def weight(self) -> torch.Tensor:
        """The weights [out, in], laid out back; for code that looks at them."""
        return torch.cat([part.to_dense() for part in self._packed])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The product [..., out] of inputs [..., in] with the weights, plus the bias."""
        blocks = list(self.blocks(inputs))
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=-1)

    def blocks(self, inputs: torch.Tensor) -> Iterator[torch.Tensor]:
        """The product in blocks [..., features] that follow each other."""
        biases = [None] * len(self._packed) if self.bias is None else torch.split(self.bias, _BLOCK)
        for part, bias in zip(self._packed, biases, strict=True):
            yield torch.ops.mkldnn._linear_pointwise(inputs, part, bias, "none", [], "")


@torch.inference_mode()
def pack_linears(model: PreTrainedModel) -> int:
    """Replace the model's linear layers by packed ones where they give the same numbers; say how many were.

    Only on a CPU and in single precision, and for inference: the layers have no parameters any more.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return 0
    packed = 0
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if _suits(layer) and (replacement := _packed(layer)) is not None:
                setattr(parent, name, replacement)
                packed += 1
    return packed


def _suits(layer: nn.Module) -> bool:
    if type(layer) is not nn.Linear or layer._forward_hooks or layer._forward_pre_hooks:
        return False
    return layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32


def _packed(layer: Any) -> PackedLinear | None:
    probe = torch.linspace(-1, 1, 2 * layer.in_features).view(2, -1)
    expected = layer(probe)
    try:
        replacement = PackedLinear(layer)
        found = replacement(probe)
    except (RuntimeError, AttributeError, NotImplementedError):  # A build without these kernels.
        return None
    close = (found - expected).abs().max() <= 1e-4 * expected.abs().max().clamp_min(1e-3)
    return replacement if bool(close) else None
