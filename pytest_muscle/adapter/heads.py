"""Final hidden states instead of logits: a model is run without its output layer, which comes later."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_muscle.adapter.logits import TokenLogits

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from pytest_muscle.models.local.output import OutputLayer


def token_logits(
    model: Any, output: OutputLayer | None, batch: Mapping[str, Tensor], counted: Tensor, vocabulary: int
) -> TokenLogits:
    """Run the model; the logits of the positions marked in ``counted`` [batch, tokens - 1], in reading order.

    ``model`` may be wrapped for several processes; ``output`` is that of the model inside.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if output is None:
        return TokenLogits(model(**inputs, use_cache=False).logits[:, :-1][counted], vocabulary)
    with output.removed():
        states = model(**inputs, use_cache=False).logits[:, :-1][counted]
    return TokenLogits(states, vocabulary, output.layer.weight, output.layer.bias)
