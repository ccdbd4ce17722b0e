"""The cores of a machine, divided among the workers of pytest-xdist, and within one among its rows."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

T = TypeVar("T")

_ALL = torch.get_num_threads()


def share_cores() -> None:
    """Compute with this worker's part of the cores, unless ``OMP_NUM_THREADS`` says with how many."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, _ALL // workers))


def regain_cores() -> None:
    """Compute with all cores again: an adapter is trained by one worker, while the others wait."""
    torch.set_num_threads(_ALL)


def threads_for(model: nn.Module) -> int:
    """How many rows may go through a model on this device at the same time.

    As many as there are threads on a CPU; one where a forward pass leaves something in the model, as rotary
    embeddings do that adapt to the longest text, and as a checkpoint's own code may.
    """
    on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
    return torch.get_num_threads() if on_cpu and not any(map(_keeps_state, model.modules())) else 1


def _keeps_state(module: nn.Module) -> bool:
    kind: Any = getattr(module, "rope_type", "default")
    kinds = kind.values() if isinstance(kind, dict) else [kind]
    # The names are those that transformers itself looks for before it updates the frequencies.
    adapts = any("dynamic" in str(each) or each == "longrope" for each in kinds)
    return adapts or type(module).__module__.startswith("transformers_modules.")


class Threads:
    """``count`` threads, each of which computes with its part of the cores; a context.

    A product that is divided among cores waits for the slowest of them, many times in each layer. Rows that
    are computed apart wait once.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._cores = max(1, torch.get_num_threads() // count)
        self._pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(self._cores,))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """What the tasks return, run at the same time; one task alone has all cores to itself."""
        if self.count == 1 or len(tasks) == 1:
            return [task() for task in tasks]
        cores = torch.get_num_threads()
        # Some of PyTorch's libraries have one number of threads for the whole process.
        torch.set_num_threads(self._cores)
        try:
            running = [self._pool.submit(task) for task in tasks]
            wait(running)
        finally:
            torch.set_num_threads(cores)
        return [each.result() for each in running]
