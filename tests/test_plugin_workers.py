"""pytest-xdist: its workers divide what the models are asked, and lose nothing when one of them dies."""

import json
from collections import Counter
from pathlib import Path

import pytest

SYSTEM = """
    import os, signal, time
    from pathlib import Path

    WORKER = os.environ.get("PYTEST_XDIST_WORKER", "alone")

    def log(side, case):
        with Path("calls.txt").open("a") as file:
            file.write(f"{side} {WORKER} {case.id}\\n")

    def meet(side):
        began = Path(f"began-{side}-{WORKER}")
        if began.exists():
            return
        began.touch()
        end = time.monotonic() + 20
        while time.monotonic() < end and WORKER != "alone" and len(list(Path().glob(f"began-{side}-*"))) < 2:
            time.sleep(0.01)

    def old(case):
        meet("old")
        log("old", case)
        if case.id == "c5":
            raise OSError("the line is dead")
        return "1" if int(case.id[1:]) % 3 else "0"

    def new(case):
        meet("new")
        if Path("kill").exists() and sum(WORKER in line for line in open("calls.txt")) > 6:
            try:
                Path("kill").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            except FileNotFoundError:
                pass
        log("new", case)
        return "1" if int(case.id[1:]) % 4 else "0"
"""
RUN = ("--muscle-old=python:system:old", "--muscle-new=python:system:new", "--muscle-golden=golden.jsonl")


@pytest.fixture
def project(pytester):
    pytester.makepyfile(system=SYSTEM)
    pytester.makepyprojecttoml("[tool.pytest-muscle.thresholds]\nmax_nfr = 0.5\nmax_error_rate = 0.1\n")
    cases = [{"id": f"c{i}", "prompt": "1?" * (i + 1), "answer": "1"} for i in range(30)]
    (pytester.path / "golden.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    return pytester


def run(project, *arguments):
    """Outcomes, the result without fingerprints, and how often each worker was asked what."""
    outcome = project.runpytest_subprocess(*RUN, *arguments, "--muscle-json=result.json")
    result = json.loads((project.path / "result.json").read_text())
    for side in ("old", "new"):
        del result[side]["fingerprint"]
    calls = project.path / "calls.txt"
    asked = [tuple(line.split()) for line in calls.read_text().splitlines()]
    calls.unlink()
    for path in project.path.glob("began-*"):
        path.unlink()
    return outcome, result, asked


def test_the_result_is_that_of_one_process_and_each_case_is_asked_once(project):
    one, alone, asked_alone = run(project)
    two, shared, asked = run(project, "-n", "2")
    assert two.parseoutcomes() == one.parseoutcomes()
    assert shared == alone
    (failed,) = (case for case in shared["cases"] if case["flip"] is None)
    assert "the line is dead" in failed["old"]["error"]
    assert sorted((side, case) for side, _, case in asked) == sorted((s, c) for s, _, c in asked_alone)
    by_worker = Counter((side, worker) for side, worker, _ in asked)
    assert by_worker.keys() == {(side, worker) for side in ("old", "new") for worker in ("gw0", "gw1")}


def test_a_worker_that_is_killed_loses_nothing(project):
    one, alone, asked_alone = run(project)
    Path(project.path / "kill").touch()
    two, shared, asked = run(project, "-n", "2")
    two.stdout.fnmatch_lines(["*node down: Not properly terminated*"])
    assert two.parseoutcomes() == {**one.parseoutcomes(), "worker": 1}
    assert shared == alone
    assert two.ret == one.ret
    assert sorted((side, case) for side, _, case in asked) == sorted((s, c) for s, _, c in asked_alone)
