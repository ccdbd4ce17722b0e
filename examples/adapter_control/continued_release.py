"""A new version of a base model: its training continued on other data.

    python continued_release.py BASE RECORDS.jsonl WORK [--prompt FIELD] [--answer FIELD] [--limit N]

Trains an adapter of rank 64 on all tokens of the records, merges it into the base and writes the result, a
whole model, to ``WORK/new``. The records are those of any task but the one that is judged afterwards;
``--prompt`` and ``--answer`` name their fields (``question`` and ``ground_truth`` in the solutions that are
published with GSM8K). A run that is interrupted goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pytest_muscle import MuscleError
from pytest_muscle.adapter import TaskConfig, train_task_adapter
from pytest_muscle.models.checkpoint import load_model, load_tokenizer, resolve_checkpoint

CONFIG = TaskConfig(rank=64, alpha=128.0, learning_rate=1e-3, epochs=1, tokens="all", validation_share=0.0)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, train, merge."""
    parser = argparse.ArgumentParser(description="Continue the training of a base model.")
    parser.add_argument("base", help="directory, .gguf file or org/name")
    parser.add_argument("records", type=Path, help="what it is trained on, one record a line")
    parser.add_argument("work", type=Path)
    parser.add_argument("--prompt", default="prompt", help="the records' field with the prompt")
    parser.add_argument("--answer", default="answer", help="the records' field with the answer")
    parser.add_argument("--limit", type=int, help="first records only")
    options = parser.parse_args(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    path = options.work / "records.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in texts(options)), encoding="utf-8")
    try:
        trained = train_task_adapter(options.base, path, options.work / "adapter", CONFIG)
        merge(str(options.work / "adapter"), options.work / "new")
    except MuscleError as problem:
        sys.exit(f"error: {problem}")
    print(f"{options.work / 'new'}: {trained.seconds / 60:.1f} minutes of training")


def texts(options: argparse.Namespace) -> list[dict[str, str]]:
    """The records as the trainer reads them."""
    records = []
    for number, line in enumerate(options.records.read_text(encoding="utf-8").splitlines(), 1):
        record = json.loads(line)
        for field in (options.prompt, options.answer):
            if field not in record:
                sys.exit(f"error: {options.records}:{number}: no field {field!r}; name another")
        records.append({"prompt": record[options.prompt], "answer": record[options.answer]})
    return records[: options.limit]


def merge(adapter: str, output: Path) -> None:
    """Write a base model with its adapter added to its weights."""
    checkpoint = resolve_checkpoint(adapter)
    model: Any = load_model(checkpoint, device="cpu", dtype="float32")
    model.merge_and_unload().save_pretrained(output)
    load_tokenizer(checkpoint).save_pretrained(output)


if __name__ == "__main__":
    main()
