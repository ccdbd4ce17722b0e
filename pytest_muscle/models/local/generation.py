"""Generation in length-sorted, left-padded batches."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from pytest_muscle.models.local import decoding
from pytest_muscle.models.local.batching import Budget, run_in_batches
from pytest_muscle.models.local.packing import common_length
from pytest_muscle.models.local.sampling import Picker
from pytest_muscle.models.local.stopping import Endings, end_tokens
from pytest_muscle.models.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pytest_muscle.models.local.encoding import Prompt

# A shorter prefix, or one shared by fewer prompts, costs more as a pass and batches of its own than it saves.
_WORTHWHILE = 32
_CROWD = 16


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    budget: Budget,
) -> Iterator[list[tuple[int, str | None]]]:
    """Yield ``(index of the prompt, text)``; the text is without the prompt and the stop string.

    None stands for a prompt that does not fit into memory. Greedy texts are those of plain ``generate``,
    which also does the work for models that the faster loop does not suit.
    """
    for group in _groups(prompts):
        members = [prompts[i] for i in group]
        for batch in _generate_group(model, tokenizer, members, budget):
            yield [(group[item], text) for item, text in batch]


def _groups(prompts: Sequence[Prompt]) -> list[list[int]]:
    """The prompts by what they begin with; those that share too little make up one group."""
    order = sorted(range(len(prompts)), key=lambda i: prompts[i].tokens)
    groups: list[list[int]] = [order[:1]]
    for before, item in pairwise(order):
        if common_length(prompts[before].tokens, prompts[item].tokens) < _WORTHWHILE:
            groups.append([])
        groups[-1].append(item)
    crowds = [group for group in groups if len(group) >= _CROWD]
    rest = [item for group in groups if len(group) < _CROWD for item in group]
    return [group for group in (*crowds, rest) if group]


def _generate_group(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], budget: Budget
) -> Iterator[list[tuple[int, str | None]]]:
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].tokens), prompts[i].tokens))
    ends = end_tokens(model, tokenizer)
    go_on = _continuation(model, tokenizer, [prompts[i] for i in order], ends)

    def take(start: int, tokens: int) -> tuple[int, int]:
        longest, limit, used, end = len(prompts[order[start]].tokens), 0, 0, start
        while end < len(order):
            limit = max(limit, prompts[order[end]].limit)
            more = (end - start + 1) * (longest + limit)
            if end > start and more > tokens:
                break
            used, end = more, end + 1
        return end, used

    def run(start: int, end: int) -> list[str]:
        batch = [prompts[i] for i in order[start:end]]
        endings = Endings(tokenizer, batch, ends)
        return [endings.text(row, tokens) for row, tokens in enumerate(go_on(batch, endings, Picker(batch)))]

    for batch in run_in_batches(len(order), budget, take, run):
        yield [(order[item], text) for item, text in batch]


@torch.inference_mode()
def _continuation(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], ends: list[int]
) -> Callable[[Sequence[Prompt], Endings, Picker], list[list[int]]]:
    """The way to continue a batch: the faster loop where its logits are those of plain forward passes."""
    shared = _shared(prompts)
    longest_and_shortest = [prompts[0].tokens, prompts[-1].tokens]
    try:
        with quiet():
            prefix = decoding.run_prefix(model, prompts[0].tokens[:shared])
            suits = len(prompts) > 2 and decoding.agrees(model, prefix, longest_and_shortest)
    except Exception:  # A model whose caches or arguments are its own may fail in any way.
        suits = False

    @torch.inference_mode()
    def fast(batch: Sequence[Prompt], endings: Endings, pick: Picker) -> list[list[int]]:
        limit = max(prompt.limit for prompt in batch)
        tokens = [prompt.tokens for prompt in batch]
        return decoding.decode(model, prefix, tokens, limit, endings.ended, pick)

    def plain(batch: Sequence[Prompt], endings: Endings, pick: Picker) -> list[list[int]]:
        return _plain(model, tokenizer, batch, endings, ends, pick)

    return fast if suits else plain


def _shared(prompts: Sequence[Prompt]) -> int:
    """The length of the prefix to share, leaving each prompt a token of its own."""
    first, last = min(p.tokens for p in prompts), max(p.tokens for p in prompts)
    length = min(common_length(first, last), min(len(p.tokens) for p in prompts) - 1)
    return length if length >= _WORTHWHILE and len(prompts) >= _CROWD else 0


@torch.inference_mode()
def _plain(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    endings: Endings,
    ends: list[int],
    pick: Picker,
) -> list[list[int]]:
    width = max(len(prompt.tokens) for prompt in prompts)
    inputs = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(inputs)
    for row, prompt in enumerate(prompts):
        inputs[row, width - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
        mask[row, width - len(prompt.tokens) :] = 1
    criteria = _Criteria(endings, len(prompts), width)
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=max(prompt.limit for prompt in prompts),
        eos_token_id=ends or None,
        pad_token_id=tokenizer.pad_token_id,
    )
    # Whatever the checkpoint suggests (temperature, repetition penalty) would fill the gaps of this one.
    suggested, model.generation_config = model.generation_config, config
    try:
        generating: Any = model
        output = generating.generate(
            inputs=inputs.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
            stopping_criteria=[criteria],
            logits_processor=[_Draw(pick, len(prompts))],
        )
    finally:
        model.generation_config = suggested
    new = output[:, width:].tolist()
    return [tokens[:end] for tokens, end in zip(new, criteria.ends, strict=True)]


class _Draw(LogitsProcessor):
    """Lets ``generate``, which takes the largest logit, pick as the faster loop does."""

    def __init__(self, pick: Picker, rows: int) -> None:
        self._pick = pick
        self._rows = range(rows)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return self._pick.perturbed(self._rows, scores)


class _Criteria(StoppingCriteria):
    """Tells ``generate`` which rows have ended, and remembers where."""

    def __init__(self, endings: Endings, rows: int, width: int) -> None:
        self.ends: list[int | None] = [None] * rows
        self._endings = endings
        self._width = width

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        new = input_ids[:, self._width :]
        for row, end in enumerate(self.ends):
            if end is None and self._endings.ended(row, new[row].tolist()):
                self.ends[row] = new.shape[1]
        return torch.tensor([end is not None for end in self.ends], device=input_ids.device)
