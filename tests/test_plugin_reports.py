"""Runs of pytest that leave something behind: reports, accepted flips, history, annotations."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ACCEPTED = "muscle-accepted.toml"


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_WORKSPACE"):
        monkeypatch.delenv(name, raising=False)


class Project:
    """A folder with a golden dataset of eight cases, two recordings and a pyproject.toml."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.path = pytester.path
        self.write("golden.jsonl", [{"id": f"c{i}", "prompt": "?", "answer": "yes"} for i in range(8)])
        self.answers("old", *["yes"] * 6, "no", "no")
        self.answers("new", "yes", "yes", "no", "no", "yes", "yes", "yes", "never")
        self.configure()

    def write(self, name: str, records: list[dict[str, Any]]) -> None:
        (self.path / name).write_text("".join(json.dumps(record) + "\n" for record in records))

    def answers(self, side: str, *texts: str) -> None:
        self.write(f"{side}.jsonl", [{"id": f"c{i}", "text": text} for i, text in enumerate(texts)])

    def configure(self, lines: str = "", thresholds: str = "") -> None:
        table = (
            f'[tool.pytest-muscle]\nold = "recorded:old.jsonl"\nnew = "recorded:new.jsonl"\n'
            f'golden = ["golden.jsonl"]\n{lines}\n'
        )
        if thresholds:
            table += f"[tool.pytest-muscle.thresholds]\n{thresholds}\n"
        (self.path / "pyproject.toml").write_text(table)

    def run(self, *arguments: str) -> pytest.RunResult:
        return self.pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)

    def accepted(self) -> list[dict[str, Any]]:
        return tomllib.loads((self.path / ACCEPTED).read_text("utf-8"))["accepted"]  # type: ignore[no-any-return]

    def explain(self, reason: str) -> None:
        path = self.path / ACCEPTED
        path.write_text(path.read_text("utf-8").replace('reason = ""', f'reason = "{reason}"'))


@pytest.fixture
def project(pytester: pytest.Pytester) -> Project:
    return Project(pytester)


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_run_leaves_every_report(
    project: Project, workers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path / "summary.md"))
    project.configure(thresholds="max_nfr = 0.5")
    names = {"json": "out/r.json", "report": "out/r.html", "markdown": "out/r.md", "history": "out/h.jsonl"}
    files = [f"--muscle-{option}={name}" for option, name in names.items()]
    run = project.run(*workers, "--junitxml=j.xml", "--muscle-accept", *files)
    result = json.loads((project.path / "out/r.json").read_text())
    assert result["metrics"]["nfr"] == 0.25
    page = (project.path / "out/r.html").read_text("utf-8")
    assert '<data value="0.25" data-at="/datasets/golden.jsonl/metrics/nfr">25.00%</data>' in page
    assert "| <code>golden.jsonl</code> | 8 |" in (project.path / "out/r.md").read_text("utf-8")
    (line,) = (project.path / "out/h.jsonl").read_text().splitlines()
    assert json.loads(line)["metrics"] == result["metrics"]
    tests = {case.get("name"): case for case in ElementTree.parse(project.path / "j.xml").iter("testcase")}
    assert len(tests) == 9
    told = {each.get("name"): each.get("value") for each in tests["c2"].iter("property")}
    assert (told["flip"], told["outcome"], told["old"], told["new"]) == (
        "negative_flip",
        "accepted",
        "yes",
        "no",
    )
    gate = {each.get("name"): each.get("value") for each in tests["gate[max_nfr]"].iter("property")}
    assert (gate["value"], gate["limit"]) == ("0.0", "0.5")
    assert [entry["id"] for entry in project.accepted()] == ["c2", "c3"]
    told_github = [line.partition(",title")[0] for line in run.outlines if line.startswith("::")]
    assert told_github == [f"::notice file=golden.jsonl,line={line}" for line in (3, 4)]
    assert (project.path / "summary.md").read_text("utf-8").count("## pytest-muscle: ✅ passed") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_a_failure_is_as_wide_as_the_terminal(project: Project, workers: tuple[str, ...]) -> None:
    project.write("golden.jsonl", [{"id": "c2", "prompt": "word " * 100, "answer": "yes"}])
    shown = in_terminal([sys.executable, "-m", "pytest", *workers], project.path, columns=60)
    lines = [line.rstrip() for line in shown.splitlines() if "word word" in line]
    assert sum(line.count("word") for line in lines) == 100
    assert max(map(len, lines)) in range(55, 61)


