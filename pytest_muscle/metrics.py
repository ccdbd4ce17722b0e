"""Flips -> rates, magnitudes, intervals and tests."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pytest_muscle.flips import CaseResult, Flip
from pytest_muscle.golden import GoldenCase

Z = 1.959963984540054
"""The standard normal's 97.5% quantile: every interval here is a two-sided 95% one."""

T = TypeVar("T")
Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Metrics:
    """What the update did to a set of cases; a rate that has no instances is None.

    ``n`` cases were judged, ``errors`` could not be. ``nfr`` and ``pfr`` count over all judged cases;
    ``accuracy_*``, ``nfr_mc``, ``inconsistency_rate``, ``btc`` and ``mcnemar_p`` over those with a right
    and a wrong (multiple choice, exact match); ``score_*``, ``mean_delta``, ``mean_gain`` and
    ``mean_regression`` over generation. ``counts`` holds the cases of each flip. Definitions:
    arXiv 2407.09435, section 3; ``btc`` is Srivastava et al. 2020.
    """

    n: int
    errors: int
    counts: dict[str, int]
    accuracy_old: float | None
    accuracy_new: float | None
    accuracy_delta: float | None
    nfr: float | None
    nfr_mc: float | None
    pfr: float | None
    inconsistency_rate: float | None
    btc: float | None
    score_old: float | None
    score_new: float | None
    mean_delta: float | None
    mean_gain: float | None
    mean_regression: float | None
    mcnemar_p: float | None
    intervals: dict[str, Interval] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain["counts"] = dict(self.counts)
        plain["intervals"] = {name: list(bounds) for name, bounds in self.intervals.items()}
        return plain


def measure(results: Sequence[CaseResult], seed: int = 0) -> Metrics:
    """Compute every metric of a set of results; ``seed`` fixes the bootstrap of ``mean_delta``."""
    judged = [result for result in results if result.flip is not None]
    answered = Counter(r.flip for r in judged if r.case.task != "generation")
    deltas = [r.delta for r in judged if r.case.task == "generation" and r.delta is not None]
    scored = [r for r in judged if r.case.task == "generation"]
    flips = Counter(r.flip for r in judged)
    n, m = len(judged), sum(answered.values())
    right = answered[Flip.BOTH_CORRECT] + answered[Flip.BOTH_CORRECT_CHANGED]
    negative, positive = answered[Flip.NEGATIVE], answered[Flip.POSITIVE]
    inconsistent = answered[Flip.INCONSISTENCY]
    gains = [r.delta or 0.0 for r in scored if r.flip is Flip.POSITIVE]
    losses = [-(r.delta or 0.0) for r in scored if r.flip is Flip.NEGATIVE]
    rates = {
        "accuracy_old": (right + negative, m),
        "accuracy_new": (right + positive, m),
        "nfr": (flips[Flip.NEGATIVE], n),
        "nfr_mc": (negative + inconsistent, m),
        "pfr": (flips[Flip.POSITIVE], n),
        "inconsistency_rate": (inconsistent, m),
        "btc": (right, right + negative),
    }
    intervals = {name: wilson(k, of) for name, (k, of) in rates.items() if of}
    if m:
        intervals["accuracy_delta"] = newcombe(right, negative, positive, m - right - negative - positive)
    if deltas:
        intervals["mean_delta"] = bootstrap_mean(deltas, seed)
    values = {name: k / of if of else None for name, (k, of) in rates.items()}
    return Metrics(
        n=n,
        errors=len(results) - n,
        counts={str(flip): flips[flip] for flip in Flip if flips[flip]},
        accuracy_delta=(positive - negative) / m if m else None,
        score_old=_mean([r.old_grade.score or 0.0 for r in scored]),
        score_new=_mean([r.new_grade.score or 0.0 for r in scored]),
        mean_delta=_mean(deltas),
        mean_gain=_mean(gains),
        mean_regression=_mean(losses),
        mcnemar_p=mcnemar(negative, positive) if m else None,
        intervals=intervals,
        **values,
    )


def slices_of(case: GoldenCase) -> list[str]:
    """Return the slices a case belongs to, one for each tag: ``lang=de``."""
    return [f"{tag}={value}" for tag, value in case.tags.items()]


def slice_members(items: Sequence[T], case_of: Callable[[T], GoldenCase]) -> dict[str, list[T]]:
    """Group items by slice; the slice ``""`` holds them all."""
    members: dict[str, list[T]] = {"": list(items)}
    for item in items:
        for name in slices_of(case_of(item)):
            members.setdefault(name, []).append(item)
    return members


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def wilson(k: int, n: int) -> Interval:
    """Return Wilson's 95% score interval of ``k`` in ``n`` (Wilson 1927)."""
    p = k / n
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return (0.0 if k == 0 else centre - half, 1.0 if k == n else centre + half)


def newcombe(a: int, b: int, c: int, d: int) -> Interval:
    """Return the 95% interval of the paired difference of accuracies, new less old.

    ``a`` cases are right in both, ``b`` only in the old, ``c`` only in the new, ``d`` in neither
    (Newcombe 1998, method 10: Wilson limits joined by the correlation, continuity corrected).
    """
    n = a + b + c + d
    old, new = (a + b) / n, (a + c) / n
    (l1, u1), (l2, u2) = wilson(a + b, n), wilson(a + c, n)
    spread = math.sqrt((a + b) * (c + d) * (a + c) * (b + d))
    excess = a * d - b * c
    shrunk = max(excess - n / 2, 0.0) if excess > 0 else float(excess)
    phi = shrunk / spread if spread else 0.0
    down = (new - l2) ** 2 - 2 * phi * (new - l2) * (u1 - old) + (u1 - old) ** 2
    up = (u2 - new) ** 2 - 2 * phi * (u2 - new) * (old - l1) + (old - l1) ** 2
    delta = new - old
    return (max(delta - math.sqrt(max(down, 0.0)), -1.0), min(delta + math.sqrt(max(up, 0.0)), 1.0))


def mcnemar(b: int, c: int) -> float:
    """Return the exact two-sided p-value of ``b`` against ``c`` discordant pairs (McNemar 1947)."""
    m, k = b + c, min(b, c)
    term = math.exp(math.lgamma(m + 1) - math.lgamma(k + 1) - math.lgamma(m - k + 1) - m * math.log(2))
    total = 0.0
    for i in range(k, -1, -1):
        total += term
        term *= i / (m - i + 1)
        if term < total * 1e-17:
            break
    return min(1.0, 2 * total)


def bootstrap_mean(values: Sequence[float], seed: int, resamples: int = 2000) -> Interval:
    """Return the 95% percentile bootstrap interval of the mean (Efron 1979), seeded."""
    import numpy as np

    data = np.asarray(values, dtype=np.float64)
    random = np.random.default_rng(seed)
    rows = max(1, 4_000_000 // len(data))
    means = [
        data[random.integers(0, len(data), (min(rows, resamples - done), len(data)))].mean(axis=1)
        for done in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)
