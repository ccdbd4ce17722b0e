"""Cells -> tables and a plot: means and 95% intervals over pairs, exact permutation tests."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from itertools import product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

Cell = dict[str, Any]

# Two-sided 95% quantiles of Student's t for 1, 2 ... degrees of freedom.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
CONTROLS = ("cross-entropy", "cross-entropy + new")
CHOSEN = "chosen on validation"


def line(cell: Cell) -> str:
    """One cell in one line."""
    return (
        f"{cell['scenario']:24} {cell['pair']:7} {cell['variant']:32} score {cell['score']:.4f}  "
        f"NFR {cell['nfr']:.4f}"
    )


def write(results: Path) -> str:
    """The tables as Markdown; the plot is written beside the results."""
    cells = [json.loads(row) for row in results.read_text(encoding="utf-8").splitlines()]
    scenarios: dict[str, dict[str, dict[str, Cell]]] = defaultdict(lambda: defaultdict(dict))
    for cell in cells:
        scenarios[cell["scenario"]][cell["variant"]][cell["pair"]] = cell
    for variants in scenarios.values():
        if chosen := choose(variants):
            variants[CHOSEN] = chosen
    results.with_suffix(".svg").write_text(plot(scenarios), encoding="utf-8")
    return "\n\n".join(
        [overview(scenarios), *(table(name, variants) for name, variants in scenarios.items())]
    )


SHOWN = (
    "cross-entropy",
    "cross-entropy + new",
    "paper",
    "truth-weighted",
    "average",
    "average, guard right",
    "average, guard flips",
    # The first round's.
    "default",
    "cross-entropy, 3 epochs",
    "default, 3 epochs",
)


def overview(scenarios: Mapping[str, Mapping[str, Mapping[str, Cell]]]) -> str:
    """One row a scenario: the mean change of NFR in percent and, in brackets, that of the score in points."""
    most = max(len(variants["new model"]) for variants in scenarios.values())
    shown = [name for name in SHOWN if any(name in variants for variants in scenarios.values())]
    rows = [f"| | {' | '.join(shown)} |", f"| --- |{' --- |' * len(shown)}"]
    for scenario, variants in scenarios.items():
        plain = variants["new model"]
        figures = []
        for name in shown:
            by_pair = variants.get(name, {})
            if not by_pair:
                figures.append("")
                continue
            flips, _ = mean_and_half_width([relative(by_pair[p]["nfr"], plain[p]["nfr"]) for p in by_pair])
            gain, _ = mean_and_half_width([100 * (by_pair[p]["score"] - plain[p]["score"]) for p in by_pair])
            few = f", {len(by_pair)} of {len(plain)} pairs" if len(by_pair) < len(plain) else ""
            figures.append(f"{flips:+.0f}% ({gain:+.1f}{few})")
        few = f" ({len(plain)} of {most} pairs)" if len(plain) < most else ""
        rows.append(f"| {scenario}{few} | {' | '.join(figures)} |")
    return "\n".join(rows)


def table(name: str, variants: Mapping[str, Mapping[str, Cell]]) -> str:
    """One scenario: a row for each variant."""
    plain = variants["new model"]
    pairs = sorted(plain)
    mean = {
        key: 100 * sum(plain[p][key] for p in pairs) / len(pairs) for key in ("score_old", "score", "nfr")
    }
    gaps = {
        model: 100 * sum(plain[p][f"{model}_a"] - plain[p][f"{model}_b"] for p in pairs) / len(pairs)
        for model in ("old", "new")
    }
    rows = [
        f"### {name}",
        "",
        f"{len(pairs)} pairs, {plain[pairs[0]]['n']} cases each; old model {mean['score_old']:.1f}, "
        f"new model {mean['score']:.1f}, its NFR {mean['nfr']:.2f}%; "
        f"gap between groups: old {gaps['old']:+.1f}, new {gaps['new']:+.1f}",
        "",
        "| variant | NFR, change in % | score, change in points | p: v2 | p: CE | p: CE + new | "
        "inherited, % | gap between groups |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    if plain[pairs[0]].get("averaged"):
        better = [relative(plain[p]["averaged"]["nfr"], plain[p]["nfr"]) for p in pairs]
        gains = [100 * (plain[p]["averaged"]["score"] - plain[p]["score"]) for p in pairs]
        rows.append(
            f"| *both models averaged, at twice the cost* | {interval(better)} | {interval(gains)} ||||||"
        )
    for variant, by_pair in variants.items():
        if variant == "new model":
            continue
        pairs = [p for p in plain if p in by_pair]
        flips = [relative(by_pair[p]["nfr"], plain[p]["nfr"]) for p in pairs]
        scores = [100 * (by_pair[p]["score"] - plain[p]["score"]) for p in pairs]
        tests = []
        for other in ("new model", *(control(name, variant) for name in CONTROLS)):
            against = variants.get(other, {})
            differences = [by_pair[p]["nfr"] - against[p]["nfr"] for p in pairs if p in against]
            whole = len(differences) == len(pairs) and other != variant
            tests.append(test(differences) if whole else "")
        inherited = 100 * sum(by_pair[p]["inherited"] for p in pairs) / len(pairs)
        gap = [100 * (by_pair[p]["new_a"] - by_pair[p]["new_b"]) for p in pairs]
        few = f" ({len(pairs)} of {len(plain)} pairs)" if len(pairs) < len(plain) else ""
        rows.append(
            f"| {variant}{few} | {interval(flips)} | {interval(scores)} | {' | '.join(tests)} | "
            f"{inherited:.2f} | {sum(gap) / len(gap):+.1f} |"
        )
    return "\n".join(rows)


def control(name: str, variant: str) -> str:
    """The control that was trained as long as the variant."""
    return f"{name}, 3 epochs" if "3 epochs" in variant else name


def relative(rate: float, start: float) -> float:
    """The change from ``start`` to ``rate`` in percent of ``start``."""
    return 100 * (rate / start - 1) if start else math.nan


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float]:
    """The mean and half of its 95% interval, by Student's t."""
    n, mean = len(values), sum(values) / len(values)
    if n == 1:
        return mean, math.nan
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    return mean, T95[n - 2] * deviation / math.sqrt(n)


