"""The report for people: one HTML file that needs nothing else, and its short form for notebooks."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from importlib.metadata import version
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from pytest_muscle.comparison import Comparison
from pytest_muscle.flips import CaseResult, Flip
from pytest_muscle.history import Run
from pytest_muscle.metrics import FEW
from pytest_muscle.reports import evidence, plots, story
from pytest_muscle.reports.cases import FLIPS, NAME, embedded_cases
from pytest_muscle.reports.explain import change
from pytest_muscle.reports.text import plain

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_MOST_SLICES = 30
_MOST_WORST = 5


def render_html(comparison: Comparison, history: Sequence[Run] = (), made: str = "") -> str:
    """Return the whole page; ``history`` is the trend to draw, ``made`` says when the run was."""
    from markupsafe import Markup

    script = _source("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("report.html")
        .render(
            page=Page(comparison, history),
            data=Markup(embedded_cases(comparison)),
            script=Markup(script),
            script_hash=f"sha256-{digest}",
            made=made,
            version=version("pytest-muscle"),
        )
    )


def render_fragment(comparison: Comparison) -> str:
    """Return the verdict, gates, quadrants, rates and worst regressions as HTML to be shown in a page."""
    return _environment().get_template("fragment.html").render(page=Page(comparison, is_linked=False))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pytest_muscle.reports"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"plain": plain, "percent": story.percent, "ruled": story.ruled, "change": change}
    return environment


def _source(name: str) -> str:
    return files("pytest_muscle.reports").joinpath("templates", name).read_text("utf-8")


Step = str | int | tuple["Step", ...]
"""A key or index on the way into the JSON result, or several."""


def _flat(at: Iterable[Step]) -> Iterator[str | int]:
    for step in at:
        if isinstance(step, tuple):
            yield from _flat(step)
        else:
            yield step


class Page:
    """What the templates ask for; every figure is looked up in the JSON result and says where it is."""

    def __init__(self, comparison: Comparison, history: Sequence[Run] = (), is_linked: bool = True) -> None:
        self.comparison = comparison
        self.history = history
        self.is_linked = is_linked
        self.result = comparison.totals()
        self.flips = FLIPS

    # Figures

    def percent(self, *at: Step) -> Markup:
        """Show a rate."""
        return self._figure(at, story.percent)

    def score(self, *at: Step) -> Markup:
        """Show a similarity or a change of one."""
        return self._figure(at, story.score)

    def amount(self, index: int, *at: Step) -> Markup:
        """Show what a gate measures, or its budget."""
        name = self.comparison.gates[index].name
        return self._figure(("gates", index, at), lambda value: story.amount(name, value))

    def number(self, *at: Step) -> Markup:
        """Show a count."""
        return self._figure(at, "{:,}".format)

    def precise(self, *at: Step) -> Markup:
        """Show a p-value."""
        return self._figure(at, "{:.3g}".format)

    def seconds(self, *at: Step) -> Markup:
        """Show a duration."""
        return self._figure(at, "{:,.0f} s".format)

    def bounds(self, *at: Step) -> str:
        """Show an interval of a rate."""
        return self._bounds(self.percent(at, 0), self.percent(at, 1)) if self.has(at) else story.NOTHING

    def gate_bounds(self, index: int) -> str:
        """Show a gate's interval."""
        low, high = (self.amount(index, "interval", i) for i in (0, 1))
        return self._bounds(low, high) if self.has("gates", index, "interval") else story.NOTHING

    @staticmethod
    def _bounds(low: Markup, high: Markup) -> Markup:
        from markupsafe import Markup

        return Markup("{} to {}").format(low, high)

    def has(self, *at: Step) -> bool:
        """Whether the result has this value."""
        return self._value(at) is not None

    def _figure(self, at: tuple[Step, ...], shown: Callable[[Any], str]) -> Markup:
        from markupsafe import Markup

        value = self._value(at)
        if value is None:
            return Markup(story.NOTHING)
        pointer = "/".join(["", *(str(step).replace("~", "~0").replace("/", "~1") for step in _flat(at))])
        # A pointer through the name of a huge slice would only bloat the page.
        pointer = pointer if len(pointer) < 400 else ""
        # HTML is UTF-8, which has no lone surrogates.
        place = pointer.encode("utf-8", "replace").decode()
        return Markup('<data value="{}" data-at="{}">{}</data>').format(value, place, shown(value))

    def _value(self, at: tuple[Step, ...]) -> Any:
        value: Any = self.result
        for step in _flat(at):
            if value is None or (isinstance(value, Mapping) and step not in value):
                return None
            value = value[step]
        return value

    # Parts

    @cached_property
    def sentences(self) -> list[str]:
        """What happened, in words."""
        return story.sentences(self.comparison)

    @cached_property
    def gates(self) -> list[dict[str, Any]]:
        """Each gate, its number in the result and its bar; all bars of one unit share an axis."""
        tops: dict[str, float] = {}
        for gate in self.comparison.gates:
            rates = (gate.value, gate.limit, *(gate.interval or ()), tops.get(gate.name))
            tops[gate.name] = max(rate for rate in rates if rate is not None)
        return [
            {
                "gate": gate,
                "index": i,
                "bar": plots.bar(gate.value, gate.interval, gate.limit, plots.top_of([tops[gate.name]])),
            }
            for i, gate in enumerate(self.comparison.gates)
        ]

    @cached_property
    def quadrants(self) -> Mapping[str, int]:
        """The number of cases of each flip among those with a right and a wrong."""
        return {str(flip): self.comparison.quadrants[flip] for flip in Flip}

    def share(self, flip: str) -> str:
        """The share of a flip among the cases with a right and a wrong."""
        return story.percent(self.quadrants[flip] / sum(self.quadrants.values()))

    @cached_property
    def generated(self) -> Mapping[str, int]:
        """The number of cases of each flip among those of generation."""
        counts = Counter(r.flip for r in self.comparison.results if r.case.task == "generation")
        return {str(flip): counts[flip] for flip in (Flip.NEGATIVE, Flip.UNCHANGED, Flip.POSITIVE)}

    @property
    def generated_total(self) -> int:
        """The number of generation's judged cases."""
        return sum(self.generated.values())

    def generated_share(self, flip: str) -> str:
        """The share of a flip among generation's cases."""
        return story.percent(self.generated[flip] / self.generated_total)

    @cached_property
    def flow(self) -> plots.FlowPlot | None:
        """From the old model's answers to the new one's."""
        return plots.flow_plot(self.comparison)

    @cached_property
    def scatters(self) -> list[plots.Scatter]:
        """Old against new: scores of generation, margins of multiple choice."""
        return [*plots.score_plots(self.comparison), *plots.margin_plots(self.comparison)]

    @cached_property
    def trends(self) -> list[plots.Trend]:
        """The metrics through the runs."""
        return plots.trends(self.history, self.comparison)

    @cached_property
    def slices(self) -> list[dict[str, Any]]:
        """The slices of each dataset that show something, highest NFR first."""
        parts = []
        for name, dataset in self.comparison.datasets.items():
            order = sorted(dataset.slices, key=lambda key: (-(dataset.slices[key].nfr or 0.0), key))
            if order:
                shown = order[:_MOST_SLICES]
                parts.append({"dataset": name, "names": shown, "more": len(order) - len(shown)})
        return parts

    @cached_property
    def worst(self) -> list[CaseResult]:
        """The worst regressions."""
        regressions = (r for r in story.worst_first(self.comparison) if r.flip and r.flip.is_regression)
        return [result for result, _ in zip(regressions, range(_MOST_WORST), strict=False)]

    @property
    def adapter(self) -> Any:
        """The adapter's part of the result; None where none was trained."""
        return self.result["adapter"]

    @cached_property
    def noise(self) -> list[str]:
        """What flips by drawing alone, in sentences."""
        return list(evidence.noise_sentences(self.comparison))

    @cached_property
    def worst_slices(self) -> list[str]:
        """Whether a slice stands out, in sentences."""
        return list(evidence.worst_slice_sentences(self.comparison))

    @cached_property
    def bias(self) -> list[tuple[str, ...]]:
        """How the models treat groups of people: a table's rows, the first its headings."""
        return list(evidence.bias_rows(self.comparison))

    @cached_property
    def inherited(self) -> list[str]:
        """The old model's errors that the adapter brought back, in sentences."""
        return list(evidence.inherited_sentences(self.comparison))

    few = FEW

    def is_small(self, *at: Step) -> bool:
        """Whether there are too few cases to say much."""
        return bool(self._value((at, "n")) < FEW)

    def nfr_bar(self, *at: Step) -> plots.Bar:
        """The NFR of some metrics as a bar on the axis that all rows share."""
        interval = self._value((at, "intervals", "nfr"))
        return plots.bar(
            self._value((at, "nfr")), (interval[0], interval[1]) if interval else None, None, self._top
        )

    @cached_property
    def _top(self) -> float:
        measured = [self.comparison.metrics]
        for dataset in self.comparison.datasets.values():
            measured += [dataset.metrics, *dataset.slices.values()]
        # A slice of three cases has an interval up to 70%: it may leave the plot, the values may not.
        widest = [m.intervals["nfr"][1] for m in measured if "nfr" in m.intervals and not m.is_small]
        return plots.top_of([*(m.nfr for m in measured), *widest])

    def said(self, *at: Step) -> str:
        """The NFR of some metrics, in words."""
        interval = self._value((at, "intervals", "nfr"))
        said = story.percent(self._value((at, "nfr")))
        return f"{said}, 95% interval {story.bounds(interval)}" if interval else said

    def link(self, **filters: str) -> str:
        """The page's own address with these filters set."""
        cut = {name: plain(value, NAME) for name, value in filters.items()}
        return "#" + urlencode(cut, errors="replace")
