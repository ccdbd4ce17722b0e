"""Check, case by case, that multiple choice is scored as lm-evaluation-harness scores it.

    pip install lm-eval
    python agree_with_lm_eval.py MODEL GOLDEN.jsonl [--limit N] [--batch-size 8]

Both run the same weights in float32 on the CPU. Prints how many choices are the same and how far the
log-likelihoods are apart. Those more than 1e-3 nats and 1e-5 for each token apart are computed in float64:
this package has to be that near to it then. The exit status is 1 if it is not, or if any choice differs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import read_golden
from pytest_muscle.models import ModelOptions, open_model
from pytest_muscle.models.checkpoint import converted_gguf, load_model, load_tokenizer, resolve_checkpoint
from pytest_muscle.models.local import scoring
from pytest_muscle.models.local.batching import Budget
from pytest_muscle.models.local.encoding import Choices, Encoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval.models.huggingface import HFLM

    from pytest_muscle.golden import GoldenCase

Scores: TypeAlias = list[tuple[float, ...]]


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, run both and print the comparison."""
    parser = argparse.ArgumentParser(description="Compare multiple choice with lm-evaluation-harness.")
    parser.add_argument("model", help="directory or .gguf file")
    parser.add_argument("golden", type=Path, help="golden dataset of multiple choice cases")
    parser.add_argument("--limit", type=int, help="first cases only")
    parser.add_argument("--batch-size", type=int, default=8, help="of lm-evaluation-harness")
    options = parser.parse_args(arguments)
    try:
        cases = multiple_choice_cases(options.golden)[: options.limit]
        ours, theirs = score_here(options.model, cases), score_there(options.model, cases, options.batch_size)
    except MuscleError as problem:
        sys.exit(f"error: {problem}")
    sys.exit(not report(cases, ours, theirs, options.model))


def multiple_choice_cases(path: Path) -> list[GoldenCase]:
    """The multiple choice cases of a golden dataset."""
    return [case for case in read_golden(path) if case.task == "multiple_choice"]


def score_here(spec: str, cases: Sequence[GoldenCase]) -> Scores:
    """Log-likelihoods of each case's choices from this package."""
    model = open_model(spec, ModelOptions(device="cpu", dtype="float32"))
    scores = {case.id: response.loglikelihoods for batch in model.respond(cases) for case, response in batch}
    model.close()
    return [scores[case.id] for case in cases]


def score_there(spec: str, cases: Sequence[GoldenCase], batch_size: int) -> Scores:
    """Log-likelihoods of each case's choices from lm-evaluation-harness."""
    return loglikelihoods(harness(spec, batch_size), cases)


def harness(spec: str, batch_size: int | str, device: str = "cpu") -> HFLM:
    """The harness's transformers model of a directory or .gguf file; its batch size may be ``auto``."""
    from lm_eval.models.huggingface import HFLM

    place = resolve_checkpoint(spec).base
    directory = converted_gguf(place) if place.is_file() else place
    return HFLM(pretrained=str(directory), device=device, dtype="float32", batch_size=batch_size)


def loglikelihoods(lm: HFLM, cases: Sequence[GoldenCase]) -> Scores:
    """Ask the harness's model about every choice of every case."""
    from lm_eval.api.instance import Instance

    requests = []
    for case in cases:
        context = lm.apply_chat_template([dict(m) for m in case.messages]) if case.messages else case.prompt
        for index, choice in enumerate(case.choices):
            pair = (context, case.delimiter + choice)
            requests.append(Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=index))
    values = iter(lm.loglikelihood(requests, disable_tqdm=True))
    return [tuple(next(values)[0] for _ in case.choices) for case in cases]


def report(cases: Sequence[GoldenCase], ours: Scores, theirs: Scores, spec: str) -> bool:
    """Print the comparison; return whether the two agree."""
    distances = [
        max(abs(a - b) for a, b in zip(one, other, strict=True))
        for one, other in zip(ours, theirs, strict=True)
    ]
    other = [i for i in range(len(cases)) if argmax(ours[i]) != argmax(theirs[i])]
    for i in other:
        print(f"{cases[i].id}: here {ours[i]}, there {theirs[i]}")
    print(f"same choice: {len(cases) - len(other)} of {len(cases)} cases")
    print(
        f"log-likelihoods: largest distance {max(distances):.1e}, mean {sum(distances) / len(cases):.1e} nats"
    )
    return not other and exact(cases, ours, theirs, spec)


def exact(cases: Sequence[GoldenCase], ours: Scores, theirs: Scores, spec: str) -> bool:
    """Whether the log-likelihoods are those of the harness, or else those of float64."""
    encoder = Encoder(load_tokenizer(resolve_checkpoint(spec)), 10**9, None)
    requests = [encoder.choices(case) for case in cases]
    apart = [i for i in range(len(cases)) if _apart(requests[i], ours[i], theirs[i])]
    if not apart:
        return True
    model = load_model(resolve_checkpoint(spec), device="cpu", dtype="float64")
    asked = [requests[i] for i in apart]
    found = dict(pair for batch in scoring.score(model, asked, Budget(1)) for pair in batch)
    wrong = [i for place, i in enumerate(apart) if _apart(requests[i], ours[i], found[place] or ())]
    print(f"further apart than 1e-3 + 1e-5 a token: {len(apart)} cases; from float64, {len(wrong)} of them")
    return not wrong


def _apart(choices: Choices, ours: tuple[float, ...], theirs: tuple[float, ...]) -> bool:
    return any(
        abs(a - b) > 1e-3 + 1e-5 * choice.scored for choice, a, b in zip(choices, ours, theirs, strict=True)
    )


def argmax(scores: tuple[float, ...]) -> int:
    """The index of the largest score, the first one of equals."""
    return max(range(len(scores)), key=scores.__getitem__)


if __name__ == "__main__":
    main()
