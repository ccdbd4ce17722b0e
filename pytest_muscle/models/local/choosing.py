"""Log-likelihoods of choices by the faster of two paths, where it gives the plain path's numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from pytest_muscle.models.local import packing, scoring
from pytest_muscle.models.local.batching import Budget
from pytest_muscle.models.local.trie import common_length

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedModel

    from pytest_muscle.models.local.encoding import Choices
    from pytest_muscle.models.local.scoring import ScoredBatch, Scores


def score(model: PreTrainedModel, requests: Sequence[Choices], budget: Budget) -> Iterator[ScoredBatch]:
    """Yield ``(index of the request, log-likelihood of each choice in nats)`` batch by batch.

    Whether the model can be run on packed tries (attention windows, recurrent layers and code of its own
    may prevent it) is found out by comparing both paths on the longest request.
    """
    probe = _probe(requests)
    answers = _packed(model, [requests[i] for i in probe])
    if answers is None or not _agrees(model, requests[probe[0]], answers[0]):
        yield from scoring.score(model, requests, budget)
        return
    yield list(zip(probe, answers, strict=True))
    rest = [i for i in range(len(requests)) if i not in probe]
    for batch in packing.score(model, [requests[i] for i in rest], budget):
        yield [(rest[item], scores) for item, scores in batch]


def _probe(requests: Sequence[Choices]) -> list[int]:
    """The longest request, and the nearest to it if the two would be run on a common prefix."""
    longest = max(range(len(requests)), key=lambda i: _length(requests[i]))
    shared = {
        i: common_length(requests[longest][0].tokens, other[0].tokens)
        for i, other in enumerate(requests)
        if i != longest
    }
    nearest = max(shared, key=shared.__getitem__, default=longest)
    return [longest, nearest] if shared.get(nearest, 0) > packing.WORTHWHILE else [longest]


def _length(choices: Choices) -> int:
    return max(len(choice.tokens) for choice in choices)


def _packed(model: PreTrainedModel, probe: Sequence[Choices]) -> list[Scores | None] | None:
    # One request a row, so that what they share goes through the cache.
    one_by_one = Budget(1)
    try:
        found = dict(pair for batch in packing.score(model, probe, one_by_one) for pair in batch)
        return [found[item] for item in range(len(probe))]
    except Exception:  # A model without such masks or caches may fail in any way.
        return None


def _agrees(model: PreTrainedModel, choices: Choices, found: Scores | None) -> bool:
    # The last choice comes after all others in the row and would show if it saw them.
    ((_, plain),) = next(scoring.score(model, [choices[-1:]], Budget(1)))
    noise = torch.finfo(model.dtype).eps ** 0.5
    return found is None or plain is None or _close(found[-1], plain[0], noise * choices[-1].scored)


def _close(a: float, b: float, tolerance: float) -> bool:
    return abs(a - b) <= tolerance or (math.isnan(a) and math.isnan(b))
