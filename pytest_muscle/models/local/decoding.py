"""Decoding with a loop of its own: a shared prefix run once, prompts packed without padding, slots refilled.

Prompts go through the model as segments of one row; their keys and values are then kept in slots, one for
each text in progress. A step runs the last token of every slot as one row. As texts end, others move in.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from pytest_muscle.models.local.attention import Prefix, Segments, States, extend, run
from pytest_muscle.models.local.transfers import sent
from pytest_muscle.models.local.trie import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel

    from pytest_muscle.models.local.encoding import Prompt

    Pick = Callable[[Sequence[int], torch.Tensor], torch.Tensor]

# Moving in and out copies the states of all slots, so it waits until it is worth it.
_DROP_AT = 0.75
_CHECKED_STEPS = 3


@dataclass(slots=True)
class Decoder:
    """Continues those of the prompts, named by their index, that are ``asked``; all begin with the prefix.

    ``ended(prompt, new tokens)`` says when a text is complete, ``pick(prompts, logits)`` gives the next token
    of each of these prompts. At most ``room`` tokens have a slot at a time, or one prompt, and about ``row``
    tokens of prompts go through the model at once.
    """

    model: PreTrainedModel
    prefix: Prefix
    prompts: Sequence[Prompt]
    asked: Sequence[int]
    ended: Callable[[int, Sequence[int]], bool]
    pick: Pick
    room: int
    row: int
    rows: list[int] = field(default_factory=list)
    """The prompt in each slot, including those whose texts have ended."""
    _waiting: deque[int] = field(init=False)
    _new: dict[int, list[int]] = field(default_factory=dict)
    _slots: _Slots = field(init=False)

    def __post_init__(self) -> None:
        longest_first = sorted(self.asked, key=self._size, reverse=True)
        self._waiting = deque(longest_first)
        self._slots = _Slots(self.prefix)

    @property
    def working(self) -> bool:
        """Whether texts are in progress or wait."""
        return bool(self._waiting or self._new)

    @property
    def used(self) -> int:
        """The tokens that there is room for now."""
        return len(self.rows) * max(map(self._size, self.rows), default=0)

    def stop(self) -> None:
        """Drop everything."""
        self._waiting.clear()
        self._new.clear()
        self._slots = _Slots(self.prefix)

    @torch.inference_mode()
    def advance(self) -> list[tuple[int, list[int]]]:
        """Let prompts move in, or add a token to each text; return the texts that are complete with that."""
        going = [place for place, row in enumerate(self.rows) if row in self._new]
        coming = self._coming([self.rows[place] for place in going])
        if len(coming) * 4 <= len(going):
            coming = []
        if coming or len(going) <= _DROP_AT * len(self.rows):
            self.rows = [*(self.rows[place] for place in going), *coming]
            self._slots.rearrange(going, len(coming), max(map(self._size, self.rows)))
        return self._move_in(coming) if coming else self._step()

    def _size(self, prompt: int) -> int:
        asked = self.prompts[prompt]
        return len(asked.tokens) - len(self.prefix.tokens) + asked.limit

    def _coming(self, going: Sequence[int]) -> list[int]:
        coming: list[int] = []
        longest = max(map(self._size, going), default=0)
        for prompt in self._waiting:
            longest = max(longest, self._size(prompt))
            count = len(going) + len(coming)
            if count and (count + 1) * longest > self.room:
                break
            coming.append(prompt)
        return coming

    def _move_in(self, coming: Sequence[int]) -> list[tuple[int, list[int]]]:
        complete = []
        slot = len(self.rows) - len(coming)
        start = 0
        while start < len(coming):
            row, paths = Row.behind(self.prefix, self.model.device), list[list[int]]()
            while start + len(paths) < len(coming) and len(row.tokens) < self.row:
                row.begin()
                paths.append(row.insert(self.prompts[coming[start + len(paths)]].tokens))
            plan = Segments(self.prefix, row.segments(), keep=True)
            logits = run(self.model, row.tokens, row.positions, plan, [path[-1] for path in paths])
            self._slots.fill(slot + start, paths, plan.states)
            arrived = coming[start : start + len(paths)]
            self._new.update({prompt: [] for prompt in arrived})
            for _ in arrived:
                self._waiting.popleft()
            complete += self._append(arrived, logits)
            start += len(paths)
        return complete

    def _step(self) -> list[tuple[int, list[int]]]:
        tokens = [self._new[row][-1] if row in self._new else 0 for row in self.rows]
        self._slots.open()
        depth = len(self.prefix.tokens)
        positions = [depth + length for length in self._slots.lengths]
        logits = run(self.model, tokens, positions, self._slots, range(len(tokens)))
        self._slots.close()
        return self._append(self.rows, logits)

    def _append(self, rows: Sequence[int], logits: torch.Tensor) -> list[tuple[int, list[int]]]:
        complete = []
        for row, token in zip(rows, self.pick(rows, logits).tolist(), strict=True):
            if row in self._new:
                self._new[row].append(token)
                if self.ended(row, self._new[row]):
                    complete.append((row, self._new.pop(row)))
        return complete


@dataclass(slots=True)
class _Slots:
    """A plan of single tokens: each sees the prefix and what is in its own slot, itself included."""

    prefix: Prefix
    lengths: list[int] = field(default_factory=list)
    states: States = field(default_factory=dict)
    """Layer -> keys and values [slots, key-value heads, capacity, head size]."""
    capacity: int = 0
    _places: tuple[torch.Tensor, torch.Tensor] | None = None
    _mask: torch.Tensor | None = None

    def rearrange(self, going: list[int], more: int, capacity: int) -> None:
        """Keep these slots, add some, and let each hold ``capacity`` tokens."""
        self.lengths = [*(self.lengths[slot] for slot in going), *([0] * more)]
        self.capacity = max(capacity, *self.lengths)
        for layer, pair in self.states.items():
            keys, values = (self._moved(each, going) for each in pair)
            self.states[layer] = keys, values

    def _moved(self, states: torch.Tensor, going: list[int]) -> torch.Tensor:
        _, heads, _, size = states.shape
        # Zeros, because what lies behind a slot's end is weighted by nought and must be finite.
        moved = states.new_zeros((len(self.lengths), heads, self.capacity, size))
        width = min(self.capacity, states.shape[2])
        if going:
            moved[: len(going), :, :width] = states[going, :, :width]
        return moved

    def fill(self, first: int, paths: Sequence[Sequence[int]], states: States) -> None:
        """Put the states of a row's paths into the slots from ``first`` on."""
        device = next(iter(states.values()))[0].device
        indices = [sent(torch.tensor(path), device) for path in paths]
        for layer, pair in states.items():
            if layer not in self.states:
                _, heads, _, size = pair[0].shape
                shape = (len(self.lengths), heads, self.capacity, size)
                self.states[layer] = pair[0].new_zeros(shape), pair[1].new_zeros(shape)
            for own, row in zip(self.states[layer], pair, strict=True):
                for slot, index in enumerate(indices, first):
                    own[slot, :, : len(index)] = row[0][:, index]
        for slot, path in enumerate(paths, first):
            self.lengths[slot] = len(path)

    def open(self) -> None:
        """Prepare to take a token into each slot."""
        device = next(iter(self.states.values()))[0].device
        lengths = sent(torch.tensor(self.lengths), device)
        width = max(self.lengths) + 1
        self._places = torch.arange(len(lengths), device=device), lengths
        self._mask = (torch.arange(width, device=device) <= lengths[:, None])[:, None, None]

    def close(self) -> None:
        """Count the tokens taken; slots whose texts have ended may be full."""
        self.lengths = [min(length + 1, self.capacity - 1) for length in self.lengths]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """See ``Plan``."""
        assert self._places is not None
        assert self._mask is not None
        slots, ends = self._places
        width = self._mask.shape[-1]
        for held, new in zip(self.states[layer], (key, value), strict=True):
            held[slots, :, ends] = new[0].transpose(0, 1)
        keys, values = (held[:, :, :width] for held in self.states[layer])
        _, heads, count, size = query.shape
        grouped = query[0].transpose(0, 1).reshape(count, keys.shape[1], -1, size)
        before = self.prefix.states.get(layer)
        if before is None:
            answer = scaled_dot_product_attention(grouped, keys, values, attn_mask=self._mask, scale=scaling)
        else:
            answer = _with_prefix(grouped, before, (keys, values), self._mask, scaling)
        return answer.reshape(1, count, heads, size)


