"""What a sample says about one figure that has a budget: how sure it is, and what would change it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from pytest_muscle.statistics import (
    Interval,
    binomial_tail,
    bootstrap_mean,
    cases_for_difference,
    cases_for_rate,
    difference,
    exceeds,
    newcombe,
    values_for_mean,
    wilson,
)


class Evidence(Protocol):
    """A figure measured on a sample; the larger, the worse the new model."""

    @property
    def value(self) -> float:
        """The figure itself."""
        ...

    @property
    def interval(self) -> Interval | None:
        """Its 95% interval; None where the sample says nothing about one."""
        ...

    @property
    def step(self) -> float:
        """What one case can change; 0 where that depends on the case."""
        ...

    def p_value(self, limit: float) -> float:
        """The one-sided p-value of the figure being over the limit."""
        ...

    def needed(self, limit: float) -> int | None:
        """The cases it takes to tell the figure from the limit; None where no number does."""
        ...

    def shifted(self, changes: int) -> Evidence | None:
        """The same sample with so many answers changed for the worse (below 0: for the better)."""
        ...


@dataclass(frozen=True, slots=True)
class Rate:
    """``k`` of ``n`` cases: Wilson's interval, exact binomial test."""

    k: int
    n: int

    @property
    def value(self) -> float:
        """The rate."""
        return self.k / self.n

    @property
    def interval(self) -> Interval:
        """Wilson's interval."""
        return wilson(self.k, self.n)

    @property
    def step(self) -> float:
        """One case."""
        return 1 / self.n

    def p_value(self, limit: float) -> float:
        """Exact, as Wilson's lower bound errs too often where few flips are expected."""
        return binomial_tail(self.k, self.n, limit) if self.value > limit else 1.0

    def needed(self, limit: float) -> int | None:
        """By the formula for one proportion, whose cases here are pairs of answers."""
        return cases_for_rate(self.value, limit)

    def shifted(self, changes: int) -> Rate | None:
        """So many cases more or fewer."""
        k = self.k + changes
        return replace(self, k=k) if 0 <= k <= self.n else None


@dataclass(frozen=True, slots=True)
class AccuracyDrop:
    """The old accuracy less the new one, by paired counts; below 0 it counts as 0.

    ``both`` right, ``lost`` and ``won`` by the new model, ``neither`` right: Newcombe's interval.
    """

    both: int
    lost: int
    won: int
    neither: int

    @property
    def n(self) -> int:
        """The number of cases."""
        return self.both + self.lost + self.won + self.neither

    @property
    def value(self) -> float:
        """The drop."""
        return max((self.lost - self.won) / self.n, 0.0)

    @property
    def interval(self) -> Interval:
        """Newcombe's paired interval."""
        low, high = newcombe(self.both, self.lost, self.won, self.neither)
        return max(-high, 0.0), max(-low, 0.0)

    @property
    def step(self) -> float:
        """One case."""
        return 1 / self.n

    def p_value(self, limit: float) -> float:
        """From the widest interval that leaves the limit out."""
        return exceeds(limit, lambda z: -newcombe(self.both, self.lost, self.won, self.neither, z)[1])

    def needed(self, limit: float) -> int | None:
        """By the formula for paired proportions."""
        return cases_for_difference((self.lost - self.won) / self.n, (self.lost + self.won) / self.n, limit)

    def shifted(self, changes: int) -> AccuracyDrop | None:
        """Answers the new model loses (from those both have right first) or wins back."""
        both, lost, won, neither = self.both, self.lost, self.won, self.neither
        if changes > 0:
            first = min(changes, both)
            both, lost = both - first, lost + first
            won, neither = won - (changes - first), neither + (changes - first)
        else:
            first = min(-changes, lost)
            both, lost = both + first, lost - first
            won, neither = won + (-changes - first), neither - (-changes - first)
        return AccuracyDrop(both, lost, won, neither) if won >= 0 and neither >= 0 else None


@dataclass(frozen=True)
class MeanLoss:
    """The mean size of the regressions, ``losses`` (> 0), among ``n`` cases: bootstrap interval."""

    losses: Sequence[float]
    n: int

    @property
    def value(self) -> float:
        """The mean loss, 0 where nothing was lost."""
        return math.fsum(self.losses) / len(self.losses) if self.losses else 0.0

    @cached_property
    def interval(self) -> Interval | None:
        """The bootstrap interval; None for a single regression, nothing but 0 for none."""
        if not self.losses:
            return 0.0, 0.0
        return bootstrap_mean(self.losses) if len(self.losses) > 1 else None

    @property
    def step(self) -> float:
        """Unknown: a case can change by any amount."""
        return 0.0

    def p_value(self, limit: float) -> float:
        """From Student's t, taken as normal: the bootstrap has no tails far out."""
        if len(self.losses) < 2:
            return 1.0
        error = self._deviation / math.sqrt(len(self.losses))
        return exceeds(limit, lambda z: self.value - z * error)

    def needed(self, limit: float) -> int | None:
        """The cases that bring as many regressions as needed, if they stay as frequent."""
        if len(self.losses) < 2:
            return None
        regressions = values_for_mean(self.value, self._deviation, limit)
        return regressions and math.ceil(regressions * self.n / len(self.losses))

    @cached_property
    def _deviation(self) -> float:
        mean = self.value
        return math.sqrt(math.fsum((x - mean) ** 2 for x in self.losses) / (len(self.losses) - 1))

    def shifted(self, changes: int) -> None:
        """No count of answers says how far the mean moves."""


@dataclass(frozen=True, slots=True)
class ExcessRate:
    """One draw of the new model against the old one, less one draw of the old against another.

    ``flips`` and ``own`` are sums over ``n`` cases of the share of pairs of draws that flip; their
    difference counts as 0 below 0.
    """

    flips: float
    own: float
    n: int

    @property
    def value(self) -> float:
        """The excess."""
        return max((self.flips - self.own) / self.n, 0.0)

    @property
    def interval(self) -> Interval:
        """Both rates' Wilson intervals, joined."""
        low, high = self._bounds(None)
        return max(low, 0.0), max(high, 0.0)

    def _bounds(self, z: float | None) -> Interval:
        how = () if z is None else (z,)
        return difference(
            self.flips / self.n,
            wilson(self.flips, self.n, *how),
            self.own / self.n,
            wilson(self.own, self.n, *how),
        )

    @property
    def step(self) -> float:
        """One case."""
        return 1 / self.n

    def p_value(self, limit: float) -> float:
        """From the widest interval that leaves the limit out."""
        return exceeds(limit, lambda z: self._bounds(z)[0])

    def needed(self, limit: float) -> int | None:
        """As for a paired difference; the two rates are the discordant shares."""
        return cases_for_difference((self.flips - self.own) / self.n, (self.flips + self.own) / self.n, limit)

    def shifted(self, changes: int) -> ExcessRate | None:
        """So many cases that now flip in every draw, or in none."""
        flips = self.flips + changes
        return replace(self, flips=flips) if 0 <= flips <= self.n else None
