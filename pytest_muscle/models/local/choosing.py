"""Log-likelihoods of choices by the faster of two paths, where it gives the plain path's numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from pytest_muscle.models.local import packing, scoring
from pytest_muscle.models.local.batching import Budget

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedModel

    from pytest_muscle.models.local.encoding import Choices
    from pytest_muscle.models.local.scoring import ScoredBatch


def score(model: PreTrainedModel, requests: Sequence[Choices], budget: Budget) -> Iterator[ScoredBatch]:
    """Yield ``(index of the request, log-likelihood of each choice in nats)`` batch by batch.

    Whether the model can be run on packed tries (attention windows, recurrent layers and code of its own
    may prevent it) is found out by comparing both paths on the longest request, which is in the first batch.
    """
    if not requests:
        return
    try:
        batches = packing.score(model, requests, budget)
        first = next(batches)
        suits = _agrees(model, requests, first)
    except Exception:  # A model without such attention may fail in any way.
        suits = False
    if not suits:
        yield from scoring.score(model, requests, budget)
        return
    yield first
    yield from batches


def _agrees(model: PreTrainedModel, requests: Sequence[Choices], batch: ScoredBatch) -> bool:
    item, found = max(batch, key=lambda pair: packing.length(requests[pair[0]]))
    # The last choice comes after all others in the row and would show if it saw them.
    last = requests[item][-1:]
    ((_, plain),) = next(scoring.score(model, [last], Budget(1)))
    noise = torch.finfo(model.dtype).eps ** 0.5 * last[0].scored
    return found is None or plain is None or _close(found[-1], plain[0], noise)


def _close(a: float, b: float, tolerance: float) -> bool:
    return abs(a - b) <= tolerance or (math.isnan(a) and math.isnan(b))
