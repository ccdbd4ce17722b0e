"""Every file that a run leaves: result, reports, recordings, accepted flips, history."""

from __future__ import annotations

import datetime as dt
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pytest_muscle.accepted import to_toml
from pytest_muscle.comparison import Comparison
from pytest_muscle.errors import MuscleError
from pytest_muscle.flips import CaseResult, Drawn
from pytest_muscle.history import append_run, describe_run, read_history
from pytest_muscle.settings.values import Settings
from pytest_muscle.store import encode_response


def write_files(comparison: Comparison, settings: Settings) -> None:
    """Write every file that the settings ask for; raises MuscleError where one cannot be written."""
    if settings.json:
        write_text(settings.json, _result(comparison))
    if settings.record:
        for side in ("old", "new"):
            path = settings.record / f"{side}.jsonl"
            if comparison.unselected and path.exists():
                raise MuscleError(
                    f"{path}: kept as it is, since {comparison.unselected:,} cases were not selected; "
                    "record all cases, or name another folder"
                )
            write_text(path, _recording(comparison.results, side))
    if settings.accept and settings.accepted:
        write_text(settings.accepted, [to_toml(comparison.accepted)])
    now = dt.datetime.now(dt.UTC)
    if settings.history and not comparison.unselected:
        append_run(settings.history, describe_run(comparison, settings.root, now))
    if settings.markdown:
        from pytest_muscle.reports.markdown import render_markdown

        write_text(settings.markdown, [render_markdown(comparison)])
    if settings.report:
        from pytest_muscle.reports.html import render_html

        history = read_history(settings.history) if settings.history else []
        made = now.strftime("%d %B %Y, %H:%M UTC")
        write_text(settings.report, [render_html(comparison, history, made)])


def _result(comparison: Comparison) -> Iterator[str]:
    """The JSON result, a line for each case: all of them at once would take more room than the run."""
    yield json.dumps(_finite(comparison.totals()), indent=1).removesuffix("\n}")
    yield ',\n "cases": ['
    for number, record in enumerate(comparison.case_records()):
        yield f"{',' if number else ''}\n  {json.dumps(_finite(record))}"
    yield "\n ]\n}\n"


def write_text(path: Path, pieces: Iterable[str]) -> None:
    """Write a whole file or, where that fails, none; raises MuscleError naming it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="replace", newline="\n") as file:
                file.writelines(pieces)
            Path(name).chmod(0o666 & ~_umask())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise MuscleError(f"{path}: cannot be written: {error.strerror or error}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _recording(results: Iterable[CaseResult], side: str) -> Iterable[str]:
    for result in results:
        for sample, (response, grade) in enumerate(_said(result, side)):
            if response is not None:
                record: dict[str, Any] = {"id": result.case.id, "dataset": result.case.dataset}
                if result.draws is not None:
                    record["sample"] = sample
                record |= encode_response(response) or {"error": grade.error}
                if isinstance(grade.answer, int):
                    record["choice"] = grade.answer
                yield json.dumps(record) + "\n"


def _said(result: CaseResult, side: str) -> Sequence[Drawn]:
    if result.draws is not None:
        return result.draws.old if side == "old" else result.draws.new
    return [(result.old, result.old_grade) if side == "old" else (result.new, result.new_grade)]


def _finite(value: Any) -> Any:
    # JSON knows neither NaN nor infinity, and a reader in another language must not stumble over them.
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return value
