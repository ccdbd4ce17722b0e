"""Attention by a plan: the tokens of one packed row see what the plan says, and nothing is padded.

A model's own attention would need a mask of the whole row, nearly all of it hidden. A plan travels to the
layers as a keyword argument of the forward pass, and is asked through transformers' ``AttentionInterface``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from pytest_muscle.models.local.transfers import sent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

States = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Layer -> keys and values [1, key-value heads, tokens, head size]."""

# The tokens of a prefix that are run at once: masks grow with their square.
_PIECE = 1024

# GPU kernels want a mask's rows to begin at multiples of it; other masks they copy in every layer.
_ALIGNED = 16

_NAME = "pytest_muscle_plan"
_FOREIGN = ("softcap", "s_aux", "position_bias", "head_mask")


class Plan(Protocol):
    """Says what each token of a row attends to."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """The attention's output [1, tokens, heads, head size] for states [1, heads, tokens, head size].

        ``key`` and ``value`` may have fewer heads than ``query``, each serving several in turn.
        """


@dataclass(slots=True)
class Prefix:
    """Tokens that went through the model before, with their keys and values."""

    tokens: tuple[int, ...] = ()
    states: States = field(default_factory=dict)

    def cut(self, length: int) -> Prefix:
        """Its first tokens."""
        states = {i: (k[:, :, :length], v[:, :, :length]) for i, (k, v) in self.states.items()}
        return Prefix(self.tokens[:length], states if length else {})

    def extended(self, tokens: Sequence[int], states: States) -> Prefix:
        """With the tokens of a row that stood on it."""
        if self.states:
            states = {i: _joined(self.states[i], states[i]) for i in states}
        return Prefix((*self.tokens, *tokens), states)


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring tokens of a row that are attended to together.

    Of the row they see no others than ``seen`` (indices, or None for themselves), each those that are not
    ``hidden`` [tokens, seen]; beyond that they see the whole prefix.
    """

    start: int
    end: int
    seen: torch.Tensor | None
    hidden: torch.Tensor


@dataclass(slots=True)
class Segments:
    """A plan of segments that stand on a prefix; ``states`` are the row's own, where they are kept."""

    prefix: Prefix
    segments: Sequence[Segment]
    keep: bool = False
    states: States = field(default_factory=dict)
    _masks: dict[int, list[torch.Tensor]] = field(default_factory=dict)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """See ``Plan``; one attention for each segment."""
        if self.keep:
            self.states[layer] = (key, value)
        _, heads, tokens, size = query.shape
        groups = key.shape[1]
        before = self.prefix.states.get(layer)
        output = query.new_empty((1, tokens, heads, size))
        for segment, mask in zip(self.segments, self._tiled(heads // groups, query), strict=True):
            start, end = segment.start, segment.end
            where = slice(start, end) if segment.seen is None else segment.seen
            seen = (key[:, :, where], value[:, :, where])
            keys, values = _joined(before, seen) if before else seen
            # The heads that share keys are stacked, so that the keys need no copy for each.
            asked = query[:, :, start:end].reshape(1, groups, -1, size)
            answer = scaled_dot_product_attention(asked, keys, values, attn_mask=mask, scale=scaling)
            output[:, start:end] = answer.reshape(1, heads, end - start, size).transpose(1, 2)
        return output

    def _tiled(self, times: int, like: torch.Tensor) -> list[torch.Tensor]:
        """The additive mask of each segment, repeated for ``times`` stacked heads."""
        if times not in self._masks:
            depth = len(self.prefix.tokens)
            self._masks[times] = [_additive(each.hidden, depth, times, like) for each in self.segments]
        return self._masks[times]


def run(
    model: PreTrainedModel, tokens: Sequence[int], positions: Sequence[int], plan: Plan, kept: Sequence[int]
) -> torch.Tensor:
    """The logits [kept, vocabulary] after those tokens of a row whose indices are ``kept``."""
    device = model.device
    with planned(model):
        logits: torch.Tensor = model(
            input_ids=sent(torch.tensor([list(tokens)]), device),
            position_ids=sent(torch.tensor([list(positions)]), device),
            use_cache=False,
            logits_to_keep=sent(torch.tensor(list(kept)), device),
            plan=plan,
            span=max(positions) + 1,
        ).logits
    return logits[0]


def extend(model: PreTrainedModel, prefix: Prefix, tokens: Sequence[int]) -> Prefix:
    """Run tokens behind a prefix and make them part of it."""
    for start in range(0, len(tokens), _PIECE):
        prefix = _extended(model, prefix, tokens[start : start + _PIECE])
    return prefix


def _extended(model: PreTrainedModel, prefix: Prefix, tokens: Sequence[int]) -> Prefix:
    size, depth = len(tokens), len(prefix.tokens)
    hidden = torch.ones((size, size), dtype=torch.bool).triu(1)
    plan = Segments(prefix, [Segment(0, size, None, hidden)], keep=True)
    run(model, tokens, range(depth, depth + size), plan, [size - 1])
    return prefix.extended(tokens, plan.states)


@contextmanager
def planned(model: PreTrainedModel) -> Iterator[None]:
    """Within, the model's layers attend by the plan that its forward pass is given."""
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    plan: Plan,
    span: int,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    is_short = sliding_window is not None and sliding_window < span
    if is_short or any(options.get(name) is not None for name in _FOREIGN):
        raise NotImplementedError("a plan knows plain softmax attention only")
    layer: Any = module.layer_idx
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return plan.attend(layer, query, key, value, scaling), None


AttentionInterface.register(_NAME, _attend)


def _joined(
    before: tuple[torch.Tensor, torch.Tensor], after: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat((before[0], after[0]), dim=2), torch.cat((before[1], after[1]), dim=2)


def _additive(hidden: torch.Tensor, depth: int, times: int, like: torch.Tensor) -> torch.Tensor:
    rows, columns = hidden.shape
    width = depth + columns
    room = -(-width // _ALIGNED) * _ALIGNED
    mask = like.new_zeros((times * rows, room))[:, :width]
    mask[:, depth:].masked_fill_(sent(hidden, like.device).repeat(times, 1), torch.finfo(like.dtype).min)
    return mask
