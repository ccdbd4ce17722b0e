"""What GitHub Actions is told: annotations at the golden records, in bounded number, and no others."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_muscle.comparison import Comparison
from pytest_muscle.errors import MuscleError
from pytest_muscle.flips import Flip
from pytest_muscle.reports.github import append_summary, commands, defuse, is_github
from pytest_muscle.reports.markdown import render_markdown

COMMAND = re.compile(r"::(error|warning|notice) ([^:\n]*)::([^\r\n]*)")


def parsed(lines: list[str]) -> list[tuple[str, dict[str, str], str]]:
    """Read commands as the runner does."""
    matches = [COMMAND.fullmatch(line) for line in lines]
    assert all(matches), lines
    return [
        (match[1], dict(each.split("=", 1) for each in match[2].split(",")), match[3])
        for match in matches
        if match
    ]


def test_points_at_the_line_of_the_golden_record(mixed: Comparison, tmp_path: Path) -> None:
    told = parsed(commands(mixed, tmp_path / "sub", {"GITHUB_WORKSPACE": str(tmp_path)}))
    gate, *rest = [each for each in told if each[0] == "error"]
    assert gate[1] == {"file": "sub/golden.jsonl", "title": "gate[max_nfr] failed"}
    lines = {result.case.id: result.case.line for result in mixed.results}
    for _, properties, message in rest[:-1]:
        case = message.split("%3A")[0].split(":")[0]
        assert properties["file"] == "sub/golden.jsonl"
        assert int(properties["line"]) == lines[case]


def test_ten_of_a_level_and_the_rest_counted(mixed: Comparison, tmp_path: Path) -> None:
    told = parsed(commands(mixed, tmp_path, {}))
    errors = [each for each in told if each[0] == "error"]
    verdicts = [str(each.verdict) for each in mixed.outcomes.values()]
    total = 1 + verdicts.count("failed") + verdicts.count("error")
    assert total > 10
    assert len(errors) == 10
    assert errors[-1][2] == f"... and {total - 9} more like these"
    assert len([each for each in told if each[0] == "warning"]) == verdicts.count("tolerated")
    assert not [each for each in told if each[0] == "notice"]


def test_flip_without_a_budget_is_no_news(mixed: Comparison, tmp_path: Path) -> None:
    planned = [gate for gate in mixed.planned if gate.name == "max_nfr"]
    told = parsed(commands(replace(mixed, planned=planned), tmp_path, {}))
    assert {level for level, _, _ in told} == {"error"}
    assert mixed.of(Flip.INCONSISTENCY)


def test_hostile_text_forges_nothing(hostile: Comparison, tmp_path: Path) -> None:
    lines = commands(hostile, tmp_path, {})
    told = parsed(lines)
    assert len(told) == 5
    for line, (_, properties, message) in zip(lines, told, strict=True):
        assert "\n" not in line
        assert "\r" not in line
        assert "\x1b" not in line
        assert set(properties) <= {"file", "line", "title"}
        assert len(message) < 2000
        assert "%0A::error" not in message.replace("%250A", "")


def test_names_cannot_end_a_property(build: Any, tmp_path: Path) -> None:
    case = {"id": "a", "prompt": "?", "answer": "x", "tags": {"t": "a:b,c%"}}
    slices = {"t=a:b,c%": {"max_nfr": 0.0}}
    comparison = build([case], [{"text": "x"}], [{"text": "y"}], thresholds={"slices": slices})
    (gate, _) = parsed(commands(comparison, tmp_path, {}))
    title = gate[1]["title"].replace("%3A", ":").replace("%2C", ",").replace("%25", "%")
    assert title == "gate[t=a:b,c%:max_nfr] failed"


@given(st.text(alphabet=":#[ \nerror%0A", max_size=40))
def test_log_has_no_command_in_it(text: str) -> None:
    for line in defuse(text).split("\n"):
        assert not line.lstrip().startswith("::")
        assert "##[" not in line


def test_log_stays_readable() -> None:
    assert defuse("std::vector # [x]") == "std::vector # [x]"
    assert defuse("  ::error::x\n##[group]y") == "  \\x3a:error::x\n#\\x23[group]y"


def test_summary_is_appended(mixed: Comparison, tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    path.write_text("before\n")
    append_summary(mixed, {"GITHUB_STEP_SUMMARY": str(path)})
    assert path.read_text("utf-8") == "before\n" + render_markdown(mixed)


def test_summary_that_cannot_be_written_is_an_error_that_says_where(
    mixed: Comparison, tmp_path: Path
) -> None:
    with pytest.raises(MuscleError, match=r"GITHUB_STEP_SUMMARY .* cannot be written"):
        append_summary(mixed, {"GITHUB_STEP_SUMMARY": str(tmp_path)})


@pytest.mark.parametrize(("environment", "found"), [({}, False), ({"GITHUB_ACTIONS": "true"}, True)])
def test_is_known_by_its_environment(environment: dict[str, Any], found: bool) -> None:
    assert is_github(environment) is found
