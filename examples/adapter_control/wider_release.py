"""A new version of a task model: a wider adapter, trained on other records.

    python wider_release.py BASE TRAIN WORK

Trains two task adapters on one base, as a team does from one version to the next: ``WORK/old`` of rank 4 on
the first half of the records, ``WORK/new`` of rank 16 on the second half. A run that is interrupted goes on
where it was when it is started again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pytest_muscle import MuscleError
from pytest_muscle.adapter import TaskConfig, train_task_adapter

RANKS = {"old": 4, "new": 16}


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and train both versions."""
    parser = argparse.ArgumentParser(description="Train two versions of a task model.")
    parser.add_argument("base", help="directory, .gguf file or org/name")
    parser.add_argument("train", type=Path, help="training records, one a line")
    parser.add_argument("work", type=Path)
    options = parser.parse_args(arguments)
    records = options.train.read_text(encoding="utf-8").splitlines(keepends=True)
    half = len(records) // 2
    options.work.mkdir(parents=True, exist_ok=True)
    for name, part in (("old", records[:half]), ("new", records[half:])):
        path = options.work / f"{name}.jsonl"
        path.write_text("".join(part), encoding="utf-8")
        rank = RANKS[name]
        config = TaskConfig(rank=rank, alpha=2.0 * rank, epochs=1, validation_share=0.0)
        try:
            trained = train_task_adapter(options.base, path, options.work / name, config)
        except MuscleError as problem:
            sys.exit(f"error: {problem}")
        print(f"{name}: rank {rank}, {len(part)} records, {trained.seconds / 60:.1f} minutes", flush=True)


if __name__ == "__main__":
    main()
