"""The summary at the end of a run."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pytest_muscle.comparison import Comparison, TrainedAdapter
from pytest_muscle.flips import Flip
from pytest_muscle.gates import Gate, Ruling, Verdict
from pytest_muscle.metrics import FEW, Metrics
from pytest_muscle.reports.evidence import (
    bias_rows,
    inherited_sentences,
    noise_sentences,
    preference_sentences,
    worst_slice_sentences,
)
from pytest_muscle.reports.explain import change
from pytest_muscle.reports.text import one_line
from pytest_muscle.statistics import Interval

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_MOST_SLICES = 8
_MOST_REGRESSIONS = 5
_SMALL = 0.05
_MOST_GATES = 12
_GATE_WIDTH = 19
_ROOMY = 100
_RULINGS = {
    Ruling.FAILED: ("FAILED", "red"),
    Ruling.INCONCLUSIVE: ("inconclusive", "yellow"),
    Ruling.PASSED: ("passed", "green"),
    Ruling.UNJUDGED: ("unjudged", ""),
}
_ORDER = list(_RULINGS)


def summarise(comparison: Comparison, width: int = 80, colour: bool = False) -> str:
    """Return the summary as text of the given width, with ANSI colours where wanted.

    No table has room in less than 80 columns: a narrower terminal breaks the lines itself.
    """
    from rich.console import Console

    file = io.StringIO()
    console = Console(
        file=file,
        width=max(width, 80),
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )
    for part in _parts(comparison, console.width):
        console.print(part)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _parts(comparison: Comparison, width: int) -> Iterator[RenderableType]:
    from rich.padding import Padding

    yield f"old  {one_line(comparison.old.spec)}\nnew  {one_line(comparison.new.spec)}"
    if comparison.quadrants:
        yield _quadrants(comparison.quadrants)
    if comparison.metrics.score_old is not None:
        yield _scores(comparison)
    yield _rates(comparison)
    if noise := list(noise_sentences(comparison)):
        yield "\n  ".join(noise) + "\n"
    if gates := [gate for gate in comparison.gates if gate.answered]:
        gates.sort(key=lambda gate: _ORDER.index(gate.ruling))
        yield _gates(gates, _common_folder(comparison), width)
        yield "\n".join([*([""] if width < _ROOMY else []), *_of_gates(gates)])
    if slices := _worst_slices(comparison):
        yield _table_of_slices(slices)
        yield "\n".join([*worst_slice_sentences(comparison), ""])
    if bias := list(bias_rows(comparison)):
        yield _bias(bias)
        yield "\n".join([*preference_sentences(comparison), ""])
    if regressions := _regressions(comparison):
        yield "worst regressions"
        yield Padding("\n".join([*regressions, ""]), (0, 0, 0, 2))
    if comparison.adapter is not None:
        yield from _adapter(comparison.adapter)
    if inherited := list(inherited_sentences(comparison)):
        yield "\n".join([*inherited, ""])
    yield _outcomes(comparison)
    for notice in comparison.notices:
        yield f"note: {one_line(notice, 400)}"


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i == 0 else "right", overflow="fold", no_wrap=i > 0)
    return table


def _quadrants(counts: Counter[Flip]) -> Table:
    right = counts[Flip.BOTH_CORRECT] + counts[Flip.BOTH_CORRECT_CHANGED]
    wrong = counts[Flip.BOTH_WRONG] + counts[Flip.INCONSISTENCY]
    total = counts.total()

    def share(count: int) -> str:
        return f"{count:,} ({_percent(count / total)})"

    table = _table("", "new right", "new wrong", "")
    table.add_row("old right", share(right), share(counts[Flip.NEGATIVE]), "<- negative flips")
    table.add_row("old wrong", share(counts[Flip.POSITIVE]), share(wrong), _of_which(counts))
    table.columns[3].justify = "left"
    return table


def _of_which(counts: Counter[Flip]) -> str:
    return f"<- {counts[Flip.INCONSISTENCY]:,} of them inconsistency flips"


def _scores(comparison: Comparison) -> str:
    metrics = comparison.metrics
    deltas = [r.delta or 0.0 for r in comparison.results if r.case.task == "generation"]
    losses = [-delta for delta in deltas if delta < 0]
    small = sum(loss < _SMALL for loss in losses)
    low, high = metrics.intervals["mean_delta"]
    gain, loss = (
        f"{value:.3f}" if value is not None else "-" for value in (metrics.mean_gain, metrics.mean_regression)
    )
    return (
        f"generation: score {metrics.score_old:.3f} -> {metrics.score_new:.3f}, "
        f"mean D {metrics.mean_delta:+.3f} [{low:+.3f}, {high:+.3f}], "
        f"mean gain {gain}, mean regression {loss}; "
        f"{small} of {len(losses)} regressions are smaller than {_SMALL}"
    )


def _rates(comparison: Comparison) -> Table:
    folder = _common_folder(comparison)
    title = f"in {one_line(folder, 40)}" if folder else "dataset"
    table = _table(title, "n", "old", "new", "NFR", "95%", "NFR_mc", "PFR")
    rows = [(name, dataset.metrics) for name, dataset in comparison.datasets.items()]
    if len(rows) > 1:
        rows.append(("all", comparison.metrics))
    for name, metrics in rows:
        old, new = _level(metrics)
        table.add_row(
            one_line(name.removeprefix(folder), 60),
            f"{metrics.n:,}",
            old,
            new,
            _rate(metrics.nfr),
            _bounds(metrics.intervals.get("nfr")),
            _rate(metrics.nfr_mc),
            _rate(metrics.pfr),
        )
    return table


def _common_folder(comparison: Comparison) -> str:
    """The folder that all of several datasets lie in; it need not stand in every row."""
    folders = [name.rpartition("/")[0] for name in comparison.datasets]
    return f"{folders[0]}/" if len(folders) > 1 and folders[0] and len(set(folders)) == 1 else ""


def _level(metrics: Metrics) -> tuple[str, str]:
    if metrics.accuracy_old is not None:
        return _rate(metrics.accuracy_old), _rate(metrics.accuracy_new)
    if metrics.score_old is not None and metrics.score_new is not None:
        return f"{metrics.score_old:.3f}", f"{metrics.score_new:.3f}"
    return "-", "-"


def _gates(gates: Sequence[Gate], folder: str, width: int) -> Table:
    from rich.text import Text

    table = _table("gate", "budget", "value", "95%", "verdict", "reversal", "needs")
    if width < _ROOMY:
        # A path is broken, but neither a word nor a number.
        table.collapse_padding, table.show_edge = True, False
        table.columns[0].min_width = min(_GATE_WIDTH, max(len(gate.name) for gate in gates[:_MOST_GATES]))
        if any(gate.ruling is Ruling.INCONCLUSIVE for gate in gates[:_MOST_GATES]):
            table.columns[5].no_wrap, table.columns[5].max_width = False, len("reversal")
    for gate in gates[:_MOST_GATES]:
        word, style = _RULINGS[gate.ruling]
        table.add_row(
            f"{one_line(gate.scope.removeprefix(folder), 60)} {gate.name}",
            f"{gate.limit:g}",
            f"{gate.value:.4f}" if gate.value is not None else "-",
            _bounds(gate.interval),
            Text(word, style),
            f"{abs(gate.reversal):,} {'worse' if gate.reversal > 0 else 'better'}" if gate.reversal else "-",
            f"{gate.needed:,}" if gate.needed else "-",
        )
    if len(gates) > _MOST_GATES:
        table.add_row(f"... and {len(gates) - _MOST_GATES:,} more")
    return table


def _of_gates(gates: Sequence[Gate]) -> Iterator[str]:
    yield "reversal: answers whose change would reverse the gate; needs: cases that would settle it"
    unjudged = [gate for gate in gates if gate.ruling is Ruling.UNJUDGED]
    for scope, answered, cases in dict.fromkeys((gate.scope, gate.answered, gate.cases) for gate in unjudged):
        yield f"{one_line(scope, 60)}: unjudged, as {answered:,} of {cases:,} cases are answered"
    if (tests := max(gate.tests for gate in gates)) > 1:
        yield f"significance is corrected for {tests:,} gates (Holm)"
    for gate in gates[:_MOST_GATES]:
        if gate.is_zero_tolerance:
            yield (
                f"{one_line(gate.scope, 60)} {gate.name}: {gate.limit:g} is below one in {gate.cases:,} "
                "cases: zero tolerance"
            )
    yield ""


def _worst_slices(comparison: Comparison) -> list[tuple[str, Metrics]]:
    several, folder = len(comparison.datasets) > 1, _common_folder(comparison)
    slices = [
        (f"{name.removeprefix(folder)} {key}" if several else key, metrics)
        for name, dataset in comparison.datasets.items()
        for key, metrics in dataset.slices.items()
        if metrics.nfr is not None
    ]
    if not any(metrics.nfr or metrics.nfr_mc for _, metrics in slices):
        return []
    # By what is sure to be lost: one flip in two cases says less than thirty in a hundred.
    return sorted(slices, key=lambda each: (-each[1].intervals["nfr"][0], -(each[1].nfr or 0.0), each[0]))


def _table_of_slices(slices: Sequence[tuple[str, Metrics]]) -> Table:
    table = _table("slice, worst first", "n", "NFR", "95%", "NFR_mc", "PFR")
    for name, metrics in slices[:_MOST_SLICES]:
        table.add_row(
            one_line(name, 60) + (f" (under {FEW} cases)" if metrics.is_small else ""),
            f"{metrics.n:,}",
            _rate(metrics.nfr),
            _bounds(metrics.intervals.get("nfr")),
            _rate(metrics.nfr_mc),
            _rate(metrics.pfr),
        )
    if len(slices) > _MOST_SLICES:
        table.add_row(f"... and {len(slices) - _MOST_SLICES:,} more")
    return table


def _bias(rows: Sequence[tuple[str, ...]]) -> Table:
    table = _table(*rows[0])
    for column in table.columns:
        column.no_wrap = False
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _regressions(comparison: Comparison) -> list[str]:
    worst = sorted(
        (r for r in comparison.results if r.flip is Flip.NEGATIVE),
        key=lambda r: (comparison.outcomes[r.case.key].verdict is not Verdict.FAILED, r.delta or 0.0),
    )
    return [
        f"{one_line(r.case.dataset, 60)}::{one_line(r.case.id, 60)}  {change(r)}"
        for r in worst[:_MOST_REGRESSIONS]
    ]


def _adapter(adapter: TrainedAdapter) -> Iterator[RenderableType]:
    made = f"{one_line(adapter.recipe)}; trained in {adapter.seconds:.0f} s"
    if adapter.path is None or adapter.after is None:
        yield f"compatibility adapter: none was worth keeping ({made}); judged without\n"
        return
    yield f"compatibility adapter  {one_line(str(adapter.path), 400)}\n({made})"
    sides = (adapter.before, adapter.after)
    before, after = (side.metrics for side in sides)
    table = _table("", "new", "new + adapter")
    for name, rate in (("accuracy", "accuracy_new"), ("NFR", "nfr"), ("NFR_mc", "nfr_mc"), ("PFR", "pfr")):
        if getattr(before, rate) is not None:
            table.add_row(name, _rate(getattr(before, rate)), _rate(getattr(after, rate)))
    if before.score_new is not None and after.score_new is not None:
        table.add_row("score", f"{before.score_new:.3f}", f"{after.score_new:.3f}")
    table.add_row(
        "gates failed", *(f"{sum(g.blocks for g in side.gates)} of {len(side.gates)}" for side in sides)
    )
    yield table
    yield f"{_advice(adapter.before, adapter.after)}\n"


def _advice(before: Comparison, after: Comparison) -> str:
    worse = (after.metrics.accuracy_new or 0.0) < (before.metrics.accuracy_new or 0.0)
    price = ", at some loss of accuracy" if worse else ""
    if before.passed:
        return f"The release passes without the adapter{'; with it it does too' if after.passed else ''}."
    if after.passed:
        return f"The release passes with the adapter and not without it{price}."
    if (after.metrics.nfr or 0.0) < (before.metrics.nfr or 0.0):
        return f"The adapter breaks fewer answers but does not bring the release within its budgets{price}."
    return "The adapter does not help: do not ship it."


def _outcomes(comparison: Comparison) -> str:
    verdicts = Counter(each.verdict for each in comparison.outcomes.values())
    counts = ", ".join(f"{verdicts[verdict]:,} {verdict}" for verdict in Verdict if verdicts[verdict])
    rulings = Counter(gate.ruling for gate in comparison.gates)
    told = ", ".join(f"{rulings[ruling]:,} {ruling}" for ruling in _ORDER if rulings[ruling])
    gates = f"; gates: {told}" if told else ""
    return f"cases: {counts or 'none'}{gates}"


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}%"


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{100 * rate:.2f}%"


def _bounds(interval: Interval | None) -> str:
    return "-" if interval is None else f"{100 * interval[0]:.1f}-{100 * interval[1]:.1f}%"
