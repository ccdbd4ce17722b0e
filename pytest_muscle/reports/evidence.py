"""What a sample can carry, in sentences: noise, the worst slice, bias, inherited errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytest_muscle.bias import AccuracyGap, Bias
from pytest_muscle.comparison import Comparison
from pytest_muscle.evidence import Rate
from pytest_muscle.flips import CaseResult, Draws
from pytest_muscle.grading import FRAGILE_MARGIN
from pytest_muscle.reports.explain import change
from pytest_muscle.reports.story import NOTHING, bounds, count, percent, points
from pytest_muscle.reports.text import one_line
from pytest_muscle.sampling import Noise
from pytest_muscle.statistics import ALPHA

_MOST_NAMED = 5


def noise_sentences(comparison: Comparison) -> Iterator[str]:
    """Say what flips by rounding or by drawing alone; of drawing nothing where all were asked once."""
    if fragile := comparison.fragile:
        yield (
            f"{count(len(fragile), 'fragile case')}: two choices within {FRAGILE_MARGIN:g} of each other, "
            "which rounding may swap on other hardware"
        )
        yield from _some(fragile)
    noise = comparison.noise
    if noise is None:
        return
    yield (
        f"noise: {noise.draws_old} draws of the old model, {noise.draws_new} of the new one; "
        "NFR above is of their majorities"
    )
    yield f"one draw of the new model flips against one of the old: {_of_noise(noise, 'draw_nfr')}"
    if noise.self_flip_rate is not None:
        own = _of_noise(noise, "self_flip_rate")
        yield f"one draw of the old model flips against another: {own}, the noise floor"
        yield f"excess over the floor: {_of_noise(noise, 'excess_nfr')}"
    if noise.delta_error is not None:
        distance = NOTHING if noise.delta_errors is None else f"{noise.delta_errors:+.1f}"
        yield f"mean D is {distance} standard errors of drawing ({noise.delta_error:.4f} each)"
    unstable = comparison.unstable
    yield f"{count(len(unstable), 'unstable case')}: drawn again, the verdict may differ"
    yield from _some(unstable)


def _some(results: Sequence[CaseResult]) -> Iterator[str]:
    for result in results[:_MOST_NAMED]:
        yield f"  {_name(result)}  {change(result)}{_right_draws(result.draws)}"
    if len(results) > _MOST_NAMED:
        yield f"  ... and {len(results) - _MOST_NAMED:,} more"


def _of_noise(noise: Noise, name: str) -> str:
    return f"{percent(getattr(noise, name))} [{bounds(noise.intervals.get(name))}]"


def _name(result: CaseResult) -> str:
    return f"{one_line(result.case.dataset, 60)}::{one_line(result.case.id, 60)}"


def _right_draws(draws: Draws | None) -> str:
    if draws is None or any(grade.score is not None and grade.correct is None for _, grade in draws.old):
        return ""
    old, new = (f"{sum(bool(g.correct) for _, g in side)}/{len(side)}" for side in (draws.old, draws.new))
    return f", right in {old} draws -> {new}"


def worst_slice_sentences(comparison: Comparison) -> Iterator[str]:
    """Say for each dataset whether a slice suffers more than the rest."""
    for name, dataset in comparison.datasets.items():
        worst = dataset.worst_slice
        if worst is None:
            continue
        where = f"{one_line(name, 60)}: " if len(comparison.datasets) > 1 else ""
        part = one_line(worst.slice, 60)
        searched = f"p = {worst.p:.2g}, corrected for {count(worst.searched, 'slice')} searched"
        if worst.p > 2 * ALPHA:
            yield f"{where}no slice stands out: what {part} lost may be chance ({searched})"
        else:
            yield (
                f"{where}{part} stands out: NFR {percent(worst.nfr)} of {worst.n:,} cases, "
                f"{percent(worst.nfr_elsewhere)} elsewhere ({searched})"
            )


def bias_rows(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    """Give rows of a figure's name, the old model's, the new one's and, if there is one, the adapter's.

    The first row holds the headings; nothing where no case tells of any bias.
    """
    if not comparison.bias:
        return
    mended = comparison.adapter is not None and comparison.adapter.path is not None
    yield ("bias", "old", "new", *(("new + adapter",) if mended else ()))
    for name, (old, new) in comparison.bias.items():
        sides = [old, new]
        if mended and comparison.adapter is not None and name in comparison.adapter.before.bias:
            sides.insert(1, comparison.adapter.before.bias[name][1])
        where = f"{one_line(name, 60)}: " if len(comparison.bias) > 1 else ""
        for title, cells in _figures(sides):
            yield (f"{where}{title}", *cells)


def preference_sentences(comparison: Comparison) -> Iterator[str]:
    """Say for each dataset what the update did to the stereotype preference, case by case."""
    for name, update in comparison.preference_changes.items():
        where = f"{one_line(name, 60)}: " if len(comparison.preference_changes) > 1 else ""
        low, high = (100 * bound for bound in update.interval)
        yield (
            f"{where}the stereotype is preferred in {count(update.gained, 'case')} only now, in "
            f"{update.dropped:,} only before: {points(update.value)} [{low:+.2f} to {high:+.2f}], "
            f"p = {update.p:.2g}"
        )


def _figures(sides: list[Bias]) -> Iterator[tuple[str, list[str]]]:
    if any(side.accuracy_gap for side in sides):
        yield "widest accuracy gap of groups", [_gap(side.accuracy_gap) for side in sides]
    for title, name in (
        ("pairs told apart", "pair_disagreement"),
        ("stereotype preferred", "stereotype_preference"),
    ):
        if any(getattr(side, name) for side in sides):
            yield title, [_rate(getattr(side, name)) for side in sides]


def _gap(gap: AccuracyGap | None) -> str:
    if gap is None:
        return NOTHING
    groups = f"{one_line(gap.best, 30)} over {one_line(gap.worst, 30)}"
    return f"{percent(gap.value)} [{bounds(gap.interval)}] {groups if gap.value else ''}".rstrip()


def _rate(rate: Rate | None) -> str:
    return NOTHING if rate is None else f"{percent(rate.value)} of {rate.n:,} [{bounds(rate.interval)}]"


def inherited_sentences(comparison: Comparison) -> Iterator[str]:
    """Say for each dataset how many of the new model's right answers the adapter gave up for old errors."""
    for name, rates in comparison.inherited.items():
        where = f"{one_line(name, 60)}: " if len(comparison.inherited) > 1 else ""
        whole = rates[""]
        yield (
            f"{where}inherited errors: the adapter turned {whole.k:,} of {whole.n:,} right answers that the "
            f"old model had wrong back into its very answer ({percent(whole.value)} "
            f"[{bounds(whole.interval)}])"
        )
        parts = {part: rate for part, rate in rates.items() if part and rate.k}
        for part in sorted(parts, key=lambda each: -parts[each].interval[0])[:3]:
            yield f"  {one_line(part, 60)}: {parts[part].k:,} of {parts[part].n:,}"
