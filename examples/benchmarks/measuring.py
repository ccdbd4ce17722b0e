"""What the benchmarks share: interleaved rounds, the machine's rate, a table."""

from __future__ import annotations

import platform
import statistics
import time
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import nn


def interleaved(rounds: int, contestants: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """CPU seconds of each contestant in each round, all of a round one after the other."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return seconds


def print_table(seconds: Mapping[str, list[float]], baseline: str, tokens: Mapping[str, int]) -> None:
    """Median, range and ratio to the baseline of each contestant, and the tokens it ran."""
    reference = statistics.median(seconds[baseline])
    print(f"{'':24}{'median s':>10}{'min':>8}{'max':>8}{'ratio':>8}{'tokens':>10}")
    for name, values in seconds.items():
        median = statistics.median(values)
        row = f"{median:10.2f}{min(values):8.2f}{max(values):8.2f}{reference / median:8.2f}{tokens[name]:10d}"
        print(f"{name:24}{row}")


def print_machine() -> None:
    """The machine and the versions that the figures belong to."""
    import transformers

    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads; Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


def matrix_product_rate(size: int = 1024, repeats: int = 10) -> float:
    """Floating-point operations in a CPU second of square single-precision matrix products."""
    left, right = torch.rand(size, size), torch.rand(size, size)
    left @ right
    start = time.process_time()
    for _ in range(repeats):
        left @ right
    return 2 * size**3 * repeats / (time.process_time() - start)


class TokenCounter:
    """Counts the tokens that go through a model's forward passes, padding included."""

    def __init__(self, model: nn.Module) -> None:
        self.tokens = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(
        self, _: nn.Module, positional: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]
    ) -> None:
        self.tokens += (positional[0] if positional else named["input_ids"]).numel()

    def of(self, run: Callable[[], object]) -> int:
        """The tokens of one run."""
        before = self.tokens
        run()
        return self.tokens - before


def linear_sizes(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Name and number of weights of each linear layer."""
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            yield name, layer.weight.numel()
