"""Where the marks of each plot lie: geometry only, drawn by ``templates/plots.html``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_muscle.comparison import Comparison
from pytest_muscle.flips import Flip
from pytest_muscle.history import Run
from pytest_muscle.reports.story import margins
from pytest_muscle.statistics import Interval

SIDE = 400.0
_WIDE, _HIGH = 480.0, 180.0


@dataclass(frozen=True, slots=True)
class Bar:
    """A rate against its budget, in percent of the plot's width."""

    value: float | None
    low: float | None
    high: float | None
    limit: float | None


def bar(value: float | None, interval: Interval | None, limit: float | None, top: float) -> Bar:
    """Place a rate, its interval and its budget on an axis from 0 to ``top``."""

    def place(rate: float | None) -> float | None:
        return None if rate is None else round(100 * min(rate / top, 1.0), 2)

    low, high = interval or (None, None)
    return Bar(place(value), place(low), place(high), place(limit))


def top_of(rates: Iterable[float | None]) -> float:
    """Return where an axis that is to show all of these rates ends."""
    return 1.08 * max([rate for rate in rates if rate is not None] + [0.01])


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis: its place in pixels and what stands there."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Scatter:
    """Old against new: for each flip the cases as an SVG path of dots, and the axes' ticks.

    ``zero`` is where 0 lies on both axes; ``clipped`` counts cases beyond the edge, drawn on it.
    """

    title: str
    unit: str
    cases: int
    paths: dict[str, str]
    counts: dict[str, int]
    ticks: list[Tick]
    zero: float
    clipped: int


def scatter(
    title: str, unit: str, points: Sequence[tuple[Flip, float, float]], low: float, high: float
) -> Scatter:
    """Place (flip, old, new) on two equal axes from ``low`` to ``high``."""
    scale = SIDE / (high - low)

    def place(value: float) -> float:
        return round((min(max(value, low), high) - low) * scale, 1)

    # Drawn last is seen best: what broke lies on top of what did not.
    order = (*(flip for flip in Flip if not flip.is_regression), Flip.INCONSISTENCY, Flip.NEGATIVE)
    marks = {flip: [(old, new) for kind, old, new in points if kind is flip] for flip in order}
    return Scatter(
        title=title,
        unit=unit,
        cases=len(points),
        paths={
            str(flip): "".join(f"M{place(old):g} {SIDE - place(new):g}h0" for old, new in pairs)
            for flip, pairs in marks.items()
            if pairs
        },
        counts={str(flip): len(pairs) for flip, pairs in marks.items() if pairs},
        ticks=[Tick(place(value), f"{value:g}") for value in nice_ticks(low, high)],
        zero=place(0.0),
        clipped=sum(not (low <= old <= high and low <= new <= high) for _, old, new in points),
    )


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round values between ``low`` and ``high``, some ``about`` of them."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) + 0.0 for i in range(first, math.floor(high / step + 1e-9) + 1)]


def score_plots(comparison: Comparison) -> list[Scatter]:
    """Return old score against new score, one plot for each generation metric."""
    groups: dict[str, list[tuple[Flip, float, float]]] = {}
    for result in comparison.results:
        old, new = result.old_grade.score, result.new_grade.score
        if result.case.task == "generation" and result.flip and old is not None and new is not None:
            groups.setdefault(result.case.metric, []).append((result.flip, old, new))
    plots = []
    for metric, points in groups.items():
        values = [value for _, old, new in points for value in (old, new)]
        low, high = min(0.0, *values), max(1.0, *values)
        plots.append(scatter(f"Score ({metric}), old against new", metric, points, low, high))
    return plots


UNITS = {"acc": "nats", "acc_norm": "nats per character", "acc_bytes": "nats per byte"}


def margin_plots(comparison: Comparison) -> list[Scatter]:
    """Return the margin of the right choice, old against new, one plot for each choice rule."""
    groups: dict[str, list[tuple[Flip, float, float]]] = {}
    for result in comparison.results:
        old, new = margins(result)
        if result.flip and old is not None and new is not None:
            groups.setdefault(result.case.choice_rule, []).append((result.flip, old, new))
    plots = []
    for rule, points in groups.items():
        sizes = sorted(abs(value) for _, *pair in points for value in pair if math.isfinite(value))
        # A few far outliers must not squeeze all other cases into the middle.
        end = 1.05 * sizes[min(len(sizes) - 1, int(0.99 * len(sizes)))] if sizes else 1.0
        unit = UNITS[rule]
        plots.append(
            scatter("Margin of the right choice, old against new", unit, points, -(end or 1.0), end or 1.0)
        )
    return plots


