"""Log-likelihoods of choices by packed tries: every distinct token prefix goes through the model once.

The requests are sorted by their tokens. Neighbours are merged into a trie and laid out as one row, whose
attention mask lets each token see its ancestors only. What a row has in common with the next ones stays
behind as a key-value cache, which moves along the sorted requests and so holds few-shot blocks and system
prompts for as long as they are shared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import DynamicCache

from pytest_muscle.models.local.batching import Budget, run_in_batches
from pytest_muscle.models.local.scoring import ScoredBatch, Scores, token_logprobs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedModel

    from pytest_muscle.models.local.encoding import Choices

# A shorter common prefix costs more as a forward pass of its own than it saves.
WORTHWHILE = 32


def score(model: PreTrainedModel, requests: Sequence[Choices], budget: Budget) -> Iterator[ScoredBatch]:
    """Yield ``(index of the request, log-likelihood of each choice in nats)`` in the order of their tokens.

    None stands for a request that does not fit into memory.
    """
    heads = [_head(choices) for choices in requests]
    order = sorted(range(len(requests)), key=heads.__getitem__)
    walk = _Walk(model, [requests[i] for i in order], [heads[i] for i in order])
    for batch in run_in_batches(len(order), budget, walk.take, walk.run):
        yield [(order[item], scores) for item, scores in batch]


@dataclass(slots=True)
class _Walk:
    """One pass over the sorted requests with the cache that moves along."""

    model: PreTrainedModel
    requests: list[Choices]
    heads: list[tuple[int, ...]]
    prefix: tuple[int, ...] = ()
    cache: DynamicCache | None = None
    target: tuple[int, ...] = ()

    def take(self, start: int, tokens: int) -> tuple[int, int]:
        """Where the row that begins at ``start`` ends, and its tokens; settles the prefix it stands on."""
        self.target = self.prefix[: common_length(self.prefix, self.heads[start])]
        end, used = self._fill(start, tokens)
        if end < len(self.heads):
            shared = common_length(self.heads[start], self.heads[end])
            if shared - len(self.target) >= WORTHWHILE:
                self.target = self.heads[start][:shared]
                end, used = self._fill(start, tokens)
        return end, used

    def run(self, start: int, end: int) -> list[Scores]:
        """The log-likelihoods of one row's requests."""
        kept = min(common_length(self.target, self.heads[item]) for item in range(start, end))
        try:
            return self._run(self.target[:kept], self.requests[start:end])
        except BaseException:
            self.prefix, self.cache = (), None
            raise

    def _fill(self, start: int, tokens: int) -> tuple[int, int]:
        used = 0
        for item in range(start, len(self.heads)):
            kept = common_length(self.target, self.heads[item])
            shared = common_length(self.heads[item - 1], self.heads[item]) if item > start else 0
            choices = self.requests[item]
            fresh = sum(len(choice.tokens) for choice in choices) - max(kept, shared)
            fresh -= (len(choices) - 1) * len(self.heads[item])
            leaves = kept <= len(self.target) - WORTHWHILE
            if item > start and (used + fresh > tokens or leaves):
                return item, used
            used += fresh
        return len(self.heads), used

    @torch.inference_mode()
    def _run(self, prefix: tuple[int, ...], batch: Sequence[Choices]) -> list[Scores]:
        self._move_to(prefix)
        row = _Row(len(prefix))
        for choices in batch:
            row.insert(choices)
        device = self.model.device
        logits = self.model(
            input_ids=torch.tensor([row.tokens], device=device),
            position_ids=torch.tensor([row.positions], device=device),
            attention_mask=row.mask(self.model.dtype).to(device),
            past_key_values=self.cache,
            use_cache=self.cache is not None,
            logits_to_keep=torch.tensor(list(row.needed), device=device),
        ).logits[0]
        if self.cache is not None:
            self.cache.crop(-len(row.tokens))
        where = torch.tensor([place for place, _ in row.targets], device=device)
        which = torch.tensor([token for _, token in row.targets], device=device)
        values = iter(token_logprobs(logits, where, which).tolist())
        return [tuple(math.fsum(next(values) for _ in range(c.scored)) for c in choices) for choices in batch]

    def _move_to(self, prefix: tuple[int, ...]) -> None:
        kept = common_length(self.prefix, prefix)
        if not kept:
            self.cache = DynamicCache(config=self.model.config) if prefix else None
        elif self.cache is not None and kept < len(self.prefix):
            self.cache.crop(kept - len(self.prefix))
        if kept < len(prefix):
            fresh = torch.tensor([prefix[kept:]], device=self.model.device)
            self.model(input_ids=fresh, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.prefix = prefix


@dataclass(slots=True)
class _Row:
    """A trie of continuations laid out as one row, standing on ``depth`` tokens that are in the cache."""

    depth: int
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    children: dict[tuple[int, int], int] = field(default_factory=dict)
    needed: dict[int, int] = field(default_factory=dict)
    """Node whose logits are needed -> its place among them."""
    targets: list[tuple[int, int]] = field(default_factory=list)
    """``(place among the needed nodes, token to predict there)`` for every scored token in turn."""

    def insert(self, choices: Choices) -> None:
        """Add the choices' tokens; the last of each is only predicted, never an input."""
        for choice in choices:
            node, path = -1, []
            for position, token in enumerate(choice.tokens[self.depth : -1], self.depth):
                node = self._child(node, token, position)
                path.append(node)
            for parent, token in zip(path[-choice.scored :], choice.tokens[-choice.scored :], strict=True):
                self.targets.append((self.needed.setdefault(parent, len(self.needed)), token))

    def _child(self, parent: int, token: int, position: int) -> int:
        node = self.children.setdefault((parent, token), len(self.tokens))
        if node == len(self.tokens):
            self.tokens.append(token)
            self.positions.append(position)
            self.parents.append(parent)
        return node

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """The additive attention mask [1, 1, row, cache + row]."""
        size = len(self.tokens)
        seen = np.zeros((size, self.depth + size), dtype=bool)
        seen[:, : self.depth] = True
        for node, parent in enumerate(self.parents):
            if parent >= 0:
                seen[node] = seen[parent]
            seen[node, self.depth + node] = True
        hidden = torch.from_numpy(~seen)
        return torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min)[None, None]


def _head(choices: Choices) -> tuple[int, ...]:
    """What all choices begin with, less the token whose logits the first scored token needs."""
    contexts = [choice.tokens[: len(choice.tokens) - choice.scored - 1] for choice in choices]
    first, last = min(contexts), max(contexts)
    return first[: common_length(first, last)]


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """The length of the common prefix."""
    size = min(len(a), len(b))
    if a[:size] == b[:size]:
        return size
    return next(i for i in range(size) if a[i] != b[i])
