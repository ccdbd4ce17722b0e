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