@dataclass(frozen=True, slots=True)
class Flow:
    """Cases that go from one level on the left to one on the right: an SVG path and its count."""

    flip: str
    count: int
    path: str


@dataclass(frozen=True, slots=True)
class Node:
    """One end of the flows: what it stands for, how many cases, and where it lies."""

    name: str
    count: int
    x: float
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class FlowPlot:
    """From right and wrong under the old model to right and wrong under the new one."""

    nodes: list[Node]
    flows: list[Flow]


_ROUTES = (
    (Flip.BOTH_CORRECT, 0, 0),
    (Flip.BOTH_CORRECT_CHANGED, 0, 0),
    (Flip.NEGATIVE, 0, 1),
    (Flip.POSITIVE, 1, 0),
    (Flip.INCONSISTENCY, 1, 1),
    (Flip.BOTH_WRONG, 1, 1),
)
_FLOW_HEIGHT, _GAP, _LEFT, _RIGHT = 200.0, 16.0, 12.0, 288.0


def flow_plot(comparison: Comparison) -> FlowPlot | None:
    """Draw the quadrants as flows, as thick as they are many; None where nothing is right or wrong."""
    counts = comparison.quadrants
    total = sum(counts.values())
    if not total:
        return None
    unit = _FLOW_HEIGHT / total
    sides = [
        [sum(counts[flip] for flip, *ends in _ROUTES if ends[i] == level) for level in (0, 1)] for i in (0, 1)
    ]
    tops = [[0.0, side[0] * unit + _GAP] for side in sides]
    nodes = [
        Node(f"{model} {word}", side[level], x, round(top[level], 1), round(side[level] * unit, 1))
        for model, side, top, x in zip(("old", "new"), sides, tops, (0.0, _RIGHT), strict=True)
        for level, word in ((0, "right"), (1, "wrong"))
    ]
    flows = []
    for flip, start, end in _ROUTES:
        if counts[flip]:
            thick = counts[flip] * unit
            flows.append(Flow(str(flip), counts[flip], _ribbon(tops[0][start], tops[1][end], thick)))
            tops[0][start] += thick
            tops[1][end] += thick
    return FlowPlot(nodes, flows)


def _ribbon(left: float, right: float, thick: float) -> str:
    middle = (_LEFT + _RIGHT) / 2
    there = f"M{_LEFT:g} {left:.1f}C{middle:g} {left:.1f} {middle:g} {right:.1f} {_RIGHT:g} {right:.1f}"
    back = f"V{right + thick:.1f}C{middle:g} {right + thick:.1f} {middle:g} {left + thick:.1f}"
    return f"{there}{back} {_LEFT:g} {left + thick:.1f}Z"


@dataclass(frozen=True, slots=True)
class Line:
    """One metric through the runs: an SVG path, and its dots with the run's number and value."""

    name: str
    path: str
    dots: list[tuple[float, float, int, float]]


@dataclass(frozen=True, slots=True)
class Trend:
    """The runs so far and their lines; ``others`` were on other golden datasets and are left out."""

    title: str
    runs: list[Run]
    lines: list[Line]
    ticks: list[Tick]
    others: int


_TRENDS = {"What breaks": ("nfr", "nfr_mc"), "How good the release is": ("accuracy_new", "score_new")}


def trends(history: Sequence[Run], comparison: Comparison) -> list[Trend]:
    """Draw the metrics of the runs on the same golden datasets; nothing where there are not two."""
    runs = [run for run in history if run.datasets.keys() == comparison.datasets.keys()]
    if len(runs) < 2:
        return []
    drawn = (_trend(title, names, runs, len(history) - len(runs)) for title, names in _TRENDS.items())
    return [trend for trend in drawn if trend.lines]


def _trend(title: str, names: Sequence[str], runs: list[Run], others: int) -> Trend:
    table = {name: [run.metrics.get(name) for run in runs] for name in names}
    top = top_of(value for values in table.values() for value in values)
    step = _WIDE / (len(runs) - 1)
    lines = []
    for name, values in table.items():
        dots = [
            (round(i * step, 1), round(_HIGH * (1 - value / top), 1), i, value)
            for i, value in enumerate(values)
            if value is not None
        ]
        if dots:
            lines.append(Line(name, "M" + "L".join(f"{x:g} {y:g}" for x, y, *_ in dots), dots))
    ticks = [
        Tick(round(_HIGH * (1 - value / top), 1), f"{100 * value:g}%") for value in nice_ticks(0, top, 4)
    ]
    return Trend(title, runs, lines, ticks, others)
