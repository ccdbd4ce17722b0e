"""The workers of pytest-xdist on one machine divide its cores among them."""

import threading

import pytest
import torch
from tiny import save_tiny_model

from pytest_muscle.models.checkpoint import load_model, resolve_checkpoint
from pytest_muscle.models.local import cores


def load(path):
    return load_model(resolve_checkpoint(str(path)), device="cpu")


@pytest.fixture
def four_cores(monkeypatch, set_threads):
    set_threads(4)
    monkeypatch.setattr(cores, "_ALL", 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return monkeypatch


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


def test_tasks_run_at_the_same_time_with_their_part_of_the_cores(four_cores):
    together = threading.Barrier(2, timeout=20)

    def task(number):
        together.wait()
        return number, torch.get_num_threads()

    for count, each in ((2, 2), (3, 1)):
        with cores.Threads(count) as threads:
            for _ in range(2):
                assert threads.run([lambda n=n: task(n) for n in range(2)]) == [(0, each), (1, each)]
                assert torch.get_num_threads() == 4


@pytest.mark.parametrize(
    ("rope", "rows"),
    [
        ({"rope_type": "default", "rope_theta": 10000.0}, 4),
        ({"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}, 4),
        ({"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}, 1),
    ],
)
def test_models_that_keep_state_take_one_row_at_a_time(four_cores, tmp_path, rope, rows):
    model = load(save_tiny_model(tmp_path / "model", seed=1, rope_parameters=rope))
    assert cores.threads_for(model) == rows


def test_code_of_a_checkpoint_takes_one_row_at_a_time(four_cores):
    own = type("Own", (torch.nn.Identity,), {"__module__": "transformers_modules.some.modeling"})
    assert cores.threads_for(torch.nn.Sequential(torch.nn.Identity())) == 4
    assert cores.threads_for(torch.nn.Sequential(own())) == 1


def test_one_task_has_all_cores(four_cores):
    torch.set_num_threads(3)
    with cores.Threads(3) as threads:
        assert threads.run([torch.get_num_threads]) == [3]


def test_an_error_comes_when_all_tasks_are_done_and_the_cores_are_regained(four_cores):
    torch.set_num_threads(3)
    done = threading.Event()

    def fail():
        raise ValueError("a defect")

    def finish():
        done.wait(0.2)
        done.set()

    with cores.Threads(2) as threads:
        with pytest.raises(ValueError, match="a defect"):
            threads.run([fail, finish])
        assert done.is_set()
        assert torch.get_num_threads() == 3
