"""Budgets from free memory, and what is sent to a GPU; there need not be one."""

from types import SimpleNamespace

import pytest
import torch

from pytest_muscle.models.local import batching
from pytest_muscle.models.local.batching import generation_budget, scoring_budget
from pytest_muscle.models.local.transfers import sent

GIB = 2**30


def model(device: str, **config: int) -> SimpleNamespace:
    """As much of a model as a budget looks at: 50,000 tokens in its vocabulary, in half precision."""
    return SimpleNamespace(
        device=torch.device(device),
        dtype=torch.float16,
        config=SimpleNamespace(text_config=None, **config),
        get_input_embeddings=lambda: SimpleNamespace(weight=torch.empty(50_000, 1)),
    )


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch):
    """Says how much memory is free: on a GPU, and on the machine."""

    def say(gpu: float, machine: float) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(gpu), 80 * GIB))
        monkeypatch.setattr(
            batching.psutil, "virtual_memory", lambda: SimpleNamespace(available=int(machine))
        )

    return say


@pytest.mark.parametrize(("device", "other"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_scoring_holds_logits_in_half_of_the_devices_own_free_memory(
    free, monkeypatch: pytest.MonkeyPatch, device: str, other: str
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    memory = {device: 0.4 * GIB, other: 1000 * GIB}
    free(memory["cuda"], memory["cpu"])
    # A token's logits and their copy: 8 bytes for each token of the vocabulary.
    assert scoring_budget(model(device), None).tokens == int(0.2 * GIB) // (8 * 50_000)


def test_scoring_with_plenty_of_memory_takes_the_longest_useful_rows(
    free, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    free(70 * GIB, 100 * GIB)
    assert scoring_budget(model("cpu"), None).tokens == 3 * 512
    assert scoring_budget(model("cuda"), None).tokens == 4096


def test_generation_holds_keys_and_values_twice(free) -> None:
    free(4 * GIB, 0)
    sizes = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    a_token = 2 * 32 * 8 * 128 * 2
    assert generation_budget(model("cuda", **sizes), None).tokens == 4 * GIB // 2 // (2 * a_token)
    assert generation_budget(model("cpu", **sizes), None).tokens == 64  # However little there is.


def test_what_the_user_asks_for_counts(free) -> None:
    free(0, 0)
    assert scoring_budget(model("cuda"), 77).tokens == generation_budget(model("cuda"), 77).tokens == 77


def test_tensors_go_to_a_gpu_from_pinned_memory_and_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: done.append("pinned") or self)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, device, non_blocking=False: done.append(non_blocking) or self
    )
    sent(torch.zeros(1), torch.device("cpu"))
    assert done == [False]
    sent(torch.zeros(1), torch.device("cuda"))
    assert done == [False, "pinned", True]
