"""Time greedy generation against transformers' own ``generate`` on the same prompts, weights and machine.

    python generation.py MODEL GOLDEN.jsonl [--limit N] [--new-tokens 64] [--rounds 5] [--batch-sizes 8 16]

The two run in turn, in float32 on the CPU. ``generate`` gets the prompts in their order in padded batches.
First the texts are compared: any that differ make the exit status 1. Prints the median CPU seconds and the
ratio to ``generate`` at its best batch size.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from measuring import TokenCounter, interleaved, print_machine, print_table

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import read_golden
from pytest_muscle.models.checkpoint import load_model, load_tokenizer, resolve_checkpoint
from pytest_muscle.models.local.batching import generation_budget
from pytest_muscle.models.local.encoding import Encoder, Prompt, context_length
from pytest_muscle.models.local.generation import generate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_muscle.golden import GoldenCase


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, check the texts and print the timings."""
    parser = argparse.ArgumentParser(description="Time greedy generation against transformers' generate.")
    parser.add_argument("model", help="directory, .gguf file or org/name")
    parser.add_argument("golden", type=Path, help="golden dataset")
    parser.add_argument("--limit", type=int, help="first cases only")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8], help="of generate")
    options = parser.parse_args(arguments)
    try:
        cases = [case for case in read_golden(options.golden) if case.task != "multiple_choice"][
            : options.limit
        ]
        cases = [replace(case, max_new_tokens=options.new_tokens) for case in cases]
        compare(options.model, cases, options.rounds, options.batch_sizes)
    except MuscleError as problem:
        sys.exit(f"error: {problem}")


def compare(spec: str, cases: Sequence[GoldenCase], rounds: int, batch_sizes: Sequence[int]) -> None:
    """Check that both give the same texts, time them and print the table."""
    checkpoint = resolve_checkpoint(spec)
    model, tokenizer = load_model(checkpoint, device="cpu", dtype="float32"), load_tokenizer(checkpoint)
    encoder = Encoder(tokenizer, context_length(model.config, tokenizer), None)
    prompts = [encoder.prompt(case) for case in cases]

    def here() -> list[str | None]:
        found = dict(
            pair
            for batch in generate(model, tokenizer, prompts, generation_budget(model, None))
            for pair in batch
        )
        return [found[i] for i in range(len(prompts))]

    def there(size: int) -> list[str]:
        return [
            text
            for i in range(0, len(prompts), size)
            for text in plain(model, tokenizer, prompts[i : i + size])
        ]

    same = sum(one == other for one, other in zip(here(), there(batch_sizes[0]), strict=True))
    print(f"same text: {same} of {len(prompts)} prompts")
    contestants = {"pytest-muscle": here}
    contestants |= {f"generate, batches of {size}": lambda size=size: there(size) for size in batch_sizes}
    counter = TokenCounter(model)
    tokens = {name: counter.of(run) for name, run in contestants.items()}
    seconds = interleaved(rounds, contestants)
    best = min(list(contestants)[1:], key=lambda name: statistics.median(seconds[name]))
    print_machine()
    print_table(seconds, best, tokens)
    sys.exit(same != len(prompts))


@torch.inference_mode()
def plain(model: torch.nn.Module, tokenizer: object, prompts: Sequence[Prompt]) -> list[str]:
    """The texts of one batch of ``generate``, padded on the left and cut at the stop strings."""
    batch = tokenizer.pad({"input_ids": [prompt.tokens for prompt in prompts]}, return_tensors="pt")
    stops = sorted({stop for prompt in prompts for stop in prompt.stop})
    output = model.generate(
        **batch,
        do_sample=False,
        max_new_tokens=prompts[0].limit,
        pad_token_id=tokenizer.pad_token_id,
        **({"stop_strings": stops, "tokenizer": tokenizer} if stops else {}),
    )
    texts = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [min((text.split(stop)[0] for stop in stops), key=len, default=text) for text in texts]


if __name__ == "__main__":
    main()
