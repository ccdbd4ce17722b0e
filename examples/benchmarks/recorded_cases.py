"""Time a run on recorded responses against plain pytest with as many trivial tests.

    python recorded_cases.py [--cases 100000] [--rounds 3] [--choices] [--profile]

Both are whole pytest processes, in turn: one reads a golden dataset and two recordings, grades, judges a
gate and writes the JSON result; the other has one parametrized test that asserts something true. Of the
cases, texts or with ``--choices`` log-likelihoods of four choices, 4% flip, within the budget; that it is so
many is checked. Prints the median CPU and wall seconds, ratios, and the peak memory. ``--profile`` adds the
shares of what this package does, in one more run.
"""

from __future__ import annotations

import argparse
import json
import os
import pstats
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

Record = dict[str, Any]

PLAIN = """
import pytest

@pytest.mark.parametrize("number", range({cases}))
def test_trivial(number):
    assert number >= 0
"""
# One of so many cases flips.
FLIPPING = 25

# What a run does beside running tests: where it is done.
STEPS = {
    "reading the golden dataset": ("golden.py", "read_golden"),
    "reading the recordings": ("recorded.py", "respond"),
    "grading": ("grading.py", "grade"),
    "judging flips, metrics and gates": ("comparison.py", "outcomes"),
    "writing the JSON result": ("files.py", "write_files"),
}
BUDGET = "[tool.pytest-muscle.thresholds]\nmax_nfr = 0.05\n"


@dataclass(slots=True)
class Contestant:
    """A pytest command in a folder, and what its runs cost."""

    folder: Path
    options: list[str]
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    peak: float = 0.0

    def run(self, *under: str) -> None:
        """Run it once, ``under`` another module if one is given; anything but success ends the benchmark."""
        command = [sys.executable, *under, "-m", "pytest", "-q", "-p", "no:cacheprovider", *self.options]
        start = time.perf_counter()
        with (self.folder / "output").open("wb") as output:
            actions = [(os.POSIX_SPAWN_DUP2, output.fileno(), 1), (os.POSIX_SPAWN_DUP2, output.fileno(), 2)]
            here = Path.cwd()
            os.chdir(self.folder)
            # Other plugins would slow down both sides, and so bring them nearer to each other.
            alone = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
            child = os.posix_spawn(sys.executable, command, alone, file_actions=actions)
            os.chdir(here)
        _, status, usage = os.wait4(child, 0)
        if status:
            sys.exit((self.folder / "output").read_text()[-3000:])
        self.wall.append(time.perf_counter() - start)
        self.cpu.append(usage.ru_utime + usage.ru_stime)
        self.peak = max(self.peak, usage.ru_maxrss / 1024)


def prepare(folder: Path, cases: int, *, choices: bool) -> dict[str, Contestant]:
    """Write both projects."""
    record = choice_case if choices else text_case
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
            identity = {"id": f"case-{number}"}
            asked, right, wrong = record(number)
            print(json.dumps({**identity, **asked, "tags": {"kind": f"k{number % 5}"}}), file=golden)
            print(json.dumps({**identity, **right}), file=old)
            print(json.dumps({**identity, **(right if number % FLIPPING else wrong)}), file=new)
    models = ["--muscle-old=recorded:old.jsonl", "--muscle-new=recorded:new.jsonl"]
    files = ["--muscle-golden=golden.jsonl", "--muscle-json=result.json", "--muscle-no-cache"]
    return {
        "pytest-muscle": Contestant(recorded, ["-p", "pytest_muscle.plugin", *models, *files]),
        "plain pytest": Contestant(plain, []),
    }


def text_case(number: int) -> tuple[Record, Record, Record]:
    """A question, a right and a wrong response."""
    answer = str(number * 7)
    asked = {"prompt": f"What is {number} times seven?", "answer": answer}
    return asked, {"text": answer}, {"text": "no idea"}


def choice_case(number: int) -> tuple[Record, Record, Record]:
    """The same with four choices, the right one anywhere among them."""
    right = number % 4
    values = [-7.5 - number % 10, -8.25, -9.125, -6.5]
    asked = {
        "prompt": f"What is {number} times seven?",
        "choices": [str(number * 7 + i - right) for i in range(4)],
        "answer": right,
    }
    best = [value if i != right else -1.5 for i, value in enumerate(values)]
    worst = [value if i != right else -99.5 for i, value in enumerate(values)]
    return asked, {"loglikelihoods": best}, {"loglikelihoods": worst}


def print_profile(contestant: Contestant) -> None:
    """The shares of the package's steps in one more run; the profiler makes all of it slower."""
    place = contestant.folder / "profile"
    contestant.run("-m", "cProfile", "-o", str(place))
    stats: Any = pstats.Stats(str(place))
    whole = stats.total_tt
    found = {(Path(file).name, name): seen for (file, _, name), seen in stats.stats.items()}
    for step, where in STEPS.items():
        print(f"{found[where][3] / whole:6.1%}  {step}")
    own = sum(seen[2] for (file, _, _), seen in stats.stats.items() if "pytest_muscle" in file)
    print(f"{own / whole:6.1%}  lines of this package, all of its steps together")


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, run both in turn, print the table."""
    parser = argparse.ArgumentParser(description="Time recorded responses against plain pytest.")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--choices", action="store_true", help="log-likelihoods instead of texts")
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        contestants = prepare(Path(folder), options.cases, choices=options.choices)
        for _ in range(options.rounds):
            for contestant in contestants.values():
                contestant.run()
        result = json.loads((Path(folder) / "recorded" / "result.json").read_text())
        judged, flips = result["metrics"]["n"], sum(c["flip"] == "negative_flip" for c in result["cases"])
        if judged != options.cases or flips != len(range(0, options.cases, FLIPPING)):
            sys.exit(f"error: {judged} of {options.cases} cases judged, {flips} flips found")
        print_table(contestants, judged, flips)
        if options.profile:
            print_profile(contestants["pytest-muscle"])


def print_table(contestants: Mapping[str, Contestant], judged: int, flips: int) -> None:
    """Medians, the ratios of the rounds and the peak memory."""
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
