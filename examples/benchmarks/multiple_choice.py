"""Time multiple choice against lm-evaluation-harness on the same cases, weights and machine.

    pip install lm-eval
    python multiple_choice.py MODEL GOLDEN.jsonl [--limit N] [--shots K] [--ways W] [--rounds 5]
        [--batch-sizes 4 8] [--device cpu] [--log ROUNDS.jsonl] [--row NAME] [--profile]

The two run in turn, in float32, and nothing counts before their choices were seen to be the same.
``--shots K`` puts K cases, drawn by seed and answered, before every other one; ``--ways W`` fills the choices
up to W with those of the next cases. Prints each round, the median CPU seconds, the ratio to the harness at
its best batch size, the tokens each ran, and the floor: the arithmetic of the tokens that are different, as
plain matrix products that are timed in each round, on a CPU. ``--profile`` adds where this package's time
goes.
"""

from __future__ import annotations

import argparse
import random
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from agree_with_lm_eval import Scores, harness, loglikelihoods, multiple_choice_cases, report
from measuring import (
    FLOOR,
    HERE,
    Contestant,
    floor,
    interleaved,
    linear_sizes,
    parsed,
    print_machine,
    print_profile,
    print_row,
    print_table,
)

from pytest_muscle.errors import MuscleError
from pytest_muscle.models.checkpoint import load_model, load_tokenizer, resolve_checkpoint
from pytest_muscle.models.local.batching import scoring_budget
from pytest_muscle.models.local.choosing import score
from pytest_muscle.models.local.encoding import Choices, Encoder, context_length
from pytest_muscle.models.local.linear import pack_linears
from pytest_muscle.models.local.trie import common_length

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from pytest_muscle.golden import GoldenCase


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, check the answers and print the timings."""
    parser = argparse.ArgumentParser(description="Time multiple choice against lm-evaluation-harness.")
    parser.add_argument("model", help="directory or .gguf file")
    parser.add_argument("golden", type=Path, help="golden dataset of multiple choice cases")
    parser.add_argument("--limit", type=int, help="first cases only")
    parser.add_argument("--shots", type=int, default=0, help="answered cases put before each prompt")
    parser.add_argument("--ways", type=int, default=2, help="choices of each case")
    options = parsed(parser, arguments)
    try:
        cases = few_shot(multiple_choice_cases(options.golden), options.shots)[: options.limit]
        compare(options, widened(cases, options.ways))
    except MuscleError as problem:
        sys.exit(f"error: {problem}")


def compare(options: argparse.Namespace, cases: Sequence[GoldenCase]) -> None:
    """Time both, print the table and whether they gave the same answers."""
    checkpoint = resolve_checkpoint(options.model)
    model = load_model(checkpoint, device=options.device, dtype="float32")
    pack_linears(model)
    tokenizer = load_tokenizer(checkpoint)
    encoder = Encoder(tokenizer, context_length(model.config, tokenizer), None)
    lm = harness(options.model, options.batch_sizes[0], options.device)

    def here() -> Scores:
        requests = [encoder.choices(case) for case in cases]
        found = dict(pair for batch in score(model, requests, scoring_budget(model, None)) for pair in batch)
        return [found[i] or () for i in range(len(requests))]

    def there(batch_size: int | str) -> Scores:
        lm.batch_size_per_gpu = batch_size
        return loglikelihoods(lm, cases)

    ours = Contestant(here, model)
    theirs = {
        f"lm-eval, batches of {size}": Contestant(partial(there, size), lm.model)
        for size in options.batch_sizes
    }
    least = arithmetic(model, [encoder.choices(case) for case in cases])
    contestants = {HERE: ours, **theirs} | ({FLOOR: floor(least)} if options.device == "cpu" else {})

    def check() -> None:
        for other in theirs.values():
            if not report(cases, ours.answer or [], other.answer or [], options.model):
                sys.exit("error: the two do not agree")

    rounds = interleaved(options.rounds, contestants, check, options.log)
    print_machine()
    ratio = print_table(rounds, contestants)
    weights = sum(size for _, size in linear_sizes(model))
    bound = 2 * weights * next(iter(theirs.values())).tokens / least
    print(
        f"lm-eval's arithmetic is {bound:.2f} times as much: the ratio at equal rates without any other work"
    )
    print_row(options.row, f"{ratio:.2f} times as fast as lm-eval", f"{bound:.2f}")
    if options.profile:
        print_profile(here)


def arithmetic(model: nn.Module, requests: Sequence[Choices]) -> int:
    """The floating-point operations that the products for the distinct tokens take; prints how many they are.

    The output layer's are those of the scored ones only.
    """
    inputs = sorted(choice.tokens[:-1] for choices in requests for choice in choices)
    shared = sum(common_length(a, b) for a, b in pairwise(inputs))
    distinct = sum(map(len, inputs)) - shared
    scored = {
        choice.tokens[:-i] for choices in requests for choice in choices for i in range(1, choice.scored + 1)
    }
    sizes = dict(linear_sizes(model))
    head = next((size for name, size in sizes.items() if name.endswith("lm_head")), 0)
    print(f"{FLOOR}: the products for {distinct} distinct tokens, {len(scored)} of them scored")
    return 2 * ((sum(sizes.values()) - head) * distinct + head * len(scored))


def few_shot(cases: list[GoldenCase], shots: int) -> list[GoldenCase]:
    """The cases that are not among ``shots`` drawn ones, each behind those with their right choices."""
    drawn = random.Random(0).sample(cases, shots)
    block = "".join(f"{c.prompt}{c.delimiter}{c.choices[int(c.answer[0])]}\n\n" for c in drawn)
    return [replace(case, prompt=block + case.prompt) for case in cases if case not in drawn]


def widened(cases: list[GoldenCase], ways: int) -> list[GoldenCase]:
    """The cases with at least so many choices, the further ones being those of the cases after them."""
    pool = [choice for case in cases for choice in case.choices] * 2
    wide, start = [], 0
    for case in cases:
        start += len(case.choices)
        more = pool[start : start + max(0, ways - len(case.choices))]
        wide.append(replace(case, choices=(*case.choices, *more)))
    return wide


if __name__ == "__main__":
    main()