def in_terminal(command: list[str], folder: Path, columns: int) -> str:
    """What a command prints that finds itself on a terminal."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen(command, cwd=folder, stdout=theirs, stderr=theirs, env=environment) as running:
        os.close(theirs)
        chunks = []
        # Linux ends a terminal that nobody holds any more with an error.
        with suppress(OSError):
            while chunk := os.read(ours, 65536):
                chunks.append(chunk)
    os.close(ours)
    assert running.returncode == 1
    return b"".join(chunks).decode()


def test_accepting_makes_todays_flips_expected(project: Project) -> None:
    project.run().assert_outcomes(passed=5, failed=3)
    first = project.run("--muscle-accept")
    first.assert_outcomes(passed=5, xfailed=3)
    first.stdout.fnmatch_lines(["*3 accepted flips have no reason yet*"])
    flips = [(entry["id"], entry["flip"], entry["reason"]) for entry in project.accepted()]
    assert flips == [
        ("c2", "negative_flip", ""),
        ("c3", "negative_flip", ""),
        ("c7", "inconsistency_flip", ""),
    ]
    project.explain("the truth is wrong")
    result = project.run("-rx")
    result.assert_outcomes(passed=5, xfailed=3)
    result.stdout.fnmatch_lines(["*c2*negative flip, accepted: the truth is wrong*"])
    assert result.ret == 0


def test_flip_is_accepted_for_one_answer_only(project: Project) -> None:
    project.run("--muscle-accept")
    project.explain("known")
    project.answers("new", "yes", "yes", "NO!", "no", "yes", "yes", "yes", "no")
    result = project.run()
    result.assert_outcomes(passed=6, failed=1, xfailed=1)
    result.stdout.fnmatch_lines(
        [
            "*golden.jsonl::c2 can go: the new answer has changed*",
            "*golden.jsonl::c7 can go: the case flips no more*",
        ]
    )
    project.run("--muscle-accept")
    assert [(entry["id"], entry["reason"]) for entry in project.accepted()] == [("c2", ""), ("c3", "known")]


def test_strictness_fails_lines_that_can_go_or_say_nothing(project: Project) -> None:
    project.configure("strict_accepted = true")
    project.run("--muscle-accept").assert_outcomes(passed=5, xfailed=3, failed=1)
    project.explain("known")
    project.run().assert_outcomes(passed=6, xfailed=3)
    project.answers("new", "yes", "yes", "yes", "no", "yes", "yes", "yes", "never")
    result = project.run()
    result.assert_outcomes(passed=6, xfailed=2, failed=1)
    result.stdout.fnmatch_lines(["*golden.jsonl::c2 can go: the case flips no more*"])


def test_accepted_flip_is_shown_in_the_rates_and_spares_the_budget(project: Project) -> None:
    project.configure(thresholds="max_nfr = 0.2")
    project.run().assert_outcomes(passed=5, failed=3, xfailed=1)
    project.run("--muscle-accept", "-k", "c2 or gate")
    assert [entry["id"] for entry in project.accepted()] == ["c2"]
    result = project.run("--muscle-json=r.json")
    result.assert_outcomes(passed=6, xfailed=3)
    told = json.loads((project.path / "r.json").read_text())
    assert told["metrics"]["nfr"] == 0.25
    assert (told["gates"][0]["value"], told["gates"][0]["accepted"]) == (0.125, 1)
    assert {case["id"]: case["outcome"] for case in told["cases"]}["c2"] == "accepted"


def test_flip_that_no_budget_is_set_for_needs_no_acceptance(project: Project) -> None:
    project.configure(thresholds="max_nfr = 0.0")
    project.run("--muscle-accept")
    assert [entry["id"] for entry in project.accepted()] == ["c2", "c3"]


def test_expired_flip_fails_again(project: Project) -> None:
    project.run("--muscle-accept")
    path = project.path / ACCEPTED
    text = re.sub(r"(?m)^date = .*", "date = 2020-01-01\nexpires = 2020-02-01", path.read_text("utf-8"))
    path.write_text(text)
    result = project.run()
    result.assert_outcomes(passed=5, failed=3)
    result.stdout.fnmatch_lines(["*golden.jsonl::c2 can go: it expired after 2020-02-01*"])


def test_case_that_is_gone_leaves_a_line_that_can_go(project: Project) -> None:
    project.run("--muscle-accept")
    project.write("golden.jsonl", [{"id": f"c{i}", "prompt": "?", "answer": "yes"} for i in range(3)])
    project.run("--muscle-limit=2").stdout.no_fnmatch_line("*c3 can go*")
    project.run("-k", "c0").stdout.fnmatch_lines(["*golden.jsonl::c3 can go: there is no such case*"])
    project.run("--muscle-accept")
    assert [entry["id"] for entry in project.accepted()] == ["c2"]


def test_broken_file_is_an_error_that_says_where(project: Project) -> None:
    (project.path / ACCEPTED).write_text("[[accepted]]\nid = 7\n")
    result = project.run()
    assert result.ret != 0
    assert (
        f"{ACCEPTED}: [[accepted]] entry 1: 'dataset' is missing" in result.stdout.str() + result.stderr.str()
    )


def test_history_grows_by_whole_runs_only(project: Project) -> None:
    for _ in range(2):
        project.run("--muscle-history=h.jsonl", "--muscle-report=r.html")
    project.run("--muscle-history=h.jsonl", "-k", "c1").stdout.fnmatch_lines(
        ["*not added to the history: 7 cases*"]
    )
    assert len((project.path / "h.jsonl").read_text().splitlines()) == 2
    assert "trend over 2 runs" in (project.path / "r.html").read_text("utf-8")


def test_github_is_told(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(project.path / "summary.md"))
    result = project.run()
    told = [line for line in result.outlines if line.startswith("::")]
    assert [line.partition("::c")[0] for line in told] == [
        "::error file=golden.jsonl,line=3,title=negative flip",
        "::error file=golden.jsonl,line=4,title=negative flip",
        "::error file=golden.jsonl,line=8,title=inconsistency flip",
    ]
    assert (project.path / "summary.md").read_text("utf-8").count("## pytest-muscle: ❌ failed") == 1


def test_elsewhere_nothing_is_annotated(project: Project) -> None:
    assert not [line for line in project.run().outlines if line.startswith("::")]


HOSTILE = (
    "x\n::error::forged\n##[error]forged\n\x1b[31m</testcase>&<![CDATA[ ]]> \ud800 \x00 \u202e"
    + "y" * 100_000
)


def test_hostile_text_is_inert_in_log_and_junit(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    cases = [
        {"id": f"{i}{HOSTILE}", "prompt": HOSTILE, "answer": HOSTILE, "tags": {"t": HOSTILE}}
        for i in range(2)
    ]
    project.write("golden.jsonl", cases)
    for side, said in (("old", HOSTILE), ("new", HOSTILE + "!")):
        project.write(f"{side}.jsonl", [{"id": case["id"], "text": said} for case in cases])
    result = project.run("-v", "--junitxml=j.xml", "--muscle-accept", "--muscle-json=r.json", "-rA")
    result.assert_outcomes(xfailed=2)
    (project.path / ACCEPTED).unlink()
    failed = project.run("-v", "--junitxml=k.xml", "-rA")
    failed.assert_outcomes(failed=2)
    for each in (result, failed):
        log = each.stdout.str()
        assert "\x1b" not in log
        assert "##[" not in log
        commands = [line for line in log.splitlines() if line.lstrip().startswith("::")]
        assert all(
            line.startswith(("::error file=golden.jsonl", "::notice file=golden.jsonl")) for line in commands
        )
    for name in ("j.xml", "k.xml"):
        assert len(list(ElementTree.parse(project.path / name).iter("testcase"))) == 2


def test_file_that_cannot_be_written_fails_the_run_and_says_so(project: Project) -> None:
    (project.path / "folder").mkdir()
    result = project.run("--muscle-report=folder")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "folder: cannot be written" in result.stdout.str() + result.stderr.str()
    assert not list(Path(project.path).glob(".folder.*"))
