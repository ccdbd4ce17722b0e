"""Time multiple choice against lm-evaluation-harness on the same cases, weights and machine.

    pip install lm-eval
    python multiple_choice.py MODEL GOLDEN.jsonl [--limit N] [--shots K] [--ways W] [--rounds 5]
        [--batch-sizes 4 8] [--log ROUNDS.jsonl] [--row NAME] [--profile]

The two run in turn, in float32 on the CPU, and nothing counts before their choices were seen to be the same.
``--shots K`` puts K cases, drawn by seed and answered, before every other one; ``--ways W`` fills the choices
up to W with those of the next cases. Prints each round, the median CPU seconds, the ratio to the harness at
its best batch size, the tokens each ran, and the floor: the arithmetic of the tokens that are different, at
the best rate of this machine's matrix products. ``--profile`` adds where this package's time goes.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from agree_with_lm_eval import Scores, harness, loglikelihoods, multiple_choice_cases, report
from measuring import (
    HERE,
    Contestant,
    interleaved,
    linear_sizes,
    matrix_product_rate,
    print_machine,
    print_profile,
    print_row,
    print_table,
    require_one_thread,
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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8], help="of lm-evaluation-harness")
    parser.add_argument("--ways", type=int, default=2, help="choices of each case")
    parser.add_argument("--log", type=Path, help="file of rounds to go on with")
    parser.add_argument("--row", metavar="NAME", help="print the result as a row of README's table, too")
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    options = parser.parse_args(arguments)
    if options.profile:
        require_one_thread(parser)
    try:
        cases = few_shot(multiple_choice_cases(options.golden), options.shots)[: options.limit]
        compare(options, widened(cases, options.ways))
    except MuscleError as problem:
        sys.exit(f"error: {problem}")


def compare(options: argparse.Namespace, cases: Sequence[GoldenCase]) -> None:
    """Time both, print the table and whether they gave the same answers."""
    checkpoint = resolve_checkpoint(options.model)
    model = load_model(checkpoint, device="cpu", dtype="float32")
    pack_linears(model)
    tokenizer = load_tokenizer(checkpoint)
    encoder = Encoder(tokenizer, context_length(model.config, tokenizer), None)
    lm = harness(options.model, options.batch_sizes[0])

    def here() -> Scores:
        requests = [encoder.choices(case) for case in cases]
        found = dict(pair for batch in score(model, requests, scoring_budget(model, None)) for pair in batch)
        return [found[i] or () for i in range(len(requests))]

    def there(batch_size: int) -> Scores:
        lm.batch_size_per_gpu = batch_size
        return loglikelihoods(lm, cases)

    contestants = {HERE: Contestant(here, model)}
    for size in options.batch_sizes:
        contestants[f"lm-eval, batches of {size}"] = Contestant(partial(there, size), lm.model)

    def check() -> None:
        ours, *theirs = (contestant.answer or [] for contestant in contestants.values())
        for other in theirs:
            if not report(cases, ours, other, options.model):
                sys.exit("error: the two do not agree")

    rounds = interleaved(options.rounds, contestants, check, options.log)
    print_machine()
    ratio = print_table(rounds, contestants)
    reached = statistics.median(r[HERE].cpu for r in rounds)
    peer = next(contestant.tokens for name, contestant in contestants.items() if name != HERE)
    bound = print_floor(model, [encoder.choices(case) for case in cases], reached, peer)
    print_row(options.row, f"{ratio:.2f} times as fast as lm-eval", f"{bound:.2f}")
    if options.profile:
        print_profile(here)


def print_floor(model: nn.Module, requests: Sequence[Choices], reached: float, peer_tokens: int) -> float:
    """The seconds that the arithmetic alone would take, its share in the time reached, and the peer's.

    Returns how many times as much arithmetic the peer has.
    """
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
    more = 2 * sum(sizes.values()) * peer_tokens / operations
    print(
        f"lm-eval's arithmetic is {more:.2f} times as much: the ratio at equal rates without any other work"
    )
    return more


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
