"""The paper's experiment in miniature.

    python run.py smoke                        # every part once, in minutes
    python run.py full                         # the figures in README.md; stopped, it goes on later
    python run.py cell SCENARIO PAIR VARIANT   # one cell
    python run.py tables                       # the tables and the plot

What has been made is kept in ``work`` (``--work``): a cell that is there is not computed again. Each finished
cell is a line of ``results/PROFILE.jsonl`` (``--results``).
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tables
from variants import PROFILES, VARIANTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from variants import Profile

HERE = Path(__file__).parent


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, run what it names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    commands = parser.add_subparsers(dest="command", required=True)
    for name in PROFILES:
        commands.add_parser(name)
    cell = commands.add_parser("cell")
    for name in ("scenario", "pair", "variant"):
        cell.add_argument(name)
    commands.add_parser("tables").add_argument("profile", nargs="?", default="full", choices=PROFILES)
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    if options.command == "tables":
        print(tables.write(options.results / f"{options.profile}.jsonl"))
    elif options.command == "cell":
        chosen = options.scenario, options.pair, VARIANTS[options.variant]
        print(json.dumps(compute(PROFILES["full"], options.work, *chosen), indent=1))
    else:
        run(options.command, PROFILES[options.command], options.work, options.results)


def run(name: str, profile: Profile, work: Path, results: Path) -> None:
    """Compute a profile's cells, scenario by scenario, and write those done after each."""
    done = []
    for scenario, pair, variant in cells(profile):
        began = time.process_time()
        done.append(compute(profile, work / name, scenario, pair, VARIANTS[variant]))
        seconds = time.process_time() - began
        print(f"{tables.line(done[-1])}  {seconds:5.1f} s", flush=True)
        results.mkdir(parents=True, exist_ok=True)
        lines = "".join(f"{json.dumps(cell)}\n" for cell in done)
        (results / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def cells(profile: Profile) -> Iterator[tuple[str, str, str]]:
    """Scenario, pair and variant, in the order in which they are computed."""
    for scenario, variants in profile.grid.items():
        for pair in profile.pairs:
            for variant in variants:
                yield scenario, pair, variant


def compute(profile: Profile, work: Path, scenario: str, pair: str, variant: Any) -> dict[str, Any]:
    """One cell."""
    import torch
    from experiment import SCENARIOS, Bench

    torch.set_num_threads(1)
    return Bench(pair, work, profile.scale).cell(SCENARIOS[scenario], variant)


if __name__ == "__main__":
    main()
