"""Flips -> rates and magnitudes with their intervals; per dataset and per slice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, TypeVar

from pytest_muscle.flips import CaseResult, Flip
from pytest_muscle.golden import GoldenCase
from pytest_muscle.statistics import (
    Interval,
    bootstrap_mean,
    hypergeometric_tail,
    mcnemar,
    newcombe,
    wilson,
)

FEW = 30
"""A slice of fewer cases is marked: even without a single flip, over 11% would be no surprise."""

T = TypeVar("T")


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

    @property
    def is_small(self) -> bool:
        """Whether there are too few cases for a rate to mean much."""
        return self.n < FEW

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


def slices_of(case: GoldenCase, pairs: bool = False) -> list[str]:
    """Return the slices a case belongs to, one for each tag (``lang=de``) and, if wanted, pair of tags.

    A pair is named in the tags' alphabetical order: ``lang=de,topic=law``.
    """
    single = [f"{tag}={value}" for tag, value in case.tags.items()]
    return single + [",".join(each) for each in combinations(sorted(single), 2)] if pairs else single


def slice_members(
    items: Sequence[T], case_of: Callable[[T], GoldenCase], pairs: bool = False
) -> dict[str, list[T]]:
    """Group items by slice; the slice ``""`` holds them all."""
    members: dict[str, list[T]] = {"": list(items)}
    for item in items:
        for name in slices_of(case_of(item), pairs):
            members.setdefault(name, []).append(item)
    return members


@dataclass(frozen=True, slots=True)
class WorstSlice:
    """The slice whose negative flips are least likely to be chance.

    ``nfr`` of its ``n`` cases against ``nfr_elsewhere`` of the dataset's others. ``p`` is the chance that
    any of the ``searched`` slices would stand out as much by luck alone.
    """

    slice: str
    n: int
    nfr: float
    nfr_elsewhere: float
    p: float
    searched: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def find_worst_slice(metrics: Metrics, slices: Mapping[str, Metrics]) -> WorstSlice | None:
    """Search one dataset's slices for the one that suffers most; None where there is nothing to compare.

    Each slice is held against the rest of the dataset by Fisher's exact test, one-sided, and the
    smallest p-value multiplied by the number of slices searched (Bonferroni, which is Holm's first step).
    """
    flips = metrics.counts.get(str(Flip.NEGATIVE), 0)
    found = []
    for name, part in slices.items():
        if flips and 0 < part.n < metrics.n:
            lost = part.counts.get(str(Flip.NEGATIVE), 0)
            p = hypergeometric_tail(lost, flips, part.n, metrics.n)
            elsewhere = (flips - lost) / (metrics.n - part.n)
            found.append(WorstSlice(name, part.n, lost / part.n, elsewhere, p, 0))
    if not found:
        return None
    worst = min(found, key=lambda each: (each.p, each.slice))
    return replace(worst, p=min(worst.p * len(found), 1.0), searched=len(found))


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
