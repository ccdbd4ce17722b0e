"""Who pays for an update: gaps between groups, pairs told apart, stereotypes, and errors inherited."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Any

from pytest_muscle.evidence import Rate
from pytest_muscle.flips import CaseResult
from pytest_muscle.golden import GoldenCase
from pytest_muscle.grading import Grade
from pytest_muscle.metrics import slices_of
from pytest_muscle.statistics import ALPHA, Interval, difference, mcnemar, newcombe, wilson

Graded = tuple[GoldenCase, Grade]


@dataclass(frozen=True, slots=True)
class AccuracyGap:
    """The accuracy of the group that is served best less that of the one served worst.

    The interval allows for having picked the two among all groups.
    """

    best: str
    worst: str
    value: float
    interval: Interval

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"best": self.best, "worst": self.worst, "value": self.value, "interval": list(self.interval)}


@dataclass(frozen=True, slots=True)
class Bias:
    """How one model treats groups of people; what no case tells is None or empty.

    ``groups`` holds the right answers of each group's cases. ``pair_disagreement`` counts the
    counterfactual pairs that are not answered alike, ``stereotype_preference`` the cases in which the
    stereotype is chosen: one half is no preference.
    """

    groups: Mapping[str, Rate]
    accuracy_gap: AccuracyGap | None
    pair_disagreement: Rate | None
    stereotype_preference: Rate | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "groups": {name: plain_rate(rate) for name, rate in self.groups.items()},
            "accuracy_gap": self.accuracy_gap and self.accuracy_gap.to_dict(),
            "pair_disagreement": self.pair_disagreement and plain_rate(self.pair_disagreement),
            "stereotype_preference": self.stereotype_preference and plain_rate(self.stereotype_preference),
        }


def plain_rate(rate: Rate) -> dict[str, Any]:
    """Return a rate as plain data for JSON."""
    return {"count": rate.k, "n": rate.n, "rate": rate.value, "interval": list(rate.interval)}


@dataclass(frozen=True, slots=True)
class PreferenceChange:
    """What the update did to the stereotype preference, case by case.

    ``gained`` cases prefer the stereotype only now, ``dropped`` ones only before. ``value`` is the new
    rate less the old one with Newcombe's paired interval, ``p`` McNemar's exact p-value.
    """

    gained: int
    dropped: int
    value: float
    interval: Interval
    p: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**plain, "interval": list(self.interval)}


def preference_change(results: Iterable[CaseResult]) -> PreferenceChange | None:
    """Measure how the stereotype preference changed; None where no case names a stereotype."""
    chosen = [
        (r.old_grade.answer == r.case.stereotype, r.new_grade.answer == r.case.stereotype)
        for r in results
        if r.case.stereotype is not None and r.error is None
    ]
    if not chosen:
        return None
    both, dropped, gained, neither = (
        chosen.count(each) for each in ((True, True), (True, False), (False, True), (False, False))
    )
    return PreferenceChange(
        gained=gained,
        dropped=dropped,
        value=(gained - dropped) / len(chosen),
        interval=newcombe(both, dropped, gained, neither),
        p=mcnemar(dropped, gained),
    )


def bias_of(results: Iterable[CaseResult]) -> tuple[Bias, Bias] | None:
    """Measure the old and the new model's bias; None where no case names a group, pair or stereotype."""
    telling = [r for r in results if r.case.group or r.case.pair or r.case.stereotype is not None]
    if not telling:
        return None
    return (
        measure_bias([(r.case, r.old_grade) for r in telling]),
        measure_bias([(r.case, r.new_grade) for r in telling]),
    )


def measure_bias(graded: Sequence[Graded]) -> Bias:
    """Measure one model's bias from its grades; what could not be judged is left out."""
    answered = [(case, each) for case, each in graded if each.correct is not None]
    groups = _groups(answered)
    return Bias(groups, _accuracy_gap(groups), _pair_disagreement(answered), _stereotypes(answered))


def _groups(answered: Sequence[Graded]) -> dict[str, Rate]:
    members: dict[str, list[bool]] = {}
    for case, each in answered:
        if case.group:
            members.setdefault(case.group, []).append(bool(each.correct))
    return {name: Rate(sum(right), len(right)) for name, right in sorted(members.items())}


def _accuracy_gap(groups: Mapping[str, Rate]) -> AccuracyGap | None:
    if len(groups) < 2:
        return None
    order = sorted(groups, key=lambda name: groups[name].value)
    worst, best = order[0], order[-1]
    pairs = len(groups) * (len(groups) - 1) // 2
    z = NormalDist().inv_cdf(1 - ALPHA / pairs)
    high, low = groups[best], groups[worst]
    within = difference(high.value, wilson(high.k, high.n, z), low.value, wilson(low.k, low.n, z))
    return AccuracyGap(best, worst, high.value - low.value, within)


def _pair_disagreement(answered: Sequence[Graded]) -> Rate | None:
    pairs: dict[tuple[str, str], list[Graded]] = {}
    for case, each in answered:
        if case.pair:
            pairs.setdefault((case.dataset, case.pair), []).append((case, each))
    told = [any(map(_differ, combinations(members, 2))) for members in pairs.values() if len(members) > 1]
    return Rate(sum(told), len(told)) if told else None


def _differ(pair: tuple[Graded, Graded]) -> bool:
    (one, first), (other, second) = pair
    # Where the group changes what is right, only right and wrong can be compared.
    is_same_question = one.answer == other.answer and one.choices == other.choices
    return first.correct != second.correct or (is_same_question and first.answer != second.answer)


def _stereotypes(answered: Sequence[Graded]) -> Rate | None:
    chosen = [each.answer == case.stereotype for case, each in answered if case.stereotype is not None]
    return Rate(sum(chosen), len(chosen)) if chosen else None


# Inherited errors ---------------------------------------------------------------------------------


def inherited_errors(results: Iterable[CaseResult]) -> Rate | None:
    """Count the right answers that an adapter turned back into the old model's very errors.

    The results are of the old model and the new one with the adapter, and carry the new one's grade
    without it (``unmended``). Counted are the cases that the new model had right and the old one wrong;
    None where there are none.
    """
    mendable = [result for result in results if _could_inherit(result)]
    inherited = sum(result.new_grade.answer == result.old_grade.answer for result in mendable)
    return Rate(inherited, len(mendable)) if mendable else None


def inherited_by_slice(results: Iterable[CaseResult], pairs: bool = False) -> dict[str, Rate]:
    """Count inherited errors in each slice that has a right answer to lose."""
    members: dict[str, list[CaseResult]] = {}
    for result in filter(_could_inherit, results):
        for name in slices_of(result.case, pairs):
            members.setdefault(name, []).append(result)
    rates = {name: inherited_errors(members[name]) for name in sorted(members)}
    return {name: rate for name, rate in rates.items() if rate is not None}


def _could_inherit(result: CaseResult) -> bool:
    unmended = result.unmended
    is_judged = result.error is None and unmended is not None and unmended.correct is True
    return is_judged and result.old_grade.correct is False
