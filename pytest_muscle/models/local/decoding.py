"""Decoding with a loop of its own: a shared prefix run once, rows that have ended dropped.

A batch is laid out as prefix | padding | rest of the prompt | new tokens, so that its rows grow together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel

States = list[tuple[torch.Tensor, torch.Tensor]]

# Dropping rows copies the cache of the others, so it waits until enough have ended.
_DROP_AT = 0.75


@dataclass(frozen=True, slots=True)
class Prefix:
    """Tokens that all prompts of a group begin with, and their keys and values by layer."""

    length: int = 0
    states: States = field(default_factory=list)


def run_prefix(model: PreTrainedModel, tokens: Sequence[int]) -> Prefix:
    """Run the tokens through the model once, for all the prompts that begin with them."""
    if not tokens:
        return Prefix()
    cache = DynamicCache(config=model.config)
    ids = torch.tensor([list(tokens)], device=model.device)
    model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    layers: list[Any] = cache.layers
    return Prefix(len(tokens), [(layer.keys, layer.values) for layer in layers])


def decode(
    model: PreTrainedModel,
    prefix: Prefix,
    prompts: Sequence[Sequence[int]],
    limit: int,
    ended: Callable[[int, Sequence[int]], bool],
    pick: Callable[[Sequence[int], torch.Tensor], torch.Tensor],
) -> list[list[int]]:
    """The new tokens of each prompt, at most ``limit``, until ``ended(row, new tokens)``.

    ``pick(rows, logits)`` gives the next token of each of these rows.
    """
    batch = _Batch(model, prefix, prompts, limit)
    new: list[list[int]] = [[] for _ in prompts]
    rows = list(range(len(prompts)))
    done: set[int] = set()
    while True:
        tokens = pick(rows, batch.step())
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if row not in done:
                new[row].append(token)
                if ended(row, new[row]):
                    done.add(row)
        if len(done) == len(prompts):
            return new
        going = [place for place, row in enumerate(rows) if row not in done]
        if len(going) <= _DROP_AT * len(rows):
            batch.keep(going)
            tokens, rows = tokens[going], [rows[place] for place in going]
        batch.append(tokens)


def agrees(model: PreTrainedModel, prefix: Prefix, prompts: Sequence[Sequence[int]], steps: int = 3) -> bool:
    """Whether the loop gives the logits of a plain forward pass over each prompt and its first new tokens.

    A model with attention windows, recurrent layers or code of its own may not, or may fail in any way.
    """
    batch = _Batch(model, prefix, prompts, steps)
    found = [batch.step()]
    while len(found) < steps:
        batch.append(found[-1].argmax(-1))
        found.append(batch.step())
    for row, prompt in enumerate(prompts):
        mine = torch.stack([logits[row] for logits in found])
        ids = torch.tensor([[*prompt, *mine[:-1].argmax(-1).tolist()]], device=model.device)
        plain = model(input_ids=ids, use_cache=False, logits_to_keep=steps).logits[0]
        noise = torch.finfo(model.dtype).eps ** 0.5 * plain.abs().max()
        if not bool((mine - plain).abs().max() <= noise):
            return False
    return True


class _Batch:
    """Rows that are decoded together."""

    def __init__(
        self, model: PreTrainedModel, prefix: Prefix, prompts: Sequence[Sequence[int]], limit: int
    ) -> None:
        rests = [list(prompt[prefix.length :]) for prompt in prompts]
        width = max(map(len, rests))
        self._model = model
        self._ids = torch.tensor([[0] * (width - len(rest)) + rest for rest in rests], device=model.device)
        seen = [[1] * prefix.length + [0] * (width - len(rest)) + [1] * len(rest) for rest in rests]
        self._mask = torch.tensor(seen, device=model.device)
        self._positions = (self._mask.cumsum(-1) - 1).clamp_min(0)[:, prefix.length :]
        self._cache = _roomy_cache(model, prefix, len(prompts), prefix.length + width + limit)

    def step(self) -> torch.Tensor:
        """The logits [rows, vocabulary] of the next tokens."""
        logits: torch.Tensor = self._model(
            input_ids=self._ids,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1]

    def append(self, tokens: torch.Tensor) -> None:
        """Let the next step run the tokens [rows] chosen in this one."""
        self._ids = tokens[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(self._ids)], dim=1)
        self._positions = self._positions[:, -1:] + 1

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these."""
        self._mask, self._positions = self._mask[rows], self._positions[rows]
        layers: list[Any] = self._cache.layers
        for layer in layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]


class _RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A cache layer allocated once, where the stock one copies all of itself for every token."""

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._capacity = capacity
        self._filled = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the new states and return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = self._room(key_states), self._room(value_states)
        start, self._filled = self._filled, self._filled + key_states.shape[-2]
        self.keys[:, :, start : self._filled] = key_states
        self.values[:, :, start : self._filled] = value_states
        return self.keys[:, :, : self._filled], self.values[:, :, : self._filled]

    def get_seq_length(self) -> int:
        """The number of tokens held."""
        return self._filled

    def _room(self, states: torch.Tensor) -> torch.Tensor:
        rows, heads, _, size = states.shape
        return states.new_empty((rows, heads, self._capacity, size))


def _roomy_cache(model: PreTrainedModel, prefix: Prefix, rows: int, capacity: int) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    if any(type(layer) is not DynamicLayer for layer in cache.layers):
        raise NotImplementedError("only layers that attend to everything can be laid out with padding inside")
    layers = [_RoomyLayer(capacity) for _ in cache.layers]
    for layer, (keys, values) in zip(layers, prefix.states, strict=False):
        layer.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1))
    cache.layers = [*layers]
    return cache
