"""Time two workers of pytest-xdist, with one thread each, against one process with two threads.

    pip install pytest-xdist
    python workers.py MODEL GOLDEN.jsonl [--limit N] [--rounds 3] [--workers 2]

Whole runs of pytest in turn, on the CPU, each without a cache: start, loading, evaluation and report. The
answers are compared: any that differ make the exit status 1. Prints the median seconds by the clock and of
the processor, and the load of the machine before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Run:
    """One run of pytest: seconds by the clock and of the processor, and each case's answer."""

    clock: float
    processor: float
    answers: dict[str, object]


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, run both in turn and print the comparison."""
    parser = argparse.ArgumentParser(description="Time workers against one process with as many threads.")
    parser.add_argument("model", help="directory, .gguf file or org/name")
    parser.add_argument("golden", type=Path, help="golden dataset")
    parser.add_argument("--limit", type=int, help="first cases only")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    given = [f"--muscle-old={options.model}", f"--muscle-new={options.model}"]
    given += [f"--muscle-golden={options.golden.resolve()}", "--muscle-device=cpu"]
    given += [f"--muscle-limit={options.limit}"] if options.limit else []
    contestants = {
        f"1 process, {options.workers} threads": ([], options.workers),
        f"{options.workers} workers, 1 thread each": (["-n", str(options.workers)], 1),
    }
    print(f"load before: {load()}")
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, (how, threads) in contestants.items():
            runs[name].append(measure([*given, *how], threads))
    print(f"load after: {load()}")
    sys.exit(not report(runs))


def measure(arguments: list[str], threads: int) -> Run:
    """Run pytest in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pytest", "-q", "--muscle-no-cache", "--muscle-json=result.json"]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True
        )
        clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        result = Path(folder) / "result.json"
        if not result.exists():
            sys.exit(f"error: the run failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        cases = json.loads(result.read_text(encoding="utf-8"))["cases"]
    answers = {case["id"]: case["new"].get("answer") for case in cases}
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(clock, processor, answers)


def report(runs: dict[str, list[Run]]) -> bool:
    """Print the comparison; return whether all answers are the same."""
    first, *others = [run.answers for each in runs.values() for run in each]
    same = all(other == first for other in others)
    print(f"{len(first)} cases; the same answers in all runs: {'yes' if same else 'no'}")
    print(f"{'':24}{'median s':>10}{'min':>8}{'max':>8}{'ratio':>8}{'processor s':>13}")
    reference = statistics.median(run.clock for run in next(iter(runs.values())))
    for name, each in runs.items():
        clocks = [run.clock for run in each]
        median = statistics.median(clocks)
        row = f"{median:10.1f}{min(clocks):8.1f}{max(clocks):8.1f}{median / reference:8.2f}"
        print(f"{name:24}{row}{statistics.median(run.processor for run in each):13.1f}")
    return same


def load() -> str:
    """How many processes wanted a core in the last minute, and how many cores there are."""
    return f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
