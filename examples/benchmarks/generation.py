"""Time greedy generation against lm-evaluation-harness on the same prompts, weights and machine.

    pip install lm-eval
    python generation.py MODEL GOLDEN.jsonl [--limit N] [--new-tokens 64] [--rounds 5] [--batch-sizes 8 16]
        [--device cpu] [--log ROUNDS.jsonl] [--row NAME] [--profile]

The two run in turn, in float32; the harness generates through transformers' ``generate``, in
batches sorted by length. Nothing counts before the texts were seen to be the same. Prints each round, the
median CPU seconds, the ratio to the harness at its best batch size and the floor: the arithmetic of the
distinct tokens, as plain matrix products that are timed in each round, on a CPU. ``--row`` adds the row of
README's table, ``--profile`` where the time goes.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from agree_with_lm_eval import harness
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
from pytest_muscle.golden import read_golden
from pytest_muscle.models.checkpoint import load_model, load_tokenizer, resolve_checkpoint
from pytest_muscle.models.local.batching import generation_budget
from pytest_muscle.models.local.encoding import Encoder, context_length
from pytest_muscle.models.local.generation import generate
from pytest_muscle.models.local.linear import pack_linears
from pytest_muscle.models.local.trie import common_length

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval.models.huggingface import HFLM
    from torch import nn

    from pytest_muscle.golden import GoldenCase


Texts: TypeAlias = "list[str | None]"


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, check the texts and print the timings."""
    parser = argparse.ArgumentParser(description="Time greedy generation against transformers' generate.")
    parser.add_argument("model", help="directory, .gguf file or org/name")
    parser.add_argument("golden", type=Path, help="golden dataset")
    parser.add_argument("--limit", type=int, help="first cases only")
    parser.add_argument("--new-tokens", type=int, default=64)
    options = parsed(parser, arguments)
    try:
        cases = [case for case in read_golden(options.golden) if case.task != "multiple_choice"][
            : options.limit
        ]
        cases = [replace(case, max_new_tokens=options.new_tokens) for case in cases]
        compare(options, cases)
    except MuscleError as problem:
        sys.exit(f"error: {problem}")


def compare(options: argparse.Namespace, cases: Sequence[GoldenCase]) -> None:
    """Time both, print the table and whether they gave the same texts."""
    checkpoint = resolve_checkpoint(options.model)
    model = load_model(checkpoint, device=options.device, dtype="float32")
    tokenizer = load_tokenizer(checkpoint)
    pack_linears(model)
    encoder = Encoder(tokenizer, context_length(model.config, tokenizer), None)
    lm = harness(options.model, options.batch_sizes[0], options.device)

    def here() -> Texts:
        prompts = [encoder.prompt(case) for case in cases]
        budget = generation_budget(model, None)
        found = dict(pair for batch in generate(model, tokenizer, prompts, budget) for pair in batch)
        return [found[i] for i in range(len(prompts))]

    def there(size: int | str) -> Texts:
        lm.batch_size_per_gpu = size
        return written(lm, cases)

    ours = Contestant(here, model)
    theirs = {
        f"lm-eval, batches of {size}": Contestant(partial(there, size), lm.model)
        for size in options.batch_sizes
    }
    new = sum(len(tokenizer.encode(text or "")) for text in here())
    least = arithmetic(model, [encoder.prompt(case).tokens for case in cases], new)
    contestants = {HERE: ours, **theirs} | ({FLOOR: floor(least)} if options.device == "cpu" else {})

    def check() -> None:
        for other in theirs.values():
            same = sum(mine == its for mine, its in zip(ours.answer or [], other.answer or [], strict=True))
            print(f"same text: {same} of {len(cases)} prompts")
            if same < len(cases):
                sys.exit("error: the two do not write the same")

    rounds = interleaved(options.rounds, contestants, check, options.log)
    print_machine()
    ratio = print_table(rounds, contestants)
    print_row(options.row, f"{ratio:.2f} times as fast as lm-eval")
    if options.profile:
        print_profile(here)


def arithmetic(model: nn.Module, prompts: Sequence[tuple[int, ...]], new: int) -> int:
    """The floating-point operations that the products for prompts and ``new`` tokens take.

    A product with the few rows of a step waits for the weights to come from memory, so that the floor is not
    to be had for the new tokens.
    """
    ordered = sorted(prompts)
    read = sum(map(len, ordered)) - sum(common_length(a, b) for a, b in pairwise(ordered))
    sizes = dict(linear_sizes(model))
    head = next((size for name, size in sizes.items() if name.endswith("lm_head")), 0)
    print(f"{FLOOR}: the products for {read} distinct tokens of prompts and about {new} new ones")
    return 2 * ((sum(sizes.values()) - head) * (read + new) + head * new)


def written(lm: HFLM, cases: Sequence[GoldenCase]) -> Texts:
    """The harness's texts."""
    from lm_eval.api.instance import Instance

    requests = [
        Instance(
            request_type="generate_until",
            doc={},
            arguments=(
                case.prompt,
                {"until": list(case.stop), "max_gen_toks": case.max_new_tokens, "do_sample": False},
            ),
            idx=0,
        )
        for case in cases
    ]
    return list(lm.generate_until(requests, disable_tqdm=True))


if __name__ == "__main__":
    main()
