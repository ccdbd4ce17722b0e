"""Log-likelihoods of choices by the faster of two paths, where it gives the plain path's numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pytest_muscle.models.local import packing, scoring
from pytest_muscle.models.local.batching import Budget

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedModel

    from pytest_muscle.models.local.encoding import Choices
    from pytest_muscle.models.local.scoring import ScoredBatch, Scores


def score(model: PreTrainedModel, requests: Sequence[Choices], budget: Budget) -> Iterator[ScoredBatch]:
    """Yield ``(index of the request, log-likelihood of each choice in nats)`` batch by batch.

    Whether the model can be run on packed tries (attention windows, recurrent layers and code of its own
    may prevent it) is found out by scoring the longest requests on both paths.
    """
    probe = _probe(requests)
    plain: list[Scores | None] = [None] * len(probe)
    for batch in scoring.score(model, [requests[i] for i in probe], budget):
        for item, scores in batch:
            plain[item] = scores
    yield list(zip(probe, plain, strict=True))
    rest = [i for i in range(len(requests)) if i not in probe]
    if not rest:
        return
    path = packing if _packed_agrees(model, [requests[i] for i in probe], plain) else scoring
    for batch in path.score(model, [requests[i] for i in rest], budget):
        yield [(rest[item], scores) for item, scores in batch]


def _probe(requests: Sequence[Choices]) -> list[int]:
    """The longest request, and the one that shares enough with it to use the cache, else the shortest."""
    longest = max(range(len(requests)), key=lambda i: _length(requests[i]))
    others = [i for i in range(len(requests)) if i != longest]
    if not others:
        return [longest]
    shared = {i: packing.common_length(requests[longest][0].tokens, requests[i][0].tokens) for i in others}
    nearest = max(others, key=shared.__getitem__)
    shortest = min(others, key=lambda i: _length(requests[i]))
    return [longest, nearest if shared[nearest] > packing.WORTHWHILE else shortest]


def _length(choices: Choices) -> int:
    return max(len(choice.tokens) for choice in choices)


def _packed_agrees(
    model: PreTrainedModel, probe: Sequence[Choices], expected: Sequence[Scores | None]
) -> bool:
    # One request a row, so that what they share goes through the cache.
    one_by_one = Budget(1)
    try:
        packed = {item: scores for batch in packing.score(model, probe, one_by_one) for item, scores in batch}
    except Exception:  # A model without such masks or caches may fail in any way.
        return False
    noise = torch.finfo(model.dtype).eps ** 0.5
    return all(
        abs(mine - plain) <= noise * choice.scored or (mine != mine and plain != plain)
        for item, choices in enumerate(probe)
        for choice, mine, plain in zip(choices, packed[item] or (), expected[item] or (), strict=False)
    )
