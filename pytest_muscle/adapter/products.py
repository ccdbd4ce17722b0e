"""Products with weights that are not trained."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from torch import Tensor


def product(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product [..., out] of inputs [..., in] with a weight [out, in] of any layout; not differentiable.

    By oneDNN where vectors of 512 bits are to be had, else by PyTorch's own library.
    """
    tensors = (inputs, weight) if bias is None else (inputs, weight, bias)
    if _prefers_onednn() and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors):
        made: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")
        return made
    return functional.linear(inputs, weight, bias)


@cache
def _prefers_onednn() -> bool:
    # Where it was measured, with vectors of 256 bits, PyTorch's own library is ahead. A rule, not a race: a
    # machine must not train the same adapter in two ways.
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    probe = torch.linspace(-1, 1, 8).view(2, 4)
    try:
        made = torch.ops.mkldnn._linear_pointwise(probe, probe, None, "none", [], "")
    except (RuntimeError, AttributeError, NotImplementedError):  # A build without these kernels.
        return False
    return torch.allclose(made, probe @ probe.T)
