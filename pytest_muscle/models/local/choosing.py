"""Log-likelihoods of choices by the faster of two paths, where it gives the plain path's numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from pytest_muscle.models.local import packing, scoring
from pytest_muscle.models.local.batching import Budget
from pytest_muscle.models.local.encoding import Choices, Continuation
from pytest_muscle.models.local.linear import PackedLinear
from pytest_muscle.models.local.output import OutputLayer, find_output_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from transformers import PreTrainedModel

    from pytest_muscle.models.local.scoring import ScoredBatch

# Enough context for a prefix of its own, and a budget that invented requests never reach.
_PROBED, _AMPLE = 36, 4096


def score(
    model: PreTrainedModel,
    requests: Sequence[Choices],
    budget: Budget,
    on_plain: Callable[[], None] | None = None,
) -> Iterator[ScoredBatch]:
    """Yield ``(index of the request, log-likelihood of each choice in nats)`` batch by batch.

    Whether the model can be run on packed tries (attention windows, recurrent layers and code of its own
    may prevent it) is found out by comparing both paths: on the longest request, which is in the first batch,
    and on two short ones that share a row and a prefix. ``on_plain`` is called where it cannot.
    """
    if not requests:
        return
    try:
        batches = packing.score(model, requests, budget, _output_by_blocks(model))
        first = next(batches)
        suits = _agrees(model, requests, first) and _keeps_apart(model, requests)
    except Exception:  # A model without such attention may fail in any way.
        suits = False
    if not suits:
        if on_plain:
            on_plain()
        yield from scoring.score(model, requests, budget)
        return
    yield first
    yield from batches


def _output_by_blocks(model: PreTrainedModel) -> OutputLayer | None:
    """The output layer where blocks of its logits pay: elsewhere than on a CPU one product is better."""
    output = find_output_layer(model)
    return output if output is not None and isinstance(output.layer, PackedLinear) else None


def _agrees(model: PreTrainedModel, requests: Sequence[Choices], batch: ScoredBatch) -> bool:
    item, found = max(batch, key=lambda pair: packing.length(requests[pair[0]]))
    # The last choice comes after all others in the row and would show if it saw them.
    last = requests[item][-1:]
    ((_, plain),) = next(scoring.score(model, [last], Budget(1)))
    return found is None or plain is None or _close(found[-1], plain[0], last[0].scored, model.dtype)


def _keeps_apart(model: PreTrainedModel, requests: Sequence[Choices]) -> bool:
    """Whether requests in a row, their choices and what they stand on are as if each choice came alone.

    The longest request does not show it: it is the first one of its row, and choices of one token are no
    branches.
    """
    longest = max(requests, key=packing.length)[0].tokens
    context = longest[: max(1, min(_PROBED, len(longest) - 4))]
    # Invented, with tokens that every vocabulary has.
    probes = [
        _invented(context, (0, 1), (1, 2)),
        _invented((*context[:-4], 3, 2, 1, 0)[: len(context)], (2, 3), (3, 0)),
    ]
    plain = _last(scoring.score(model, [probe[-1:] for probe in probes], Budget(_AMPLE)))
    # In one row, and then one by one behind the prefix.
    packed = [_last(packing.score(model, probes, Budget(budget))) for budget in (_AMPLE, 1)]
    return all(_close(a, b, 2, model.dtype) for each in packed for a, b in zip(each, plain, strict=True))


def _last(batches: Iterator[ScoredBatch]) -> list[float]:
    """What was found for the last choice of each request, which would show if it saw the others."""
    found = sorted(pair for batch in batches for pair in batch)
    return [math.inf if values is None else values[-1] for _, values in found]


def _invented(context: tuple[int, ...], *choices: tuple[int, ...]) -> Choices:
    return tuple(Continuation((*context, *choice), len(choice)) for choice in choices)


def _close(a: float, b: float, scored: int, dtype: torch.dtype) -> bool:
    """Whether two log-likelihoods of ``scored`` tokens differ by no more than rounding explains.

    Logits are rounded in proportion to their size, which in half precision counts for unlikely tokens.
    """
    if math.isnan(a) and math.isnan(b):
        return True
    epsilon = torch.finfo(dtype).eps
    return abs(a - b) <= math.sqrt(epsilon) * scored + 2 * epsilon * abs(b)
