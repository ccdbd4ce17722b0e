"""What GitHub Actions shows: annotations at the golden records, and the job's summary."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pytest_muscle.comparison import Comparison
from pytest_muscle.errors import MuscleError
from pytest_muscle.gates import Ruling, Verdict
from pytest_muscle.reports.explain import change
from pytest_muscle.reports.markdown import render_markdown
from pytest_muscle.reports.story import worst_first
from pytest_muscle.reports.text import one_line

MOST = 10
"""GitHub shows no more annotations of one level than this from a step."""

_LEVELS = {
    "error": (Verdict.FAILED, Verdict.ERROR),
    "warning": (Verdict.TOLERATED,),
    "notice": (Verdict.ACCEPTED,),
}
_UNDECIDED = {(Ruling.INCONCLUSIVE, "warn"): "warning"}


def is_github(environment: Mapping[str, str]) -> bool:
    """Whether this process runs in GitHub Actions."""
    return environment.get("GITHUB_ACTIONS") == "true"


_COMMAND = re.compile(r"^(\s*):(?=:)|##(?=\[)", re.MULTILINE)


def defuse(text: str) -> str:
    """Return text for the log in which no line is a workflow command, in the new form or the old one."""
    return _COMMAND.sub(lambda match: f"{match[1]}\\x3a" if match[1] is not None else "#\\x23", text)


def append_summary(comparison: Comparison, environment: Mapping[str, str]) -> None:
    """Append the Markdown summary to the job's; raises MuscleError where that cannot be done."""
    path = environment.get("GITHUB_STEP_SUMMARY")
    if path:
        try:
            with Path(path).open("a", encoding="utf-8", errors="replace", newline="\n") as file:
                file.write(render_markdown(comparison))
        except OSError as error:
            raise MuscleError(f"GITHUB_STEP_SUMMARY {path}: cannot be written: {error.strerror}") from None


def commands(comparison: Comparison, root: Path, environment: Mapping[str, str]) -> list[str]:
    """Return workflow commands: failed gates and cases as errors, tolerated flips as warnings, accepted
    ones as notices.

    Each level has at most ten; the tenth then counts the rest. Files are named as seen from the
    repository's root.
    """
    base = Path(environment.get("GITHUB_WORKSPACE") or root)
    lines: list[str] = []
    for level, verdicts in _LEVELS.items():
        every = list(_of_level(comparison, level, verdicts, root, base))
        lines += every if len(every) <= MOST else every[: MOST - 1]
        if len(every) > MOST:
            rest = len(every) - MOST + 1
            lines.append(_command(level, {"title": "pytest-muscle"}, f"... and {rest:,} more like these"))
    return lines


def _of_level(
    comparison: Comparison, level: str, verdicts: tuple[Verdict, ...], root: Path, base: Path
) -> Iterator[str]:
    for gate in comparison.gates:
        if level == ("error" if gate.blocks else _UNDECIDED.get((gate.ruling, gate.inconclusive))):
            place = {"file": _file(gate.dataset, root, base), "title": f"{gate.title} {gate.ruling}"}
            yield _command(level, place, f"{one_line(gate.scope)}: {gate.verdict()}")
    for result in worst_first(comparison):
        case, decided = result.case, comparison.outcomes[result.case.key]
        # A flip that no budget is set for is no news here.
        if decided.verdict in verdicts and (result.flip is None or comparison.weighs(result)):
            place = {"file": _file(case.dataset, root, base)}
            if case.line and not case.dataset.endswith(".parquet"):
                place["line"] = str(case.line)
            place["title"] = result.flip.words if result.flip else "not judged"
            what = f": {change(result)}" if result.flip else ""
            yield _command(level, place, f"{one_line(case.id, 80)}: {one_line(decided.reason)}{what}")


def _file(dataset: str, root: Path, base: Path) -> str:
    return Path(os.path.relpath(root / dataset, base)).as_posix()


def _command(level: str, properties: Mapping[str, str], message: str) -> str:
    where = ",".join(f"{name}={_property(one_line(value))}" for name, value in properties.items())
    return f"::{level} {where}::{_data(defuse(message))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
