"""What the benchmarks share: interleaved rounds, the machine's products as a floor, a table."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import nn

from pytest_muscle.models.local.cores import Threads

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping, Sequence

T = TypeVar("T")

HERE = "pytest-muscle"
FLOOR = "the floor"

# CPU seconds over which a rate is taken.
_WINDOW = 0.3

# Operations in a profile.
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds that one contestant took in one round, of its processor and of the clock."""

    cpu: float
    wall: float


Round = dict[str, Run]


@dataclass(slots=True)
class Contestant(Generic[T]):
    """One side of a benchmark; keeps its last answer, and how many tokens went through its model for it."""

    run: Callable[[], T]
    model: nn.Module | None = None
    answer: T | None = None
    _passes: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """The tokens of the last run."""
        return sum(self._passes)

    def timed(self) -> Run:
        """Run once; return how long it took."""
        self._passes.clear()
        counter = self.model and self.model.register_forward_pre_hook(self._count, with_kwargs=True)
        cpu, wall = time.process_time(), time.perf_counter()
        self.answer = self.run()
        taken = Run(time.process_time() - cpu, time.perf_counter() - wall)
        if counter:
            counter.remove()
        return taken

    def _count(
        self, _: nn.Module, positional: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor]
    ) -> None:
        # Appended rather than added up: several threads may run the model.
        self._passes.append((positional[0] if positional else named["input_ids"]).numel())


def interleaved(
    rounds: int,
    contestants: Mapping[str, Contestant[T]],
    check: Callable[[], None],
    log: Path | None = None,
) -> list[Round]:
    """The rounds, all contestants of a round one after the other; each is printed as it is done.

    ``check`` looks at the answers of the first round before it counts, and leaves where they differ. With a
    ``log`` the rounds are added to that file (one JSON object a line), and those that it holds already come
    first, so that a measurement can be made in parts.
    """
    done: list[Round] = []
    if log and log.exists():
        lines = log.read_text(encoding="utf-8").splitlines()
        done = [{name: Run(**run) for name, run in json.loads(line).items()} for line in lines]
    for number in range(rounds):
        this = {name: contestant.timed() for name, contestant in contestants.items()}
        if not number:
            check()
        done.append(this)
        print(f"round {len(done)}: {ratios(this)}; load {os.getloadavg()[0]:.1f}", flush=True)
        if log:
            with log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({name: asdict(run) for name, run in this.items()}) + "\n")
    return done


def ratios(round_: Round) -> str:
    """What one round says: each contestant's time over this package's."""
    here = round_[HERE]
    return ", ".join(
        f"{name} / {HERE} {run.cpu / here.cpu:.2f} (wall {run.wall / here.wall:.2f})"
        for name, run in round_.items()
        if name != HERE
    )


def print_table(rounds: Sequence[Round], contestants: Mapping[str, Contestant[T]]) -> float:
    """Median and range of each contestant's CPU seconds, the tokens it ran, and the ratio to the best peer.

    The ratio and the share of the floor are medians of the rounds' own; returns the ratio by the clock.
    """
    clock = {name: statistics.median(r[name].wall for r in rounds) for name in contestants}
    best = min((name for name in clock if name not in (HERE, FLOOR)), key=clock.__getitem__)
    print(f"{'':28}{'CPU s':>10}{'min':>8}{'max':>8}{'wall s':>10}{'tokens':>10}")
    for name, contestant in contestants.items():
        cpu = [r[name].cpu for r in rounds]
        spread = f"{statistics.median(cpu):10.2f}{min(cpu):8.2f}{max(cpu):8.2f}"
        print(f"{name:28}{spread}{clock[name]:10.2f}{contestant.tokens:10d}")
    cpu = [r[best].cpu / r[HERE].cpu for r in rounds]
    wall = [r[best].wall / r[HERE].wall for r in rounds]
    print(f"{best} / {HERE}, median of {len(rounds)} rounds: {statistics.median(cpu):.2f} in CPU time")
    print(f"(from {min(cpu):.2f} to {max(cpu):.2f}), {statistics.median(wall):.2f} on the clock")
    print(f"(from {min(wall):.2f} to {max(wall):.2f})")
    if FLOOR in contestants:
        print_share(rounds)
    return statistics.median(wall)


