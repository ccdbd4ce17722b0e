"""The processes of one training: one alone, or several that ``accelerate launch`` started."""

from __future__ import annotations

import os
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy
import torch
from accelerate import PartialState  # type: ignore[import-untyped]
from accelerate.utils import broadcast_object_list, gather_object  # type: ignore[import-untyped]

from pytest_muscle.errors import MuscleError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")
R = TypeVar("R")


class Processes:
    """This process's number, how many there are, and what they do together.

    Raises MuscleError where ``accelerate launch`` was asked for several processes and started one.
    """

    def __init__(self, device: torch.device) -> None:
        # As the trainer does: a state left by earlier work in this process may be for another device.
        PartialState._reset_state()
        state = PartialState(cpu=device.type == "cpu")
        self.number: int = state.process_index
        self.count: int = state.num_processes
        if self.count == 1 and _is_alone_by_mistake():
            raise MuscleError(
                "accelerate launch --cpu starts one process, whatever --num_processes says (unless MPI does "
                "it); name --multi_gpu instead of --cpu: without GPUs its processes run on the CPU"
            )
        # Of a CPU there is one, though the state numbers it for each process.
        own = self.count > 1 and device.type != "cpu"
        self.device: torch.device = state.device if own else device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.number == 0

    @property
    def share_weights(self) -> bool:
        """Whether each is to hold a part of the weights only (FSDP, DeepSpeed)."""
        switches = "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"
        return any(os.environ.get(name, "").lower() == "true" for name in switches)

    def wait(self) -> None:
        """Wait for the others."""
        if self.count > 1:
            torch.distributed.barrier()

    def from_first(self, function: Callable[[], T]) -> T:
        """What the function gives in the first process, for all of them."""
        if self.count == 1:
            return function()
        held: list[Any] = [function() if self.first else None]
        broadcast_object_list(held)
        return held[0]  # type: ignore[no-any-return]

    def share_out(self, items: Sequence[T], function: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
        """``function`` of all items, in their order; each process works on its part."""
        mine: Any = list(function(items[self.number :: self.count]))
        if self.count == 1:
            return list(mine)
        parts = gather_object([(self.number, mine)])
        results: list[Any] = [None] * len(items)
        for number, part in parts:
            results[number :: self.count] = part
        return results


def _is_alone_by_mistake() -> bool:
    # The launcher sets an address to meet at only where it was asked for several processes.
    return os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Leave the random numbers of the process that called us as they were."""
    python, arrays = random.getstate(), numpy.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            numpy.random.set_state(arrays)
