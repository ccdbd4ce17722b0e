"""Does a compatibility adapter mend a release, or would more training do the same?

    python adapter_control.py OLD NEW TRAIN GOLDEN WORK [adapter settings ...]

Trains, on the new model, a compatibility adapter and its control: an adapter of the same size, trained for
as many steps on the same records by plain cross-entropy, without the old model. Both and the new model itself
are then compared with the old one on the golden dataset. Settings that follow, such as ``--epochs 1``, go to
both trainings (see ``python -m pytest_muscle.adapter compatibility --help``). What has been trained and
answered is kept in WORK: start it again and it goes on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from pytest_muscle import MuscleError, compare

CONTROL = ("--cross-entropy-weight", "1", "--texts", "answer", "--selection", "validation_loss")


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, train what is missing, print the table."""
    parser = argparse.ArgumentParser(description="Measure a compatibility adapter against its control.")
    for name in ("old", "new"):
        parser.add_argument(name, help="directory, .gguf file or org/name")
    for name in ("train", "golden", "work"):
        parser.add_argument(name, type=Path)
    options, settings = parser.parse_known_args(arguments)
    adapter = train(options, "adapter", settings)
    control = train(options, "control", [*settings, *CONTROL, "--epochs", str(control_epochs(adapter))])
    adapters = {"compatibility adapter": adapter, "control: cross-entropy": control}
    try:
        print_table(options, adapters)
    except MuscleError as problem:
        sys.exit(f"error: {problem}")


def train(options: argparse.Namespace, name: str, settings: list[str]) -> Path:
    """Train one adapter in a process of its own, so that its peak memory is its own."""
    output: Path = options.work / name
    # The golden dataset is named so that training records which repeat it are refused.
    models = ["--old", options.old, "--new", options.new, "--golden", str(options.golden)]
    files = ["--train", str(options.train), "--out", str(output)]
    command = [sys.executable, "-m", "pytest_muscle.adapter", "compatibility", *models, *files, *settings]
    print(f"== {name}", flush=True)
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(code)
    return output


def control_epochs(adapter: Path) -> int:
    """As many as make the adapter's number of steps: cross-entropy has no use for wrong choices as text."""
    report = json.loads((adapter / "adapter_report.json").read_text(encoding="utf-8"))
    return round(report["config"]["epochs"] * report["texts"] / report["train"]["records"])


def print_table(options: argparse.Namespace, adapters: dict[str, Path]) -> None:
    """Compare everything with the old model and print one row each."""
    print(f"\n{'':24}accuracy  negative flips  all flips     NFR_mc  minutes  peak memory")
    models = {"new model": options.new, **{name: str(path) for name, path in adapters.items()}}
    for name, model in models.items():
        comparison = compare(options.old, model, options.golden, cache_dir=str(options.work / "answers"))
        metrics = comparison.metrics
        flips = sum(result.old_grade.answer != result.new_grade.answer for result in comparison.results)
        if name == "new model":
            print(f"{'old model':24}{metrics.accuracy_old:8.4f}")
        print(
            f"{name:24}{metrics.accuracy_new:8.4f}{metrics.nfr:16.4f}{flips / metrics.n:11.4f}"
            f"{metrics.nfr_mc:11.4f}{cost(adapters.get(name))}"
        )


def cost(adapter: Path | None) -> str:
    """Minutes and peak memory of an adapter's training."""
    if adapter is None:
        return ""
    report = json.loads((adapter / "adapter_report.json").read_text(encoding="utf-8"))
    return f"{report['seconds'] / 60:9.1f}{report['peak_memory'] / 1e9:10.1f} GB"


if __name__ == "__main__":
    main()
