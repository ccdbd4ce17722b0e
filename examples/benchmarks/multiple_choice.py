"""Time multiple choice against lm-evaluation-harness on the same cases, weights and machine.

    pip install lm-eval
    python multiple_choice.py MODEL GOLDEN.jsonl [--limit N] [--shots K] [--rounds 5] [--batch-sizes 4 8]

The two run in turn, in float32 on the CPU, and their choices must be the same before anything is timed.
``--shots K`` puts the first K cases, answered, before every other one. Prints the median CPU seconds, the
ratio to the harness at its best batch size, the tokens each ran, and the floor: the arithmetic of the tokens
that are different, at the rate of this machine's matrix products.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from agree_with_lm_eval import Scores, harness, loglikelihoods, multiple_choice_cases, report
from measuring import TokenCounter, interleaved, linear_sizes, matrix_product_rate, print_machine, print_table

from pytest_muscle.errors import MuscleError
from pytest_muscle.models.checkpoint import load_model, load_tokenizer, resolve_checkpoint
from pytest_muscle.models.local.batching import scoring_budget
from pytest_muscle.models.local.choosing import score
from pytest_muscle.models.local.encoding import Choices, Encoder, context_length
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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8], help="of lm-evaluation-harness")
    options = parser.parse_args(arguments)
    try:
        cases = few_shot(multiple_choice_cases(options.golden), options.shots)[: options.limit]
        compare(options.model, cases, options.rounds, options.batch_sizes)
    except MuscleError as problem:
        sys.exit(f"error: {problem}")


def compare(spec: str, cases: Sequence[GoldenCase], rounds: int, batch_sizes: Sequence[int]) -> None:
    """Check that both give the same answers, time them and print the table."""
    checkpoint = resolve_checkpoint(spec)
    model = load_model(checkpoint, device="cpu", dtype="float32")
    tokenizer = load_tokenizer(checkpoint)
    encoder = Encoder(tokenizer, context_length(model.config, tokenizer), None)
    lm = harness(spec, batch_sizes[0])

    def here() -> Scores:
        requests = [encoder.choices(case) for case in cases]
        found = dict(pair for batch in score(model, requests, scoring_budget(model, None)) for pair in batch)
        return [found[i] or () for i in range(len(requests))]

    def there(batch_size: int) -> Scores:
        lm.batch_size_per_gpu = batch_size
        return loglikelihoods(lm, cases)

    if not report(cases, here(), there(batch_sizes[0]), tolerance=2e-3):
        sys.exit(1)
    contestants = {"pytest-muscle": here}
    contestants |= {f"lm-eval, batches of {size}": lambda size=size: there(size) for size in batch_sizes}
    counters = {name: TokenCounter(model if run is here else lm.model) for name, run in contestants.items()}
    tokens = {name: counters[name].of(run) for name, run in contestants.items()}
    seconds = interleaved(rounds, contestants)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best = min((name for name in medians if name != "pytest-muscle"), key=medians.__getitem__)
    print_machine()
    print_table(seconds, best, tokens)
    print_floor(model, [encoder.choices(case) for case in cases], medians["pytest-muscle"])


def print_floor(model: nn.Module, requests: Sequence[Choices], reached: float) -> None:
    """The seconds that the arithmetic alone would take, and the share of it in the time reached."""
    inputs = sorted(choice.tokens[:-1] for choices in requests for choice in choices)
    shared = sum(common_length(a, b) for a, b in pairwise(inputs))
    distinct = sum(map(len, inputs)) - shared
    scored = {
        choice.tokens[:-i] for choices in requests for choice in choices for i in range(1, choice.scored + 1)
    }
    sizes = dict(linear_sizes(model))
    head = next((size for name, size in sizes.items() if name.endswith("lm_head")), 0)
    operations = 2 * ((sum(sizes.values()) - head) * distinct + head * len(scored))
    rate = matrix_product_rate()
    print(
        f"floor: {operations / rate:.2f} s for {distinct} distinct tokens, {len(scored)} of them scored, "
        f"at {rate / 1e9:.0f} GFLOP/s; reached {operations / rate / reached:.0%} of it"
    )


def few_shot(cases: list[GoldenCase], shots: int) -> list[GoldenCase]:
    """The cases after the first ``shots``, each behind those with their right choices."""
    block = "".join(f"{c.prompt}{c.delimiter}{c.choices[int(c.answer[0])]}\n\n" for c in cases[:shots])
    return [replace(case, prompt=block + case.prompt) for case in cases[shots:]]


if __name__ == "__main__":
    main()