def print_share(rounds: Sequence[Round]) -> None:
    """How near the rounds came to their floor."""
    busy = [r[FLOOR].cpu / r[HERE].cpu for r in rounds]
    whole = [r[FLOOR].wall / r[HERE].wall for r in rounds]
    print(
        f"share of {FLOOR}: {statistics.median(busy):.0%} in CPU time ({min(busy):.0%} to {max(busy):.0%}),"
    )
    print(f"{statistics.median(whole):.0%} on the clock ({min(whole):.0%} to {max(whole):.0%})")


def print_row(work: str | None, result: str, bound: str = "") -> None:
    """The result as a row of the table in the project's README, where the ``work`` has a name there."""
    if work:
        print(f"| {work} | {result} | {bound} |")


def print_machine() -> None:
    """The machine and the versions that the figures belong to."""
    with suppress(OSError):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
        print(*{name.partition(": ")[2] for name in names}, sep=", ", end="; ")
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    )
    versions = [f"Python {platform.python_version()}"]
    for package in ("torch", "transformers", "lm-eval", "trl"):
        with suppress(metadata.PackageNotFoundError):
            versions.append(f"{package} {metadata.version(package)}")
    print(", ".join(versions))


@dataclass(frozen=True, slots=True)
class Product:
    """A matrix product in single precision; ``rate`` is in floating-point operations a CPU second."""

    layer: nn.Module
    inputs: torch.Tensor
    rate: float = 0.0

    @property
    def operations(self) -> int:
        """The floating-point operations of one product of square matrices."""
        return 2 * len(self.inputs) ** 3

    @torch.inference_mode()
    def repeat(self, times: int) -> None:
        """Make it so often."""
        for _ in range(times):
            self.layer(self.inputs)

    def timed(self, windows: int) -> Product:
        """With the best rate of some windows: long ones, as what threads have used is not known at once."""
        best = 0.0
        self.repeat(1)
        for _ in range(windows):
            start, done = time.process_time(), 0
            while time.process_time() - start < _WINDOW:
                self.repeat(1)
                done += 1
            best = max(best, done * self.operations / (time.process_time() - start))
        return replace(self, rate=best)


def fastest_product(sizes: Sequence[int] = (512, 1024), windows: int = 5) -> Product:
    """The best of several sizes, both as PyTorch computes them and with weights laid out for oneDNN."""
    from pytest_muscle.models.local.linear import PackedLinear

    tried = []
    for size in sizes:
        inputs, layer = torch.rand(size, size), nn.Linear(size, size, bias=False)
        tried += [Product(each, inputs).timed(windows) for each in (layer, PackedLinear(layer))]
    return max(tried, key=lambda product: product.rate)


def floor(operations: float) -> Contestant[Any]:
    """So many floating-point operations, as products of which each thread makes its own.

    A contestant rather than a rate taken once, because the rate of a machine that others use changes by the
    minute.
    """
    product, count = fastest_product(), torch.get_num_threads()
    share = partial(product.repeat, round(operations / product.operations / count))

    def run() -> None:
        with Threads(count) as threads:
            threads.run([share] * count)

    return Contestant(run)


def parsed(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The command line of a benchmark against lm-evaluation-harness; adds what these have in common."""
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="where both compute, such as cuda")
    parser.add_argument(
        "--batch-sizes",
        type=lambda size: size if size == "auto" else int(size),
        nargs="+",
        default=[8],
        help="of lm-evaluation-harness: numbers, or auto",
    )
    parser.add_argument("--log", type=Path, help="file of rounds to go on with")
    parser.add_argument("--row", metavar="NAME", help="print the result as a row of README's table, too")
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    options = parser.parse_args(arguments)
    if options.profile:
        require_one_thread(parser)
    return options


def require_one_thread(parser: argparse.ArgumentParser) -> None:
    """Refuse to profile several threads: the profiler sees one."""
    if torch.get_num_threads() > 1:
        parser.error("--profile looks at one thread: set OMP_NUM_THREADS=1")


def print_profile(run: Callable[[], object]) -> None:
    """Where a run's time goes: the share of each of PyTorch's operations, without what it calls."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as seen:
        run()
    spent = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
    total = sum(spent.values())
    for name in sorted(spent, key=spent.__getitem__, reverse=True)[:_SHOWN]:
        print(f"{spent[name] / total:6.1%}  {name}")


def linear_sizes(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Name and number of weights of each linear layer."""
    from pytest_muscle.models.local.linear import PackedLinear

    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | PackedLinear):
            yield name, layer.in_features * layer.out_features
