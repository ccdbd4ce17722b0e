"""Generation by the faster of two paths, where it gives the plain path's logits."""

from __future__ import annotations

from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from pytest_muscle.models.local import decoding
from pytest_muscle.models.local.batching import Budget, attempt, run_in_batches, scoring_budget
from pytest_muscle.models.local.sampling import Picker
from pytest_muscle.models.local.stopping import Endings, end_tokens
from pytest_muscle.models.local.transfers import sent
from pytest_muscle.models.local.trie import common_length

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pytest_muscle.models.local.encoding import Prompt

# A shorter prefix, or one shared by fewer prompts, costs more as a pass and batches of its own than it saves.
_WORTHWHILE = 32
_CROWD = 16

Complete = list[tuple[int, list[int] | None]]
"""Prompts, by their index, and their new tokens; None where memory did not suffice."""


class _UnsuitableError(Exception):
    """The faster loop does not suit the model."""


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    budget: Budget,
    on_plain: Callable[[], None] | None = None,
) -> Iterator[list[tuple[int, str | None]]]:
    """Yield ``(index of the prompt, text)``; the text is without the prompt and the stop string.

    None stands for a prompt that does not fit into memory. Greedy texts are those of plain ``generate``,
    which also does the work for models that the faster loop does not suit; then ``on_plain`` is called.
    """
    for group in _groups(prompts):
        members = [prompts[i] for i in group]
        for batch in _generate_group(model, tokenizer, members, budget, on_plain):
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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    budget: Budget,
    on_plain: Callable[[], None] | None,
) -> Iterator[list[tuple[int, str | None]]]:
    endings = Endings(tokenizer, prompts, end_tokens(model, tokenizer))
    batches = _decoded(model, prompts, endings, budget)
    try:
        # A few texts take less time than the comparison.
        first = next(batches) if len(prompts) > 2 else None
    except _UnsuitableError:
        first = None
        if on_plain:
            on_plain()
    if first is None:
        batches = _plainly(model, tokenizer, prompts, endings, budget)
    for batch in chain([first] if first else [], batches):
        if batch:
            yield [(i, None if tokens is None else endings.text(i, tokens)) for i, tokens in batch]


def _decoded(
    model: PreTrainedModel, prompts: Sequence[Prompt], endings: Endings, budget: Budget
) -> Iterator[Complete]:
    """The new tokens of texts as they are complete, by the faster loop.

    Raises ``_UnsuitableError``, before anything else, where its logits are not those of a plain forward
    pass over the longest prompt, or where it fails on the model in any way.
    """
    watched = max(range(len(prompts)), key=lambda i: len(prompts[i].tokens))
    watch = decoding.Watch(watched, prompts[watched].limit)
    batches = _in_slots(model, prompts, endings, watch, budget)
    longest = max(len(prompt.tokens) + prompt.limit for prompt in prompts)
    held: Complete = []
    checked = False
    while not checked:
        try:
            if not decoding.suits(model, longest):
                raise _UnsuitableError
            held += next(batches)
            checked = watch.complete or any(prompt == watched for prompt, _ in held)
            if checked and not watch.agrees(model, prompts[watched].tokens):
                raise _UnsuitableError
        except Exception as error:  # A model whose attention or arguments are its own may fail in any way.
            raise _UnsuitableError from error
    yield held
    yield from batches


def _in_slots(
    model: PreTrainedModel, prompts: Sequence[Prompt], endings: Endings, watch: decoding.Watch, budget: Budget
) -> Iterator[Complete]:
    waiting = set(range(len(prompts)))
    prefix = decoding.shared_prefix(model, prompts[0].tokens[: _shared(prompts)])
    row = scoring_budget(model, None).tokens
    while waiting:
        pick = watch.over(Picker(prompts))
        decoder = decoding.Decoder(
            model, prefix, prompts, sorted(waiting), endings.ended, pick, budget.tokens, row
        )
        while decoder.working:
            advanced = attempt(decoder.advance)
            complete: Complete = [*(advanced or ())]
            if advanced is None:
                # What was in progress begins anew: half as many at a time, or without the one too large.
                budget.tokens = max(1, min(decoder.used, budget.tokens) // 2)
                complete = [(prompt, None) for prompt in decoder.rows] if len(decoder.rows) == 1 else []
                decoder.stop()
            waiting -= {prompt for prompt, _ in complete}
            yield complete


def _plainly(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    endings: Endings,
    budget: Budget,
) -> Iterator[Complete]:
    """The new tokens in batches of similar lengths, padded, by the model's own ``generate``."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].tokens), prompts[i].tokens))

    def take(start: int, tokens: int) -> tuple[int, int]:
        longest, limit, used, end = len(prompts[order[start]].tokens), 0, 0, start
        while end < len(order):
            limit = max(limit, prompts[order[end]].limit)
            more = (end - start + 1) * (longest + limit)
            if end > start and more > tokens:
                break
            used, end = more, end + 1
        return end, used

    def run(start: int, end: int) -> list[list[int]]:
        batch = order[start:end]
        return _plain(model, tokenizer, [prompts[i] for i in batch], endings.of(batch))

    for batch in run_in_batches(len(order), budget, take, run):
        yield [(order[item], tokens) for item, tokens in batch]


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
        eos_token_id=sorted(endings.end_tokens) or None,
        pad_token_id=tokenizer.pad_token_id,
    )
    # Whatever the checkpoint suggests (temperature, repetition penalty) would fill the gaps of this one.
    suggested, model.generation_config = model.generation_config, config
    try:
        generating: Any = model
        output = generating.generate(
            inputs=sent(inputs, model.device),
            attention_mask=sent(mask, model.device),
            generation_config=config,
            stopping_criteria=[criteria],
            logits_processor=[_Draw(Picker(prompts), len(prompts))],
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
