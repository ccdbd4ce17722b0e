"""Log-likelihoods of choices by packed tries: every distinct token prefix goes through the model once.

The requests are sorted by their tokens. Neighbours are merged into a trie and laid out as one row, each token
of which attends to its ancestors. On a CPU a batch is as many rows as there are threads, side by side. What a
batch has in common with the next ones stays behind as a prefix of keys and values, which moves along the
sorted requests and so holds few-shot blocks and system prompts for as long as they are shared.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from pytest_muscle.models.local.attention import Prefix, Segments, extend, planned, run
from pytest_muscle.models.local.batching import Budget, run_in_batches
from pytest_muscle.models.local.cores import Threads, threads_for
from pytest_muscle.models.local.linear import PackedLinear
from pytest_muscle.models.local.scoring import ScoredBatch, Scores, output_logprobs, token_logprobs
from pytest_muscle.models.local.transfers import sent
from pytest_muscle.models.local.trie import Row, common_length

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedModel

    from pytest_muscle.models.local.encoding import Choices
    from pytest_muscle.models.local.output import OutputLayer

# A shorter common prefix costs more as a forward pass of its own than it saves.
_WORTHWHILE = 32

# The matrix products of a shorter row are slow.
_SHORTEST = 128


def score(
    model: PreTrainedModel, requests: Sequence[Choices], budget: Budget, output: OutputLayer | None = None
) -> Iterator[ScoredBatch]:
    """Yield ``(index of the request, log-likelihood of each choice in nats)``, from the longest request on.

    The order is that of their tokens, taken as a circle. None stands for a request that does not fit into
    memory. With the model's ``output`` layer the logits are made of it block by block.
    """
    heads = [_head(choices) for choices in requests]
    order = sorted(range(len(requests)), key=heads.__getitem__)
    first = max(range(len(order)), key=lambda place: length(requests[order[place]]), default=0)
    order = order[first:] + order[:first]
    with Threads(threads_for(model)) as threads:
        walk = _Walk(model, [requests[i] for i in order], [heads[i] for i in order], output, threads)
        for batch in run_in_batches(len(order), budget, walk.take, walk.run):
            yield [(order[item], scores) for item, scores in batch]


@dataclass(slots=True)
class _Walk:
    """One pass over the sorted requests with the prefix that moves along."""

    model: PreTrainedModel
    requests: list[Choices]
    heads: list[tuple[int, ...]]
    output: OutputLayer | None
    threads: Threads
    prefix: Prefix = field(default_factory=Prefix)
    target: tuple[int, ...] = ()

    def take(self, start: int, tokens: int) -> tuple[int, int]:
        """Where the batch that begins at ``start`` ends, and its tokens; settles the prefix it stands on."""
        self.target = self.prefix.tokens[: common_length(self.prefix.tokens, self.heads[start])]
        end, used = self._fill(start, tokens)
        # What rows side by side share pays at once, what one row shares with the next batch later.
        sharer = end - 1 if self.threads.count > 1 and end - start > 1 else end
        if sharer < len(self.heads):
            shared = common_length(self.heads[start], self.heads[sharer])
            if shared - len(self.target) >= _WORTHWHILE:
                self.target = self.heads[start][:shared]
                end, used = self._fill(start, tokens)
        return end, used

    @torch.inference_mode()
    def run(self, start: int, end: int) -> list[Scores]:
        """The log-likelihoods of one batch's requests."""
        shared = min(common_length(self.target, self.heads[item]) for item in range(start, end))
        kept = common_length(self.prefix.tokens, self.target[:shared])
        try:
            self.prefix = extend(self.model, self.prefix.cut(kept), self.target[kept:shared])
            with planned(self.model), self.output.removed() if self.output else nullcontext():
                rows = [
                    partial(self._row, self.requests[first:last]) for first, last in self._rows(start, end)
                ]
                return [scores for row in self.threads.run(rows) for scores in row]
        except BaseException:
            self.prefix = Prefix()
            raise

    def _fill(self, start: int, tokens: int) -> tuple[int, int]:
        used = 0
        for item in range(start, len(self.heads)):
            fresh = self._fresh(item, len(self.target), alone=item == start)
            leaves = common_length(self.target, self.heads[item]) <= len(self.target) - _WORTHWHILE
            if item > start and (used + fresh > tokens or leaves):
                return item, used
            used += fresh
        return len(self.heads), used

    def _fresh(self, item: int, depth: int, *, alone: bool) -> int:
        """The tokens that a request adds to a row on ``depth`` tokens, ``alone`` or behind the one before."""
        head, choices = self.heads[item], self.requests[item]
        kept = common_length(self.target[:depth], head)
        shared = 0 if alone else common_length(self.heads[item - 1], head)
        new = sum(len(choice.tokens) for choice in choices) - max(kept, shared)
        return new - (len(choices) - 1) * len(head)

    def _rows(self, start: int, end: int) -> list[tuple[int, int]]:
        """A batch divided into rows of about as many new tokens, at most one for each thread."""
        depth = len(self.prefix.tokens)
        fresh = [self._fresh(item, depth, alone=item == start) for item in range(start, end)]
        total = sum(fresh)
        count = max(1, min(self.threads.count, total // _SHORTEST))
        ends, done = [start], 0
        for item, new in enumerate(fresh, start):
            if item > ends[-1] and (done + new / 2) * count > len(ends) * total:
                ends.append(item)
            done += new
        return list(pairwise([*ends, end]))

    # Again, because it holds for one thread.
    @torch.inference_mode()
    def _row(self, batch: Sequence[Choices]) -> list[Scores]:
        row, needed = Row.behind(self.prefix, self.model.device), dict[int, int]()
        targets = list[tuple[int, int]]()
        for choices in batch:
            row.begin()
            for choice in choices:
                # The last token is only predicted, never an input.
                path = row.insert(choice.tokens[:-1])
                for node, token in zip(path[-choice.scored :], choice.tokens[-choice.scored :], strict=True):
                    targets.append((needed.setdefault(node, len(needed)), token))
        plan = Segments(self.prefix, row.segments())
        where, which = sent(torch.tensor(targets), self.model.device).unbind(1)
        made = run(self.model, row.tokens, row.positions, plan, list(needed))
        if self.output and isinstance(self.output.layer, PackedLinear):
            found = output_logprobs(self.output.layer, made, where, which)
        else:
            found = token_logprobs(made, where, which)
        values = iter(found.tolist())
        return [tuple(math.fsum(next(values) for _ in range(c.scored)) for c in choices) for choices in batch]


def length(choices: Choices) -> int:
    """The tokens of the longest choice and what it stands on."""
    return max(len(choice.tokens) for choice in choices)


def _head(choices: Choices) -> tuple[int, ...]:
    """What all choices begin with, less the token whose logits the first scored token needs."""
    contexts = [choice.tokens[: len(choice.tokens) - choice.scored - 1] for choice in choices]
    first, last = min(contexts), max(contexts)
    return first[: common_length(first, last)]
