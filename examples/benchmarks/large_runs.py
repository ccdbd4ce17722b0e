"""Run what is large once, and print how long it took and how much memory it needed.

    python large_runs.py responses [--cases 20000] [--characters 100000]
    python large_runs.py gates [--gates 20000]
    python large_runs.py history [--runs 1000]

``responses`` judges two recordings of long texts, each about cases x characters bytes, and writes the HTML
report. ``gates`` gives every case a slice and every slice a budget. ``history`` appends runs of 480 cases and
draws their trend.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from recorded_cases import Contestant

RUN = [
    *("-p", "pytest_muscle.plugin"),
    "--muscle-old=recorded:old.jsonl",
    "--muscle-new=recorded:new.jsonl",
    "--muscle-golden=golden.jsonl",
    "--muscle-report=report.html",
    "--muscle-no-cache",
]


def timed(folder: Path, cases: int) -> None:
    """Run pytest on the project in ``folder`` once and print what it cost."""
    contestant = Contestant(folder, RUN)
    contestant.run()
    told = (folder / "output").read_text().strip().splitlines()[-1]
    print(
        f"{cases:,} cases: {contestant.cpu[0]:.1f} s of CPU, {contestant.wall[0]:.1f} s by the clock, ",
        end="",
    )
    print(f"{contestant.peak:,.0f} MiB at most; report of {size(folder / 'report.html'):,.1f} MB; {told}")


def size(path: Path) -> float:
    """Return a file's size in MB."""
    return path.stat().st_size / 1e6


def write(path: Path, line: Callable[[int], object], count: int) -> None:
    """Write ``count`` records, one a line."""
    with path.open("w") as file:
        file.writelines(json.dumps(line(number)) + "\n" for number in range(count))


def responses(folder: Path, options: argparse.Namespace) -> None:
    """Judge long texts whose last line holds the answer; 1% flip."""
    filler = ("thinking aloud " * (options.characters // 15 + 1))[: options.characters]
    asked = {"extract": "A: (.*)", "prompt": "?"}
    write(folder / "golden.jsonl", lambda i: {"id": f"c{i}", "answer": str(i), **asked}, options.cases)
    for side, wrong in (("old", 0), ("new", 100)):
        write(
            folder / f"{side}.jsonl",
            lambda i, wrong=wrong: {  # type: ignore[misc]
                "id": f"c{i}",
                "text": f"{filler}\nA: {'?' if wrong and i % wrong == 0 else i}",
            },
            options.cases,
        )
    (folder / "pyproject.toml").write_text("[tool.pytest-muscle.thresholds]\nmax_nfr = 0.05\n")
    print(f"two recordings of {size(folder / 'new.jsonl') / 1000:.2f} GB")
    timed(folder, options.cases)


def gates(folder: Path, options: argparse.Namespace) -> None:
    """Judge as many budgets as there are cases."""
    record = {"prompt": "?", "answer": "1"}
    write(
        folder / "golden.jsonl",
        lambda i: {"id": f"c{i}", "tags": {"part": str(i)}, **record},
        options.gates,
    )
    for side in ("old", "new"):
        write(folder / f"{side}.jsonl", lambda i: {"id": f"c{i}", "text": "1"}, options.gates)
    budgets = [f'slices."part={i}" = {{max_nfr = 0.5}}\n' for i in range(options.gates)]
    (folder / "pyproject.toml").write_text("[tool.pytest-muscle.thresholds]\n" + "".join(budgets))
    timed(folder, options.gates)


def history(folder: Path, options: argparse.Namespace) -> None:
    """Append runs to a history, and draw it."""
    from pytest_muscle import compare

    record = {"prompt": "?", "answer": "1"}
    write(folder / "golden.jsonl", lambda i: {"id": f"c{i}", "tags": {"part": str(i % 8)}, **record}, 480)
    for side, wrong in (("old", 11), ("new", 7)):
        write(
            folder / f"{side}.jsonl",
            lambda i, wrong=wrong: {"id": f"c{i}", "text": str(int(i % wrong > 0))},  # type: ignore[misc]
            480,
        )

    def run(**files: str) -> float:
        start = time.perf_counter()
        models = (f"recorded:{folder / side}.jsonl" for side in ("old", "new"))
        compare(*models, folder / "golden.jsonl", no_cache=True, **files)
        return time.perf_counter() - start

    trend = folder / "runs.jsonl"
    seconds = [run(history=str(trend)) for _ in range(options.runs)]
    alone = run(report=str(folder / "alone.html"))
    drawn = run(history=str(trend), report=str(folder / "report.html"))
    print(f"{options.runs:,} runs: {size(trend):.2f} MB; ", end="")
    print(f"the first ten took {sum(seconds[:10]):.2f} s, the last ten {sum(seconds[-10:]):.2f} s; ", end="")
    print(f"one with the report {drawn:.2f} s with the trend and {alone:.2f} s without")


WORK = {"responses": responses, "gates": gates, "history": history}


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and do the work."""
    parser = argparse.ArgumentParser(description="Run what is large once.")
    parser.add_argument("work", choices=list(WORK))
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--characters", type=int, default=100_000)
    parser.add_argument("--gates", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=1_000)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        WORK[options.work](Path(folder), options)


if __name__ == "__main__":
    main(sys.argv[1:])
