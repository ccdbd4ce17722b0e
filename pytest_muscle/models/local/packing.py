"""Log-likelihoods of choices by packed tries: every distinct token prefix goes through the model once.

The requests are sorted by their tokens. Neighbours are merged into a trie and laid out as one row, each token
of which attends to its ancestors. What a row has in common with the next ones stays behind as a prefix of
keys and values, which moves along the sorted requests and so holds few-shot blocks and system prompts for as
long as they are shared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from pytest_muscle.models.local.attention import Prefix, Segments, extend, run
from pytest_muscle.models.local.batching import Budget, run_in_batches
from pytest_muscle.models.local.linear import PackedLinear
from pytest_muscle.models.local.output import OutputLayer, find_output_layer
from pytest_muscle.models.local.scoring import ScoredBatch, Scores, output_logprobs, token_logprobs
from pytest_muscle.models.local.trie import Row, common_length

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedModel

    from pytest_muscle.models.local.encoding import Choices

# A shorter common prefix costs more as a forward pass of its own than it saves.
_WORTHWHILE = 32


def score(model: PreTrainedModel, requests: Sequence[Choices], budget: Budget) -> Iterator[ScoredBatch]:
    """Yield ``(index of the request, log-likelihood of each choice in nats)``, from the longest request on.

    The order is that of their tokens, taken as a circle. None stands for a request that does not fit into
    memory.
    """
    heads = [_head(choices) for choices in requests]
    order = sorted(range(len(requests)), key=heads.__getitem__)
    first = max(range(len(order)), key=lambda place: length(requests[order[place]]), default=0)
    order = order[first:] + order[:first]
    output = find_output_layer(model)
    # Elsewhere than on a CPU one large product is better than several small ones.
    blockwise = output if output is not None and isinstance(output.layer, PackedLinear) else None
    walk = _Walk(model, [requests[i] for i in order], [heads[i] for i in order], blockwise)
    for batch in run_in_batches(len(order), budget, walk.take, walk.run):
        yield [(order[item], scores) for item, scores in batch]


@dataclass(slots=True)
class _Walk:
    """One pass over the sorted requests with the prefix that moves along."""

    model: PreTrainedModel
    requests: list[Choices]
    heads: list[tuple[int, ...]]
    output: OutputLayer | None
    prefix: Prefix = field(default_factory=Prefix)
    target: tuple[int, ...] = ()

    def take(self, start: int, tokens: int) -> tuple[int, int]:
        """Where the row that begins at ``start`` ends, and its tokens; settles the prefix it stands on."""
        self.target = self.prefix.tokens[: common_length(self.prefix.tokens, self.heads[start])]
        end, used = self._fill(start, tokens)
        if end < len(self.heads):
            shared = common_length(self.heads[start], self.heads[end])
            if shared - len(self.target) >= _WORTHWHILE:
                self.target = self.heads[start][:shared]
                end, used = self._fill(start, tokens)
        return end, used

    def run(self, start: int, end: int) -> list[Scores]:
        """The log-likelihoods of one row's requests."""
        kept = min(common_length(self.target, self.heads[item]) for item in range(start, end))
        try:
            return self._run(self.target[:kept], self.requests[start:end])
        except BaseException:
            self.prefix = Prefix()
            raise

    def _fill(self, start: int, tokens: int) -> tuple[int, int]:
        used = 0
        for item in range(start, len(self.heads)):
            kept = common_length(self.target, self.heads[item])
            shared = common_length(self.heads[item - 1], self.heads[item]) if item > start else 0
            choices = self.requests[item]
            fresh = sum(len(choice.tokens) for choice in choices) - max(kept, shared)
            fresh -= (len(choices) - 1) * len(self.heads[item])
            leaves = kept <= len(self.target) - _WORTHWHILE
            if item > start and (used + fresh > tokens or leaves):
                return item, used
            used += fresh
        return len(self.heads), used

    @torch.inference_mode()
    def _run(self, prefix: tuple[int, ...], batch: Sequence[Choices]) -> list[Scores]:
        kept = common_length(self.prefix.tokens, prefix)
        self.prefix = extend(self.model, self.prefix.cut(kept), prefix[kept:])
        row, needed, targets = Row(len(prefix)), dict[int, int](), list[tuple[int, int]]()
        for choices in batch:
            row.begin()
            for choice in choices:
                # The last token is only predicted, never an input.
                path = row.insert(choice.tokens[:-1])
                for node, token in zip(path[-choice.scored :], choice.tokens[-choice.scored :], strict=True):
                    targets.append((needed.setdefault(node, len(needed)), token))
        plan = Segments(self.prefix, row.segments())
        where, which = torch.tensor(targets, device=self.model.device).unbind(1)
        asked = self.model, row.tokens, row.positions, plan, list(needed)
        if self.output is None:
            found = token_logprobs(run(*asked), where, which)
        else:
            with self.output.removed():
                states = run(*asked)
            found = output_logprobs(self.output.layer, states, where, which)
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
