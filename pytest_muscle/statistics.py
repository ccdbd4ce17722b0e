"""Intervals, tests and sample sizes: plain numbers in, plain numbers out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import NormalDist

_NORMAL = NormalDist()
ALPHA = 0.025
"""The chance of error at each end of an interval: every interval here is a two-sided 95% one."""
Z = _NORMAL.inv_cdf(1 - ALPHA)
POWER_Z = _NORMAL.inv_cdf(0.8)
"""The quantile of the power, 80%, with which a needed number of cases is to show a difference."""

_NORMAL_FROM = 5_000
_RESAMPLES = 2_000

Interval = tuple[float, float]


# Intervals ----------------------------------------------------------------------------------------


def wilson(k: float, n: float, z: float = Z) -> Interval:
    """Return Wilson's score interval of ``k`` in ``n`` (Wilson 1927), by default at 95%.

    ``k`` may be a sum of fractions of cases: the variance of such a mean is at most that of a rate.
    """
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(max(p * (1 - p), 0.0) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return (0.0 if k <= 0 else centre - half, 1.0 if k >= n else centre + half)


def newcombe(a: int, b: int, c: int, d: int, z: float = Z) -> Interval:
    """Return the interval of the paired difference of accuracies, new less old, by default at 95%.

    ``a`` cases are right in both, ``b`` only in the old, ``c`` only in the new, ``d`` in neither
    (Newcombe 1998, method 10: Wilson limits joined by the correlation, which is corrected for
    continuity where it is positive).
    """
    n = a + b + c + d
    old, new = (a + b) / n, (a + c) / n
    spread = math.sqrt((a + b) * (c + d) * (a + c) * (b + d))
    excess = a * d - b * c
    shrunk = max(excess - n / 2, 0.0) if excess > 0 else float(excess)
    phi = shrunk / spread if spread else 0.0
    return _joined(new, wilson(a + c, n, z), old, wilson(a + b, n, z), phi)


def difference(first: float, first_within: Interval, second: float, second_within: Interval) -> Interval:
    """Return the interval of ``first - second`` from the interval of each.

    The limits are squared and added (Zou and Donner 2008) as for independent rates; where the two
    are positively correlated, it is wider than it needs to be.
    """
    return _joined(first, first_within, second, second_within, 0.0)


def _joined(x: float, x_within: Interval, y: float, y_within: Interval, phi: float) -> Interval:
    (lx, ux), (ly, uy) = x_within, y_within
    down = (x - lx) ** 2 - 2 * phi * (x - lx) * (uy - y) + (uy - y) ** 2
    up = (ux - x) ** 2 - 2 * phi * (ux - x) * (y - ly) + (y - ly) ** 2
    return max(x - y - math.sqrt(max(down, 0.0)), -1.0), min(x - y + math.sqrt(max(up, 0.0)), 1.0)


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Interval:
    """Return the 95% bootstrap interval of the mean (Efron 1979), seeded; the values' order does not matter.

    The percentiles are widened by Student's t, without which they are too narrow in small samples
    (Hesterberg 2015). From 5,000 values on, the normal interval is returned: the two then differ by
    less than the resampling's own noise.
    """
    import numpy as np

    data = np.sort(np.asarray(values, dtype=np.float64))
    n = len(data)
    if n >= _NORMAL_FROM:
        half = Z * float(data.std(ddof=1)) / math.sqrt(n)
        return float(data.mean()) - half, float(data.mean()) + half
    random = np.random.default_rng(seed)
    rows = max(1, 4_000_000 // n)
    means = [
        data[random.integers(0, n, (min(rows, _RESAMPLES - done), n))].mean(axis=1)
        for done in range(0, _RESAMPLES, rows)
    ]
    outside = _NORMAL.cdf(-math.sqrt(n / (n - 1)) * student(n - 1)) if n > 1 else 0.0
    low, high = np.quantile(np.concatenate(means), [outside, 1 - outside])
    return float(low), float(high)


def student(freedom: int) -> float:
    """Return the 97.5% quantile of Student's t with so many degrees of freedom.

    From the closed form of the distribution in the angle whose tangent is t / sqrt(freedom)
    (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    is_odd = freedom % 2

    def within(angle: float) -> float:
        squared = math.cos(angle) ** 2
        ratios = (squared * i / (i + 1) for i in range(1 + is_odd, freedom - 2, 2))
        if not is_odd:
            return math.sin(angle) * _summed(1.0, ratios)
        rest = math.sin(angle) * _summed(math.cos(angle), ratios) if freedom > 1 else 0.0
        return 2 * (angle + rest) / math.pi

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < 1 - 2 * ALPHA else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


# Tests --------------------------------------------------------------------------------------------


def mcnemar(b: int, c: int) -> float:
    """Return the exact two-sided p-value of ``b`` against ``c`` discordant pairs (McNemar 1947)."""
    return min(1.0, 2 * binomial_tail(max(b, c), b + c, 0.5))


def binomial_tail(k: int, n: int, p: float) -> float:
    """Return the chance of ``k`` or more in ``n`` where each has the chance ``p``."""
    if k <= 0 or p >= 1:
        return 1.0
    if p <= 0 or k > n:
        return 0.0
    odds = p / (1 - p)

    def term(i: int) -> float:
        log = _log_choose(n, i) + i * math.log(p) + (n - i) * math.log1p(-p)
        return math.exp(log)

    if k > n * p:
        return min(_summed(term(k), (odds * (n - i) / (i + 1) for i in range(k, n))), 1.0)
    below = _summed(term(k - 1), (i / ((n - i + 1) * odds) for i in range(k - 1, 0, -1)))
    return max(1.0 - below, 0.0)


def hypergeometric_tail(k: int, marked: int, drawn: int, total: int) -> float:
    """Return the chance of ``k`` or more marked among ``drawn`` of ``total``, ``marked`` being marked.

    One-sided exact test (Fisher 1922) of whether a part holds more than its share.
    """
    if k <= max(0, marked + drawn - total):
        return 1.0
    if k > min(marked, drawn):
        return 0.0
    if k * total <= marked * drawn:
        return max(1.0 - hypergeometric_tail(drawn - k + 1, total - marked, drawn, total), 0.0)
    log = _log_choose(marked, k) + _log_choose(total - marked, drawn - k) - _log_choose(total, drawn)
    ratios = (
        (marked - i) * (drawn - i) / ((i + 1) * (total - marked - drawn + i + 1))
        for i in range(k, min(marked, drawn))
    )
    return min(_summed(math.exp(log), ratios), 1.0)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def _summed(term: float, ratios: Iterable[float]) -> float:
    total = term
    for ratio in ratios:
        term *= ratio
        total += term
        if term < total * 1e-17:
            break
    return total


def exceeds(limit: float, lower: Callable[[float], float]) -> float:
    """Return the one-sided p-value of a figure being over ``limit``, from the interval around it.

    ``lower(z)`` is the interval's lower bound at that quantile; it falls as ``z`` grows. The p-value is
    that of the widest interval that still leaves the limit out.
    """
    if lower(0.0) <= limit:
        return 1.0
    low, high = 0.0, 40.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if lower(middle) > limit else (low, middle)
    return _NORMAL.cdf(-low)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number (Holm 1979), in the same order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


# Sample sizes -------------------------------------------------------------------------------------


def cases_for_rate(rate: float, limit: float) -> int | None:
    """Return the cases needed to tell a rate from a limit, at 95% and with a power of 80%.

    The one-sample formula for a proportion (Fleiss, Levin and Paik 2003, 2.2); None where the two are
    equal.
    """
    if rate == limit:
        return None
    at_limit, at_rate = (math.sqrt(p * (1 - p)) for p in (limit, rate))
    return math.ceil(((Z * at_limit + POWER_Z * at_rate) / (rate - limit)) ** 2)


def cases_for_difference(change: float, discordant: float, limit: float = 0.0) -> int | None:
    """Return the pairs needed to tell a paired difference from a limit, at 95%, with a power of 80%.

    ``discordant`` is the share of pairs right on one side only (Connor 1987 for the limit 0). None
    where difference and limit are equal.
    """
    if change == limit:
        return None
    at_limit, at_change = (math.sqrt(max(discordant - d * d, 0.0)) for d in (limit, change))
    return max(math.ceil(((Z * at_limit + POWER_Z * at_change) / (change - limit)) ** 2), 1)


def values_for_mean(mean: float, deviation: float, limit: float) -> int | None:
    """Return the values needed to tell their mean from a limit, at 95%, with a power of 80%."""
    if mean == limit:
        return None
    return max(math.ceil(((Z + POWER_Z) * deviation / (mean - limit)) ** 2), 2)
