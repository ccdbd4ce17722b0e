"""Does a compatibility adapter mend a release, or would more training do the same?

    python adapter_control.py OLD NEW TRAIN GOLDEN WORK [adapter settings ...]

Trains, on the new model, a compatibility adapter and its control: an adapter of the same size, trained for
as many steps on the same records by plain cross-entropy, without the old model. Both and the new model itself
are then compared with the old one on the golden dataset, or on each in the folder GOLDEN. Settings that
follow, such as ``--epochs 1``, go to both trainings (see ``python -m pytest_muscle.adapter compatibility
--help``). What has been trained and answered is kept in WORK: start it again and it goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_muscle import MuscleError, compare

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_muscle.comparison import CaseResult, Comparison

CONTROL = ("--cross-entropy-weight", "1", "--texts", "answer", "--selection", "validation_loss")


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, train what is missing, print the table."""
    parser = argparse.ArgumentParser(description="Measure a compatibility adapter against its control.")
    for name in ("old", "new"):
        parser.add_argument(name, help="directory, .gguf file or org/name")
    parser.add_argument("train", type=Path)
    parser.add_argument("golden", type=datasets)
    parser.add_argument("work", type=Path)
    options, settings = parser.parse_known_args(arguments)
    adapter = train(options, "adapter", settings)
    control = train(options, "control", [*settings, *CONTROL, "--epochs", str(control_epochs(adapter))])
    adapters = {"compatibility adapter": adapter, "control: cross-entropy": control}
    try:
        print_tables(options, adapters)
    except MuscleError as problem:
        sys.exit(f"error: {problem}")


def datasets(name: str) -> list[str]:
    """The golden datasets that an argument names: a file, or all in a folder."""
    path = Path(name)
    found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not found:
        raise argparse.ArgumentTypeError(f"there is no .jsonl file in {name}")
    return list(map(str, found))


def train(options: argparse.Namespace, name: str, settings: list[str]) -> Path:
    """Train one adapter in a process of its own, so that its peak memory is its own."""
    output: Path = options.work / name
    # The golden datasets are named so that training records which repeat them are refused.
    golden = [part for path in options.golden for part in ("--golden", path)]
    models = ["--old", options.old, "--new", options.new, *golden]
    paths = ["--train", str(options.train), "--out", str(output)]
    command = [sys.executable, "-m", "pytest_muscle.adapter", "compatibility", *models, *paths, *settings]
    print(f"== {name}", flush=True)
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(code)
    return output


def control_epochs(adapter: Path) -> int:
    """As many as make the adapter's number of steps: cross-entropy has no use for wrong choices as text."""
    report = json.loads((adapter / "adapter_report.json").read_text(encoding="utf-8"))
    return round(report["config"]["epochs"] * report["texts"] / report["train"]["records"])


def print_tables(options: argparse.Namespace, adapters: dict[str, Path]) -> None:
    """Compare everything with the old model; print a table for each dataset."""
    models = {"new model": options.new, **{name: str(path) for name, path in adapters.items()}}
    comparisons = {
        name: compare(options.old, model, options.golden, cache_dir=str(options.work / "answers"))
        for name, model in models.items()
    }
    for dataset in comparisons["new model"].datasets:
        print_table(dataset, comparisons, adapters)


def print_table(dataset: str, comparisons: Mapping[str, Comparison], adapters: Mapping[str, Path]) -> None:
    """One row for each model: its mean score (accuracy, or similarity to the references) and its flips."""
    plain = comparisons["new model"].datasets[dataset].metrics
    print(f"\n{dataset}, {plain.n} cases")
    print(f"{'':24}   score  negative flips  all changes     NFR_mc  minutes  peak memory")
    old = plain.accuracy_old if plain.score_old is None else plain.score_old
    print(f"{'old model':24}{old:8.4f}")
    for name, comparison in comparisons.items():
        metrics = comparison.datasets[dataset].metrics
        score = metrics.accuracy_new if metrics.score_new is None else metrics.score_new
        changes = sum(changed(result) for result in comparison.results if result.case.dataset == dataset)
        other = "" if metrics.nfr_mc is None else f"{metrics.nfr_mc:.4f}"
        print(
            f"{name:24}{score:8.4f}{metrics.nfr:16.4f}{changes / metrics.n:13.4f}"
            f"{other:>11}{cost(adapters.get(name))}"
        )


def changed(result: CaseResult) -> bool:
    """Whether the answer is another one; of a text, whether its score is."""
    if result.case.task == "generation":
        return result.old_grade.score != result.new_grade.score
    return result.old_grade.answer != result.new_grade.answer


def cost(adapter: Path | None) -> str:
    """Minutes and peak memory of an adapter's training."""
    if adapter is None:
        return ""
    report = json.loads((adapter / "adapter_report.json").read_text(encoding="utf-8"))
    return f"{report['seconds'] / 60:9.1f}{report['peak_memory'] / 1e9:10.1f} GB"


if __name__ == "__main__":
    main()
