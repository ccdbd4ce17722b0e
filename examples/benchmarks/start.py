"""Time the start of a pytest run that has the plugin installed and does not use it.

    python start.py [--rounds 20]

Makes two virtual environments, one with pytest alone and one with the plugin beside it (without what else it
needs, which such a run does not import). Each round runs pytest on one empty test four times: with the
plugin, without it twice, and with it, so that what depends on the order cancels out. All runs share one
processor. Prints the median of the rounds' differences and their middle half, in milliseconds of CPU time
and by the clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
import venv
from importlib.metadata import version
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

PLUGIN = Path(__file__).parents[2]
ORDER = ("with", "without", "without", "with")
# Compiled modules are kept, as they are for users.
KEPT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def environment(folder: Path, *more: str) -> Path:
    """Make a virtual environment with this pytest, and more; return its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    for what in ([f"pytest=={version('pytest')}"], *([["--no-deps", each] for each in more])):
        subprocess.run([python, "-m", "pip", "install", "-q", *what], check=True)
    return python


def timed(folder: Path, python: Path) -> tuple[float, float]:
    """Run pytest once; return its seconds of CPU time and by the clock."""
    before, began = getrusage(RUSAGE_CHILDREN), time.perf_counter()
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    subprocess.run(command, cwd=folder, env=KEPT, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, getrusage(RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, run both in turn, print what the plugin adds."""
    parser = argparse.ArgumentParser(description="Time the start of a run that does not use the plugin.")
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args(arguments)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    added: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "tests"
        folder.mkdir()
        (folder / "test_empty.py").write_text("def test_empty():\n    pass\n")
        (folder / "pytest.ini").write_text("[pytest]\n")
        sides = {
            "with": environment(Path(name) / "with", str(PLUGIN)),
            "without": environment(Path(name) / "without"),
        }
        for python in sides.values():
            timed(folder, python)
        for _ in range(options.rounds):
            first, *without, last = (timed(folder, sides[side]) for side in ORDER)
            used, bare = (first, last), without
            cpu, wall = (sum(run[i] for run in used) / 2 - sum(run[i] for run in bare) / 2 for i in range(2))
            added.append((cpu, wall))
    for what, differences in zip(("CPU time", "the clock"), zip(*added, strict=True), strict=True):
        low, median, high = (1000 * each for each in statistics.quantiles(differences, n=4))
        print(f"the plugin adds {median:.1f} ms of {what} ({low:.1f} to {high:.1f}), {len(added)} rounds")


if __name__ == "__main__":
    main()
