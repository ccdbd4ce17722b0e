"""Packed linear layers against plain ones."""

import pytest
import torch
from torch import nn

from pytest_muscle.models.local import linear
from pytest_muscle.models.local.linear import PackedLinear, pack_linears

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build has no oneDNN")


class Net(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Linear(24, 40, dtype=dtype), nn.GELU(), nn.Linear(40, 7, False, dtype=dtype)
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.inner(inputs)


@pytest.mark.parametrize("shape", [(24,), (1, 24), (3, 5, 24), (300, 24)])
def test_a_packed_model_computes_the_same(shape: tuple[int, ...]) -> None:
    net, inputs = Net(), torch.randn(shape)
    with torch.inference_mode():
        expected = net(inputs)
        assert pack_linears(net) == 2
        assert isinstance(net.inner[0], PackedLinear)
        torch.testing.assert_close(net(inputs), expected)


def test_the_weights_can_be_looked_at() -> None:
    layer = nn.Linear(24, 40)
    assert torch.equal(PackedLinear(layer).weight, layer.weight)


def test_other_precisions_and_kinds_stay_as_they_are() -> None:
    class Own(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs) + 1

    assert pack_linears(Net(torch.float64)) == 0
    assert pack_linears(nn.Sequential(Own(3, 4))) == 0


def test_a_layer_that_would_differ_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear.PackedLinear, "forward", lambda self, inputs: inputs @ self.weight.T + 0.1)
    assert pack_linears(Net()) == 0


def test_a_build_without_the_kernels_keeps_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(linear.PackedLinear, "__init__", missing)
    assert pack_linears(Net()) == 0