def interval(values: Sequence[float]) -> str:
    """The mean with its 95% interval, which a single value does not have."""
    mean, half = mean_and_half_width(values)
    if math.isnan(half):
        return f"{mean:+.1f}"
    return f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]"


def test(differences: Sequence[float]) -> str:
    """The exact one-sided p of a mean below 0 if each difference could as well have the other sign."""
    observed = sum(differences)
    signs = list(product((1, -1), repeat=len(differences)))
    sums = (sum(s * d for s, d in zip(sign, differences, strict=True)) for sign in signs)
    return f"{sum(each <= observed + 1e-12 for each in sums) / len(signs):.3f}"


def choose(variants: Mapping[str, Mapping[str, Cell]]) -> dict[str, Cell] | None:
    """For each pair the variant, of those that know the old model, that validation likes best.

    Only the first round held records back for validation. A variant's price is its NFR and what it loses in
    score there; the new model as it is stays where no variant is cheaper.
    """
    others = ("new model", "KL to new alone")
    candidates = [name for name in variants if name not in others and "3 epochs" not in name]
    candidates = [name for name in candidates if not name.startswith("cross-entropy")]
    validated = any("validation" in cell for name in candidates for cell in variants[name].values())
    if len(candidates) < 2 or not validated:
        return None
    chosen = {}
    for pair, plain in variants["new model"].items():
        priced = [(price(cell), name) for name in candidates if (cell := variants[name].get(pair))]
        known = [
            cell for name in candidates if (cell := variants[name].get(pair)) and "validation_new" in cell
        ]
        best, name = min(priced, default=(math.inf, ""))
        stay = known[0]["validation_new"][1] if known else 0.0
        chosen[pair] = variants[name][pair] if best < stay else plain
    return chosen


def price(cell: Cell) -> float:
    """Negative flips and lost score on the validation records."""
    if not cell.get("validation"):
        return math.inf
    score, nfr = cell["validation"]
    return float(nfr + max(0.0, cell["validation_new"][0] - score))


COLOURS = {
    "cross-entropy": "#8a8a8a",
    "paper": "#c2772b",
    "truth-weighted": "#7fb0de",
    "average": "#1f5a96",
    "default": "#7fb0de",
    "default, 3 epochs": "#1f5a96",
}


def plot(scenarios: Mapping[str, Mapping[str, Mapping[str, Cell]]]) -> str:
    """Relative change of NFR with intervals: the control and the recipes."""
    shown = {
        name: colour
        for name, colour in COLOURS.items()
        if any(name in variants for variants in scenarios.values())
    }
    left, width, top, step = 190, 460, 46, 50
    height = top + step * len(scenarios) + 34

    def x(value: float) -> float:
        return left + width * (max(-80.0, min(80.0, value)) + 80) / 160

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {height}" '
        'font-family="sans-serif" font-size="12" role="img">',
        "<title>Change of the negative flip rate against the new model, in %</title>",
        f'<rect width="100%" height="100%" fill="#fff"/><line x1="{x(0)}" x2="{x(0)}" y1="{top - 10}" '
        f'y2="{height - 30}" stroke="#333"/>',
    ]
    for number, (name, colour) in enumerate(shown.items()):
        parts.append(
            f'<circle cx="{left - 100 + 140 * number}" cy="18" r="5" fill="{colour}"/>'
            f'<text x="{left - 90 + 140 * number}" y="22">{name}</text>'
        )
    for row, (scenario, variants) in enumerate(scenarios.items()):
        middle = top + step * row + step / 2
        parts.append(f'<text x="8" y="{middle + 4}">{scenario}</text>')
        for number, (name, colour) in enumerate(shown.items()):
            plain = variants["new model"]
            pairs = [p for p in plain if p in variants.get(name, {})]
            if not pairs:
                continue
            mean, half = mean_and_half_width(
                [relative(variants[name][p]["nfr"], plain[p]["nfr"]) for p in pairs]
            )
            y = middle + 10 * (number - 1.5)
            if not math.isnan(half):
                parts.append(
                    f'<line x1="{x(mean - half):.1f}" x2="{x(mean + half):.1f}" y1="{y}" y2="{y}" '
                    f'stroke="{colour}" stroke-width="2"/>'
                )
            parts.append(f'<circle cx="{x(mean):.1f}" cy="{y}" r="4.5" fill="{colour}"/>')
    for value in range(-80, 81, 40):
        parts.append(f'<text x="{x(value)}" y="{height - 12}" text-anchor="middle">{value:+d}%</text>')
    return "\n".join([*parts, "</svg>", ""])