def _with_prefix(
    query: torch.Tensor,
    before: tuple[torch.Tensor, torch.Tensor],
    own: tuple[torch.Tensor, torch.Tensor],
    mask: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Attention to states that all slots share, read once for all of them, and to each slot's own.

    ``query`` is [slots, key-value heads, heads that share them, head size]; in float32, as the scores of both
    parts meet outside a kernel that would keep their precision.
    """
    count, groups, times, size = query.shape
    query = query.float() * scaling
    asked = query.transpose(0, 1).reshape(groups, count * times, size)
    depth = before[0].shape[2]
    far = torch.bmm(asked, before[0][0].float().transpose(1, 2)).view(groups, count, times, depth)
    near = torch.matmul(query, own[0].float().transpose(-1, -2)).masked_fill_(~mask, -torch.inf)
    weights = torch.cat((far.transpose(0, 1), near), dim=-1).softmax(-1)
    shared = weights[..., :depth].transpose(0, 1).reshape(groups, count * times, depth)
    answer = torch.matmul(weights[..., depth:], own[1].float())
    answer += torch.bmm(shared, before[1][0].float()).view(groups, count, times, size).transpose(0, 1)
    return answer.to(own[0].dtype)


class Watch:
    """Keeps the first logits of one prompt, to compare them with those of a plain pass."""

    def __init__(self, prompt: int, limit: int) -> None:
        self._prompt = prompt
        self._limit = min(limit, _CHECKED_STEPS)
        self._logits: list[torch.Tensor] = []
        self._tokens: list[int] = []
        self.complete = False

    def over(self, pick: Pick) -> Pick:
        """The same picking, watched from its first token on."""
        self._logits.clear()
        self._tokens.clear()

        def watched(rows: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
            tokens = pick(rows, logits)
            if not self.complete and self._prompt in rows:
                place = list(rows).index(self._prompt)
                self._logits.append(logits[place].clone())
                self._tokens.append(int(tokens[place]))
                self.complete = len(self._logits) == self._limit
            return tokens

        return watched

    @torch.inference_mode()
    def agrees(self, model: PreTrainedModel, prompt: Sequence[int]) -> bool:
        """Whether the logits are those of a plain forward pass over the prompt and its first new tokens."""
        ids = torch.tensor([[*prompt, *self._tokens[:-1]]], device=model.device)
        plain = model(input_ids=ids, use_cache=False, logits_to_keep=len(self._logits)).logits[0]
        noise = torch.finfo(model.dtype).eps ** 0.5 * plain.abs().max()
        return bool((torch.stack(self._logits) - plain).abs().max() <= noise)


@torch.inference_mode()
def shared_prefix(model: PreTrainedModel, tokens: Sequence[int]) -> Prefix:
    """Run what all the prompts begin with."""
    return extend(model, Prefix(), tokens)


def suits(model: PreTrainedModel, tokens: int) -> bool:
    """Whether the library knows of no layer that attends to less than all of a text of so many tokens."""
    return all(_sees(layer, tokens) for layer in DynamicCache(config=model.config).layers)


def _sees(layer: object, tokens: int) -> bool:
    if isinstance(layer, DynamicSlidingWindowLayer):
        return int(layer.sliding_window) >= tokens
    return type(layer) is DynamicLayer
