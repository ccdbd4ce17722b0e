"""The paper's experiment in miniature.

    python run.py smoke                        # every part once, in minutes
    python run.py full                         # the figures in README.md; stopped, it goes on later
    python run.py cell SCENARIO PAIR VARIANT   # one cell
    python run.py tables [NAME]                # the tables and the plot; replications, round1: earlier ones

What has been made is kept in ``work`` (``--work``): a cell that is there is not computed again. Each finished
cell is a line of ``PROFILE.jsonl`` in there. ``tables`` reads the figures that README.md tells of, in
``results``, or those in another folder (``--results work``).
"""

from __future__ import annotations

import argparse
import json
import os
import time
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import tables
import torch
from experiment import SCENARIOS, Bench
from variants import PROFILES, VARIANTS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from variants import Profile

HERE = Path(__file__).parent
TABLES = ("full", "replications", "round1", "smoke")


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, run what it names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="what tables reads")
    parser.add_argument(
        "--pair",
        action="append",
        help="only this pair (may be repeated): several processes may share the work",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in PROFILES:
        commands.add_parser(name)
    cell = commands.add_parser("cell")
    for name in ("scenario", "pair", "variant"):
        cell.add_argument(name)
    commands.add_parser("tables").add_argument("profile", nargs="?", default="full", choices=TABLES)
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    if options.command == "tables":
        print(tables.write(options.results / f"{options.profile}.jsonl"))
    elif options.command == "cell":
        owner = bench(PROFILES["full"], options.work / "full", options.pair)
        cell = owner.cell(SCENARIOS[options.scenario], VARIANTS[options.variant])
        print(json.dumps(cell, indent=1))
    else:
        profile = PROFILES[options.command]
        run(options.command, profile, options.work, options.pair or profile.pairs)


def run(name: str, profile: Profile, work: Path, pairs: Collection[str]) -> None:
    """Compute a profile's cells, scenario by scenario, and write those that are there after each."""
    for scenario, pair, variant in cells(profile):
        if pair in pairs:
            began = time.process_time()
            cell = bench(profile, work / name, pair).cell(SCENARIOS[scenario], VARIANTS[variant])
            print(f"{tables.line(cell)}  {time.process_time() - began:5.1f} s", flush=True)
            collect(profile, work / name, work / f"{name}.jsonl")


def cells(profile: Profile) -> Iterator[tuple[str, str, str]]:
    """Scenario, pair and variant, in the order in which they are computed."""
    for scenario, variants in profile.grid:
        for pair in profile.pairs:
            for variant in variants:
                yield scenario, pair, variant


def collect(profile: Profile, work: Path, results: Path) -> None:
    """Write all cells that are there, one a line, whole or not at all."""
    files = (
        bench(profile, work, pair).cell_file(SCENARIOS[scenario], VARIANTS[variant])
        for scenario, pair, variant in cells(profile)
    )
    lines = [f"{file.read_text(encoding='utf-8')}\n" for file in files if file.is_file()]
    unfinished = results.with_name(f"{results.name}.{os.getpid()}")
    unfinished.write_text("".join(lines), encoding="utf-8")
    unfinished.replace(results)


@cache
def bench(profile: Profile, work: Path, pair: str) -> Bench:
    """A pair's bench, which remembers comparisons."""
    return Bench(pair, work, profile.scale)


if __name__ == "__main__":
    main()
