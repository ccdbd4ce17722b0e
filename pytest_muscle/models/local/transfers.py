"""Tensors on their way to the device that computes with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The tensor on a device.

    To a GPU from pinned memory: the copy is queued behind what is under way there instead of waiting for it.
    """
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
