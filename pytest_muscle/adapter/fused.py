"""LoRA layers whose frozen weights and factors are one operation, forward and backward.

What PEFT's layer computes as a product, two narrow products, a scaled copy and a sum is added up in place
here, so that less is allocated and passed over. Used on a CPU in single precision; everything else is left
to PEFT.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora.layer import Linear
from torch import nn

from pytest_muscle.adapter.products import product

if TYPE_CHECKING:
    from torch import Tensor


class FusedLinear(Linear):
    """PEFT's LoRA layer with its usual forward pass as one operation."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output [..., out] for inputs [..., in]."""
        if args or kwargs or not self._is_plain(x):
            return super().forward(x, *args, **kwargs)
        (name,) = self.active_adapters
        factors = self.lora_A[name].weight, self.lora_B[name].weight
        scaling = self.scaling[name]
        weight, bias = self.base_layer.weight, self.base_layer.bias
        output: Tensor = _LoraProduct.apply(x, weight, bias, *factors, scaling)  # type: ignore[no-untyped-call]
        return output

    def _is_plain(self, inputs: Tensor) -> bool:
        """Whether there is one adapter without dropout, of the inputs' type, on a CPU."""
        if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
            return False
        (name,) = self.active_adapters
        if name not in self.lora_A or not isinstance(self.lora_dropout[name], nn.Identity):
            return False
        tensors = inputs, self.base_layer.weight, self.lora_A[name].weight, self.lora_B[name].weight
        return all(each.device.type == "cpu" and each.dtype == torch.float32 for each in tensors)


def fuse(model: nn.Module) -> None:
    """Let PEFT's plain LoRA layers on frozen linear layers compute in one operation, where they can."""
    for layer in model.modules():
        if type(layer) is Linear and type(layer.base_layer) is nn.Linear and not layer.lora_variant:
            layer.__class__ = FusedLinear


class _LoraProduct(torch.autograd.Function):
    """inputs W' + bias + scaling (inputs A') B', where W and bias are frozen."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        output = product(inputs, weight, bias)
        narrow = inputs.reshape(-1, inputs.shape[-1]) @ a.T
        output.view(-1, output.shape[-1]).addmm_(narrow, b.T, alpha=scaling)
        ctx.save_for_backward(inputs, weight, a, b, narrow)
        ctx.scaling = scaling
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, a, b, narrow = ctx.saved_tensors
        flat = upstream.reshape(-1, upstream.shape[-1])
        to_narrow = (flat @ b).mul_(ctx.scaling)
        to_a = to_narrow.T @ inputs.reshape(-1, inputs.shape[-1])
        to_b = (flat.T @ narrow).mul_(ctx.scaling)
        to_inputs = None
        if ctx.needs_input_grad[0]:
            to_inputs = product(upstream, weight.T)
            to_inputs.view(-1, to_inputs.shape[-1]).addmm_(to_narrow, a)
        return to_inputs, None, None, to_a, to_b, None
