"""Time a run on recorded responses against plain pytest with as many trivial tests.

    python recorded_cases.py [--cases 100000] [--rounds 3]

Both are whole pytest processes, in turn: one reads a golden dataset and two recordings, grades, judges a
gate and writes the JSON result; the other has one parametrized test that asserts something true. Of the
cases 4% flip, within the budget. Prints the median CPU and wall seconds, ratios, and the peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

PLAIN = """
import pytest

@pytest.mark.parametrize("number", range({cases}))
def test_trivial(number):
    assert number >= 0
"""
BUDGET = "[tool.pytest-muscle.thresholds]\nmax_nfr = 0.05\n"


@dataclass(slots=True)
class Contestant:
    """A pytest command in a folder, and what its runs cost."""

    folder: Path
    options: list[str]
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    peak: float = 0.0

    def run(self) -> None:
        """Run it once; anything but success ends the benchmark."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *self.options]
        start = time.perf_counter()
        with (self.folder / "output").open("wb") as output:
            actions = [(os.POSIX_SPAWN_DUP2, output.fileno(), 1), (os.POSIX_SPAWN_DUP2, output.fileno(), 2)]
            here = Path.cwd()
            os.chdir(self.folder)
            child = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
            os.chdir(here)
        _, status, usage = os.wait4(child, 0)
        if status:
            sys.exit((self.folder / "output").read_text()[-3000:])
        self.wall.append(time.perf_counter() - start)
        self.cpu.append(usage.ru_utime + usage.ru_stime)
        self.peak = max(self.peak, usage.ru_maxrss / 1024)


def prepare(folder: Path, cases: int) -> dict[str, Contestant]:
    """Write both projects."""
    plain, recorded = folder / "plain", folder / "recorded"
    for each in (plain, recorded):
        each.mkdir()
    (plain / "test_plain.py").write_text(PLAIN.format(cases=cases))
    (plain / "pytest.ini").write_text("[pytest]\n")
    (recorded / "pyproject.toml").write_text(BUDGET)
    with (
        (recorded / "golden.jsonl").open("w") as golden,
        (recorded / "old.jsonl").open("w") as old,
        (recorded / "new.jsonl").open("w") as new,
    ):
        for number in range(cases):
            name = f"case-{number}"
            answer = str(number * 7)
            question = {"id": name, "prompt": f"What is {number} times seven?", "answer": answer}
            print(json.dumps({**question, "tags": {"kind": f"k{number % 5}"}}), file=golden)
            print(json.dumps({"id": name, "text": answer}), file=old)
            print(json.dumps({"id": name, "text": answer if number % 25 else "no idea"}), file=new)
    models = ["--muscle-old=recorded:old.jsonl", "--muscle-new=recorded:new.jsonl"]
    files = ["--muscle-golden=golden.jsonl", "--muscle-json=result.json", "--muscle-no-cache"]
    return {
        "pytest-muscle": Contestant(recorded, [*models, *files]),
        "plain pytest": Contestant(plain, ["-p", "no:muscle"]),
    }


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, run both in turn, print the table."""
    parser = argparse.ArgumentParser(description="Time recorded responses against plain pytest.")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        contestants = prepare(Path(folder), options.cases)
        for _ in range(options.rounds):
            for contestant in contestants.values():
                contestant.run()
        result = json.loads((Path(folder) / "recorded" / "result.json").read_text())
        judged, flips = result["metrics"]["n"], sum(c["flip"] == "negative_flip" for c in result["cases"])
    print(f"{judged:,} cases judged, {flips:,} of them negative flips; Python {sys.version.split()[0]}")
    print(f"{'':16}{'CPU s':>8}{'ratio':>8}{'wall s':>8}{'ratio':>8}{'peak MiB':>10}")
    baseline = contestants["plain pytest"]
    for name, each in contestants.items():
        ratios = [
            statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in ((each.cpu, baseline.cpu), (each.wall, baseline.wall))
        ]
        cpu, wall = statistics.median(each.cpu), statistics.median(each.wall)
        print(f"{name:16}{cpu:8.1f}{ratios[0]:8.2f}{wall:8.1f}{ratios[1]:8.2f}{each.peak:10.0f}")


if __name__ == "__main__":
    main()
