"""The summary in Markdown, as a CI job or a pull request shows it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from pytest_muscle.comparison import Comparison
from pytest_muscle.flips import Flip
from pytest_muscle.metrics import Metrics
from pytest_muscle.reports import evidence
from pytest_muscle.reports.explain import change
from pytest_muscle.reports.story import amount, bounds, percent, ruled, score, sentences, worst_first
from pytest_muscle.reports.text import one_line

_MOST_ROWS = 20
_MOST_WORST = 10

# Everything with a meaning in GitHub's Markdown: structure, links, mathematics, mentions, emoji, HTML.
_MEANINGFUL = re.compile(r"[^\w\s.,;()/'+=%?-]|_|(?<=www)\.", re.ASCII | re.IGNORECASE)


def inert(text: str, limit: int = 200) -> str:
    """Return text from anywhere as one line of literal code, in which nothing can act."""
    escaped = _MEANINGFUL.sub(_reference, one_line(text, limit))
    return f"<code>{escaped}</code>" if escaped else ""


def _reference(match: re.Match[str]) -> str:
    character = match[0]
    return f"&#{ord(character)};" if character.isascii() else character


def render_markdown(comparison: Comparison) -> str:
    """Return the verdict, quadrants, rates, gates, slices and worst regressions as tables."""
    return "\n".join(_lines(comparison)) + "\n"


def _lines(comparison: Comparison) -> Iterator[str]:
    word = "✅ passed" if comparison.passed else "❌ failed"
    yield f"## pytest-muscle: {word}"
    yield ""
    yield f"{inert(comparison.old.spec)} → {inert(comparison.new.spec)}"
    yield ""
    yield " ".join(sentences(comparison))
    if comparison.quadrants:
        yield from _quadrants(comparison)
    yield from _rates("Dataset", [(name, each.metrics) for name, each in comparison.datasets.items()])
    if comparison.gates:
        yield from _gates(comparison)
    yield from _slices(comparison)
    yield from _told(evidence.worst_slice_sentences(comparison))
    yield from _told(evidence.noise_sentences(comparison))
    yield from _bias(comparison)
    yield from _adapter(comparison)
    yield from _told(evidence.inherited_sentences(comparison))
    yield from _worst(comparison)
    yield from _told(f"note: {notice}" for notice in comparison.notices)


def _table(
    header: Sequence[str], rows: Iterable[Sequence[str]], title: str = "", texts: int = 1
) -> Iterator[str]:
    yield ""
    if title:
        yield f"### {title}"
        yield ""
    yield f"| {' | '.join(header)} |"
    yield f"|{' --- |' * texts}{' ---: |' * (len(header) - texts)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _quadrants(comparison: Comparison) -> Iterator[str]:
    def cell(flip: Flip, words: str) -> str:
        return f"{comparison.quadrants[flip]:,} {words}"

    right = [cell(Flip.BOTH_CORRECT, "still right")]
    if comparison.quadrants[Flip.BOTH_CORRECT_CHANGED]:
        right.append(cell(Flip.BOTH_CORRECT_CHANGED, "right, another answer"))
    wrong = [cell(Flip.BOTH_WRONG, "same answer"), cell(Flip.INCONSISTENCY, "another answer")]
    yield from _table(
        ["", "new right", "new wrong"],
        [
            ["**old right**", "<br>".join(right), f"**{cell(Flip.NEGATIVE, 'negative flips')}**"],
            ["**old wrong**", cell(Flip.POSITIVE, "positive flips"), "<br>".join(wrong)],
        ],
    )


def _rates(first: str, rows: Sequence[tuple[str, Metrics]], title: str = "") -> Iterator[str]:
    yield from _table(
        [first, "n", "old", "new", "NFR", "95% interval", "NFR_mc", "PFR", "BTC"],
        (
            [
                inert(name, 80),
                f"{metrics.n:,}",
                *_levels(metrics),
                percent(metrics.nfr),
                bounds(metrics.intervals.get("nfr")),
                percent(metrics.nfr_mc),
                percent(metrics.pfr),
                percent(metrics.btc),
            ]
            for name, metrics in rows
        ),
        title,
    )


def _levels(metrics: Metrics) -> tuple[str, str]:
    if metrics.accuracy_old is None and metrics.score_old is not None:
        return score(metrics.score_old), score(metrics.score_new)
    return percent(metrics.accuracy_old), percent(metrics.accuracy_new)


def _gates(comparison: Comparison) -> Iterator[str]:
    yield from _table(
        ["Gate", "Value", "95% interval", "Budget", "Verdict"],
        (
            [
                f"{inert(gate.name)} {inert(gate.scope, 80)}",
                amount(gate.name, gate.value)
                + (f" without {gate.accepted:,} accepted" if gate.accepted else ""),
                bounds(gate.interval, gate.name),
                amount(gate.name, gate.limit),
                f"{ruled(gate)}{'<br>'.join(['', *gate.details()])}",
            ]
            for gate in comparison.gates[:_MOST_ROWS]
        ),
        "Gates",
    )
    yield from _more(len(comparison.gates) - _MOST_ROWS, "gates")


def _slices(comparison: Comparison) -> Iterator[str]:
    slices = [
        (f"{name} {key}" if len(comparison.datasets) > 1 else key, metrics)
        for name, dataset in comparison.datasets.items()
        for key, metrics in dataset.slices.items()
    ]
    if slices:
        slices.sort(key=lambda each: (-(each[1].nfr or 0.0), each[0]))
        yield from _rates("Slice, highest NFR first", slices[:_MOST_ROWS], "Slices")
        yield from _more(len(slices) - _MOST_ROWS, "slices")


def _told(sentences: Iterable[str]) -> Iterator[str]:
    yield ""
    for sentence in sentences:
        yield f"- {inert(sentence.strip(), 400)}"


def _bias(comparison: Comparison) -> Iterator[str]:
    rows = list(evidence.bias_rows(comparison))
    if rows:
        cells = [[inert(cell) for cell in row] for row in rows[1:]]
        yield from _table(rows[0], cells, "Bias", texts=len(rows[0]))


def _adapter(comparison: Comparison) -> Iterator[str]:
    adapter = comparison.adapter
    if adapter is None:
        return
    sides = [("without", adapter.before.metrics)]
    if adapter.after is not None:
        sides.append(("with", adapter.after.metrics))
    yield from _table(
        ["Compatibility adapter", "new", "NFR", "95% interval", "NFR_mc", "PFR"],
        (
            [
                name,
                _levels(metrics)[1],
                percent(metrics.nfr),
                bounds(metrics.intervals.get("nfr")),
                percent(metrics.nfr_mc),
                percent(metrics.pfr),
            ]
            for name, metrics in sides
        ),
        "Adapter",
    )
    if adapter.after is None:
        yield ""
        yield "No adapter was worth keeping: the release judged here is the new model alone."


def _worst(comparison: Comparison) -> Iterator[str]:
    regressions = [r for r in worst_first(comparison) if r.flip and r.flip.is_regression]
    if not regressions:
        return
    yield from _table(
        ["Case", "Flip", "What changed", "Outcome"],
        (
            [
                inert(f"{r.case.dataset}::{r.case.id}", 120),
                r.flip.words if r.flip else "",
                inert(change(r), 300),
                str(comparison.outcomes[r.case.key].verdict),
            ]
            for r in regressions[:_MOST_WORST]
        ),
        "Worst regressions",
        texts=4,
    )
    yield from _more(len(regressions) - _MOST_WORST, "regressions")


def _more(number: int, words: str) -> Iterator[str]:
    if number > 0:
        yield ""
        yield f"... and {number:,} more {words}."
