"""The cores of a machine, divided among the workers of pytest-xdist."""

from __future__ import annotations

import os

import torch

_ALL = torch.get_num_threads()


def share_cores() -> None:
    """Compute with this worker's part of the cores, unless ``OMP_NUM_THREADS`` says with how many."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, _ALL // workers))


def regain_cores() -> None:
    """Compute with all cores again: an adapter is trained by one worker, while the others wait."""
    torch.set_num_threads(_ALL)
