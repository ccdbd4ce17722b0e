"""The workers of pytest-xdist on one machine divide its cores among them."""

import pytest
import torch

from pytest_muscle.models.local import cores


@pytest.fixture
def four_cores(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(cores, "_ALL", 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield monkeypatch
    torch.set_num_threads(before)


@pytest.mark.parametrize(("workers", "threads"), [("2", 2), ("3", 1), ("9", 1)])
def test_each_worker_takes_its_part_and_gives_it_back(four_cores, workers, threads):
    four_cores.setenv("PYTEST_XDIST_WORKER_COUNT", workers)
    cores.share_cores()
    assert torch.get_num_threads() == threads
    cores.regain_cores()
    assert torch.get_num_threads() == 4


def test_a_number_that_was_set_and_a_run_without_workers_are_left_alone(four_cores):
    four_cores.setenv("PYTEST_XDIST_WORKER_COUNT", "1")
    torch.set_num_threads(3)
    cores.share_cores()
    assert torch.get_num_threads() == 3
    four_cores.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    four_cores.setenv("OMP_NUM_THREADS", "3")
    cores.share_cores()
    assert torch.get_num_threads() == 3
