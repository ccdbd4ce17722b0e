"""The trend: one line a run, appended to a JSONL file."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_muscle.comparison import Comparison
from pytest_muscle.errors import MuscleError


@dataclass(frozen=True, slots=True)
class Run:
    """One run: when, on which commit, which models, and their metrics as in the JSON result.

    ``date`` is ISO 8601 in UTC; ``commit`` is None outside of a git repository.
    """

    date: str
    commit: str | None
    old: dict[str, str]
    new: dict[str, str]
    passed: bool
    metrics: dict[str, Any]
    datasets: dict[str, dict[str, Any]]


def describe_run(comparison: Comparison, folder: Path, now: dt.datetime) -> Run:
    """Return what is kept of a run in a repository's ``folder``; ``now`` must know its time zone."""
    result = comparison.totals()
    return Run(
        date=now.astimezone(dt.UTC).isoformat(timespec="seconds"),
        commit=_commit(folder),
        old=result["old"],
        new=result["new"],
        passed=comparison.passed,
        metrics=result["metrics"],
        datasets={name: dataset["metrics"] for name, dataset in result["datasets"].items()},
    )


def _commit(folder: Path) -> str | None:
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def append_run(path: Path, run: Run) -> None:
    """Append a run as one line; raises MuscleError where the file cannot be written."""
    line = json.dumps({name: getattr(run, name) for name in Run.__dataclass_fields__})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise MuscleError(f"{path}: cannot be written: {error.strerror or error}") from None


def read_history(path: Path) -> list[Run]:
    """Return the runs, oldest first; none where there is no file.

    Raises MuscleError naming the file and the line.
    """
    try:
        lines = path.read_text("utf-8").split("\n")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise MuscleError(f"{path}: cannot be read: {error}") from None
    return [_parse(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


_VALUES = (int, float, dict, type(None))


def _parse(line: str, place: str) -> Run:
    remedy = "delete the line, or name another file by --muscle-history"
    try:
        record = json.loads(line)
    except ValueError as error:
        raise MuscleError(f"{place}: not a line of JSON ({error}); {remedy}") from None
    fields = Run.__dataclass_fields__
    kinds = {"date": str, "old": dict, "new": dict, "passed": bool, "metrics": dict, "datasets": dict}
    is_run = isinstance(record, dict) and all(isinstance(record.get(n), kind) for n, kind in kinds.items())
    if not is_run or not all(isinstance(value, _VALUES) for value in record["metrics"].values()):
        raise MuscleError(f"{place}: not a run that --muscle-history wrote; {remedy}")
    values: dict[str, Any] = {name: record.get(name) for name in fields}
    return Run(**values)
