"""The trend: one line a run, appended and read back."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
from pathlib import Path

import pytest

from pytest_muscle.comparison import Comparison
from pytest_muscle.errors import MuscleError
from pytest_muscle.history import append_run, describe_run, read_history
from pytest_muscle.session import compare

NOW = dt.datetime(2030, 5, 17, 12, 0, tzinfo=dt.timezone(dt.timedelta(hours=2)))


@pytest.fixture
def comparison(tmp_path: Path) -> Comparison:
    golden, old, new = (tmp_path / f"{name}.jsonl" for name in ("golden", "old", "new"))
    golden.write_text(
        '{"id": "a", "prompt": "?", "answer": "x"}\n{"id": "b", "prompt": "?", "answer": "x"}\n'
    )
    old.write_text('{"id": "a", "text": "x"}\n{"id": "b", "text": "x"}\n')
    new.write_text('{"id": "a", "text": "x"}\n{"id": "b", "text": "y"}\n')
    return compare(f"recorded:{old}", f"recorded:{new}", golden)


def test_run_is_kept_with_the_results_metrics(comparison: Comparison, tmp_path: Path) -> None:
    path = tmp_path / "new" / "history.jsonl"
    run = describe_run(comparison, tmp_path, NOW)
    append_run(path, run)
    append_run(path, run)
    result = json.loads(json.dumps(comparison.to_dict()))
    read, again = read_history(path)
    assert read == again
    assert read.date == "2030-05-17T10:00:00+00:00"
    assert read.commit is None
    assert (read.old, read.new, read.passed) == (result["old"], result["new"], False)
    assert read.metrics == result["metrics"]
    assert read.metrics["nfr"] == 0.5
    assert read.datasets == {name: each["metrics"] for name, each in result["datasets"].items()}


def test_commit_is_that_of_the_repository(comparison: Comparison, tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        done = subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "Start")
    assert describe_run(comparison, tmp_path, NOW).commit == git("rev-parse", "HEAD")


def test_no_file_is_no_history(tmp_path: Path) -> None:
    assert read_history(tmp_path / "history.jsonl") == []


STRANGE = {"date": "", "old": {}, "new": {}, "passed": True, "metrics": {"nfr": "x"}, "datasets": {}}


@pytest.mark.parametrize(
    "line", [json.dumps(STRANGE), "{", "[]", '{"date": "2030"}', '{"date": 7, "metrics": {}}']
)
def test_bad_line_is_an_error_that_says_where(comparison: Comparison, tmp_path: Path, line: str) -> None:
    path = tmp_path / "history.jsonl"
    append_run(path, describe_run(comparison, tmp_path, NOW))
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(MuscleError, match=r"history.jsonl:2: not a .*delete the line") as caught:
        read_history(path)
    assert str(path) in str(caught.value)


def test_file_that_cannot_be_written_is_an_error(comparison: Comparison, tmp_path: Path) -> None:
    with pytest.raises(MuscleError, match="cannot be written"):
        append_run(tmp_path, describe_run(comparison, tmp_path, NOW))
