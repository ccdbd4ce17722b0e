"""Greedy generation in left-padded batches, with stop strings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, StoppingCriteria

from pytest_muscle.models.local.batching import Budget, run_in_batches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pytest_muscle.models.local.encoding import Prompt


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    budget: Budget,
) -> Iterator[list[tuple[int, str | None]]]:
    """Yield ``(index of the prompt, text)``, longest first; the text excludes prompt and stop string.

    None stands for a prompt that does not fit into memory.
    """
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].tokens), prompts[i].tokens))
    end_tokens = _end_tokens(model, tokenizer)

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
        return _continue(model, tokenizer, [prompts[i] for i in order[start:end]], end_tokens)

    for batch in run_in_batches(len(order), budget, take, run):
        yield [(order[item], text) for item, text in batch]


def _continue(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    end_tokens: list[int],
) -> list[str]:
    width = max(len(prompt.tokens) for prompt in prompts)
    inputs = torch.zeros((len(prompts), width), dtype=torch.long)
    mask = torch.zeros_like(inputs)
    for row, prompt in enumerate(prompts):
        inputs[row, width - len(prompt.tokens) :] = torch.tensor(prompt.tokens)
        mask[row, width - len(prompt.tokens) :] = 1
    ends = _Ends(tokenizer, prompts, width, frozenset(end_tokens))
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=max(prompt.limit for prompt in prompts),
        eos_token_id=end_tokens or None,
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
            stopping_criteria=[ends],
        )
    finally:
        model.generation_config = suggested
    return [ends.text(row, tokens) for row, tokens in enumerate(output[:, width:].tolist())]


class _Ends(StoppingCriteria):
    """Ends each row at its own limit or stop string, and remembers where."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Prompt],
        width: int,
        end_tokens: frozenset[int],
    ) -> None:
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.width = width
        self.end_tokens = end_tokens
        self.ends: list[int | None] = [None] * len(prompts)
        # A token holds a byte at least, so this many cover any stop string that ends in the last one.
        self.tails = [max((len(s.encode()) for s in p.stop), default=0) + 4 for p in prompts]

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        new = input_ids.shape[1] - self.width
        for row, end in enumerate(self.ends):
            if end is None and self._ended(row, input_ids[row, self.width :], new):
                self.ends[row] = new
        return torch.tensor([end is not None for end in self.ends], device=input_ids.device)

    def _ended(self, row: int, tokens: torch.Tensor, new: int) -> bool:
        prompt = self.prompts[row]
        if new >= prompt.limit or int(tokens[-1]) in self.end_tokens:
            return True
        if not prompt.stop:
            return False
        tail = str(self.tokenizer.decode(tokens[-self.tails[row] :].tolist()))
        return any(stop in tail for stop in prompt.stop)

    def text(self, row: int, tokens: list[int]) -> str:
        """The row's new text up to its end, cut before the first stop string."""
        kept = tokens[: self.ends[row]]
        text = str(self.tokenizer.decode(kept, skip_special_tokens=True))
        return text[
            : min((at for stop in self.prompts[row].stop if (at := text.find(stop)) >= 0), default=None)
        ]


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    suggested = getattr(model.generation_config, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(suggested if isinstance(suggested, list) else [suggested])}
    return sorted(end for end in ends if isinstance(end, int))
