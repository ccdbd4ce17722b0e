"""Batches by token budget: how large, and what happens when memory runs out."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import psutil  # type: ignore[import-untyped]
import torch

from pytest_muscle.models.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from transformers import PreTrainedModel

T = TypeVar("T")

_OUT_OF_MEMORY = ("not enough memory", "DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")

# The tokens of one row: on a CPU longer ones gain next to nothing; elsewhere the mask grows with its square.
_ROW = 512
_ROW_ELSEWHERE = 4096


@dataclass(slots=True)
class Budget:
    """The number of tokens that one batch may hold; halved for good when memory runs out."""

    tokens: int


def scoring_budget(model: PreTrainedModel, asked: int | None) -> Budget:
    """The budget of a forward pass that keeps the logits of nearly all its tokens."""
    # On a CPU each thread has a row of its own.
    largest = _ROW * torch.get_num_threads() if model.device.type == "cpu" else _ROW_ELSEWHERE
    embeddings: Any = model.get_input_embeddings()
    return Budget(asked or _affordable(model, largest, 8 * int(embeddings.weight.shape[0])))


def generation_budget(model: PreTrainedModel, asked: int | None) -> Budget:
    """The budget of prompts and new tokens together, whose keys and values stay in memory."""
    largest = 8192 if model.device.type == "cpu" else 131072
    return Budget(asked or _affordable(model, largest, 2 * _cache_bytes(model)))


def run_in_batches(
    count: int,
    budget: Budget,
    take: Callable[[int, int], tuple[int, int]],
    run: Callable[[int, int], Sequence[T]],
) -> Iterator[list[tuple[int, T | None]]]:
    """Run items 0 to ``count`` in batches and yield ``(item, result)`` pairs as each batch is done.

    ``take(start, tokens)`` says where the batch that begins at ``start`` ends and how many tokens it holds,
    ``run(start, end)`` computes it. When memory runs out the budget becomes half of what was tried and the
    batch is cut anew; an item that does not fit even alone gets the result None.
    """
    start = 0
    while start < count:
        end, used = take(start, budget.tokens)
        results = attempt(partial(run, start, end))
        if results is None and end - start > 1:
            budget.tokens = max(1, min(used, budget.tokens) // 2)
            continue
        yield list(zip(range(start, end), [None] if results is None else results, strict=True))
        start = end


def attempt(run: Callable[[], T]) -> T | None:
    """What ``run`` returns, or None if memory runs out in it."""
    try:
        with quiet():
            return run()
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
    # Only here, after the handler, are the failed pass's tensors unreferenced.
    _empty_cache()
    return None


def release_memory() -> None:
    """Give freed memory back, so that others can use it."""
    gc.collect()
    _empty_cache()


def _empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator or the CPU's allocator has run out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _OUT_OF_MEMORY)


def _affordable(model: PreTrainedModel, largest: int, bytes_per_token: int) -> int:
    device = model.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return max(64, min(largest, int(free) // 2 // max(1, bytes_per_token)))


def _cache_bytes(model: PreTrainedModel) -> int:
    config: Any = getattr(model.config, "text_config", None) or model.config
    heads = getattr(config, "num_attention_heads", None) or 1
    size = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 4096) // heads
    layers = getattr(config, "num_hidden_layers", None) or 32
    return 2 * layers * (getattr(config, "num_key_value_heads", None) or heads) * size * model.dtype.itemsize
