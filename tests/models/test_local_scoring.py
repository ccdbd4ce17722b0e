"""Log-probabilities by blocks, against all logits at once in float64."""

import pytest
import torch
from torch import nn

from pytest_muscle.models.local.linear import PackedLinear
from pytest_muscle.models.local.scoring import output_logprobs, token_logprobs


@pytest.mark.parametrize("positions", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("bias", [False, True])
def test_blocks_give_what_all_logits_at_once_give(positions, bias):
    torch.manual_seed(2)
    layer, states = nn.Linear(16, 40, bias=bias), torch.randn(positions, 16)
    # Several tokens may be asked for after one position, and positions in any order.
    rows = torch.randint(0, positions, (2 * positions,))
    tokens = torch.randint(0, 40, (2 * positions,))
    with torch.inference_mode():
        expected = (states.double() @ layer.weight.double().T).add(0 if layer.bias is None else layer.bias)
        expected = expected.log_softmax(-1)[rows, tokens]
        for found in (
            output_logprobs(PackedLinear(layer), states, rows, tokens),
            token_logprobs(layer(states), rows, tokens),
        ):
            torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_long_text_over_a_large_vocabulary_adds_up():
    torch.manual_seed(3)
    layer, states = nn.Linear(64, 50_000, bias=False), torch.randn(300, 64)
    nn.init.normal_(layer.weight, std=3 / 8)
    rows, tokens = torch.arange(300), torch.randint(0, 50_000, (300,))
    with torch.inference_mode():
        logits = states.double() @ layer.weight.double().T
        expected = float(logits.log_softmax(-1)[rows, tokens].sum())
        for found in (
            output_logprobs(PackedLinear(layer), states, rows, tokens),
            token_logprobs(layer(states), rows, tokens),
        ):
            # PyTorch's own log_softmax on a CPU is 1e-3 away.
            assert float(found.double().sum()) == pytest.approx(expected, abs=2e-4, rel=0)
        assert token_logprobs(logits.bfloat16(), rows, tokens).dtype == torch.float32
        doubled = token_logprobs(logits, rows, tokens)
    assert doubled.dtype == torch.float64
    assert float(doubled.sum()) == pytest.approx(expected, abs=1e-9, rel=0)
