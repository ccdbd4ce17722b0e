"""Metrics x thresholds -> verdicts, on the release and on each case."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any

from pytest_muscle.bias import inherited_errors
from pytest_muscle.errors import did_you_mean
from pytest_muscle.evidence import AccuracyDrop, Evidence, MeanLoss, Rate
from pytest_muscle.flips import CaseResult, Flip
from pytest_muscle.golden import GoldenCase
from pytest_muscle.metrics import slice_members, slices_of
from pytest_muscle.sampling import excess_of
from pytest_muscle.settings.options import Decision, Inconclusive
from pytest_muscle.settings.values import Threshold
from pytest_muscle.statistics import ALPHA, Interval, holm

Key = tuple[str, str]
_LEAST = 1e-12


# What a budget is about ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Budget:
    """What a threshold's name stands for: the figure's evidence, and the flips the budget pays for.

    ``is_for_flips`` says whether setting it means that single flips need not fail, ``nothing`` why the
    figure may not exist.
    """

    measure: Callable[[Sequence[CaseResult]], Evidence | None]
    flips: frozenset[Flip] = frozenset()
    needs: Callable[[GoldenCase], bool] = lambda case: True
    is_for_flips: bool = True
    nothing: str = "no case could be judged"


def _is_answered(case: GoldenCase) -> bool:
    return case.task != "generation"


def _rate(flips: frozenset[Flip], results: Sequence[CaseResult]) -> Rate | None:
    judged = [result.flip for result in results if result.flip is not None]
    return Rate(sum(flip in flips for flip in judged), len(judged)) if judged else None


def _accuracy_drop(results: Sequence[CaseResult]) -> AccuracyDrop | None:
    counts = dict.fromkeys(Flip, 0)
    for result in results:
        if result.flip is not None:
            counts[result.flip] += 1
    drop = AccuracyDrop(
        both=counts[Flip.BOTH_CORRECT] + counts[Flip.BOTH_CORRECT_CHANGED],
        lost=counts[Flip.NEGATIVE],
        won=counts[Flip.POSITIVE],
        neither=counts[Flip.BOTH_WRONG] + counts[Flip.INCONSISTENCY],
    )
    return drop if drop.n else None


def _mean_regression(results: Sequence[CaseResult]) -> MeanLoss | None:
    judged = [result for result in results if result.flip is not None]
    losses = [-(result.delta or 0.0) for result in judged if result.flip is Flip.NEGATIVE]
    return MeanLoss(losses, len(judged)) if judged else None


def _errors(results: Sequence[CaseResult]) -> Rate | None:
    return Rate(sum(result.error is not None for result in results), len(results)) if results else None


_NFR = frozenset({Flip.NEGATIVE})
_NFR_MC = frozenset({Flip.NEGATIVE, Flip.INCONSISTENCY})
BUDGETS: Mapping[str, Budget] = {
    "max_nfr": Budget(partial(_rate, _NFR), _NFR),
    "max_nfr_mc": Budget(partial(_rate, _NFR_MC), _NFR_MC, _is_answered),
    "max_accuracy_drop": Budget(_accuracy_drop, needs=_is_answered),
    "max_mean_regression": Budget(_mean_regression, needs=lambda case: not _is_answered(case)),
    "max_error_rate": Budget(_errors, is_for_flips=False),
    "max_excess_nfr": Budget(excess_of),
    "max_inherited_error_rate": Budget(
        inherited_errors,
        needs=_is_answered,
        is_for_flips=False,
        nothing="no adapter was trained, or it had no right answer to lose",
    ),
}


# Gates --------------------------------------------------------------------------------------------


class Ruling(StrEnum):
    """What became of a gate."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"
    UNJUDGED = "unjudged"


@dataclass(frozen=True, slots=True)
class Gate:
    """One budget on one dataset or one of its slices.

    ``answered`` of ``cases`` cases have both responses; where some have not, the ruling is UNJUDGED.
    ``accepted`` flips are left out of ``value`` and ``interval``. ``p`` is corrected for the number of
    gates judged by significance, ``tests``. ``needed`` cases would settle the gate at the measured
    rate; ``reversal`` answers, changed for the worse (below 0: the better), would change the ruling.
    """

    name: str
    dataset: str
    slice: str
    limit: float
    cases: int
    decision: Decision = "point"
    inconclusive: Inconclusive = "warn"
    answered: int = 0
    ruling: Ruling = Ruling.UNJUDGED
    value: float | None = None
    interval: Interval | None = None
    accepted: int = 0
    p: float | None = None
    tests: int = 0
    needed: int | None = None
    reversal: int | None = None
    step: float = 0.0

    @property
    def passed(self) -> bool | None:
        """Whether the gate passed; None where it is inconclusive or could not be judged."""
        return {Ruling.PASSED: True, Ruling.FAILED: False}.get(self.ruling)

    @property
    def blocks(self) -> bool:
        """Whether the release is held up: the gate failed, or is inconclusive and may not be."""
        undecided = self.ruling is Ruling.INCONCLUSIVE and self.inconclusive == "fail"
        return self.ruling is Ruling.FAILED or undecided

    @property
    def scope(self) -> str:
        """The dataset, and the slice where there is one: ``golden/qa.jsonl[lang=de]``."""
        return f"{self.dataset}[{self.slice}]" if self.slice else self.dataset

    @property
    def title(self) -> str:
        """The gate within its dataset: ``gate[max_nfr]`` or ``gate[lang=de:max_nfr]``."""
        return f"gate[{self.slice}:{self.name}]" if self.slice else f"gate[{self.name}]"

    @property
    def is_zero_tolerance(self) -> bool:
        """Whether the budget is too small for even one case."""
        return self.ruling is not Ruling.UNJUDGED and 0 <= self.limit < self.step

    def verdict(self) -> str:
        """One sentence: what was measured against what."""
        if self.ruling is Ruling.UNJUDGED:
            if self.answered < self.cases:
                return (
                    f"{self.answered} of {self.cases} cases answered: {self.name} cannot be judged on a part"
                )
            return f"{self.name} has nothing to judge: {BUDGETS[self.name].nothing}"
        measured = self.name.removeprefix("max_")
        bounds = f" (95% interval {self.interval[0]:.4f} to {self.interval[1]:.4f})" if self.interval else ""
        bounds += f" without {self.accepted} accepted" if self.accepted else ""
        return f"{measured} {self.value:.4f} {self._compared()}{bounds}"

    def _compared(self) -> str:
        assert self.value is not None
        word = "within" if self.value <= self.limit + _LEAST else "over"
        against = f"is {word} the budget of {self.limit:g}"
        if self.ruling is not Ruling.INCONCLUSIVE:
            return against
        return f"{against}, but " + ("may be over it" if word == "within" else "not surely")

    def details(self) -> list[str]:
        """What the sample can say, in short clauses: zero tolerance, correction, reversal, cases needed."""
        told: list[str] = []
        if self.ruling is Ruling.UNJUDGED:
            return told
        if self.is_zero_tolerance:
            told.append(f"zero tolerance: the budget is below one in {round(1 / self.step):,} cases")
        if self.p is not None and self.p < 1:
            among = f", corrected for {self.tests:,} gates" if self.tests > 1 else ""
            told.append(f"p = {self.p:.2g}{among}")
        if self.reversal is not None:
            count, way = abs(self.reversal), "worse" if self.reversal > 0 else "better"
            told.append(f"{count:,} answer{'s' * (count != 1)} changed for the {way} would reverse this")
        if self.needed is not None:
            told.append(f"about {self.needed:,} cases would settle it")
        elif self.ruling is Ruling.INCONCLUSIVE:
            told.append("at this rate no number of cases would settle it")
        return told

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "name": self.name,
            "scope": self.scope,
            "limit": self.limit,
            "value": self.value,
            "interval": list(self.interval) if self.interval else None,
            "passed": self.passed,
            "ruling": str(self.ruling),
            "decision": self.decision,
            "inconclusive": self.inconclusive,
            "accepted": self.accepted,
            "p": self.p,
            "tests": self.tests,
            "needed": self.needed,
            "reversal": self.reversal,
            "zero_tolerance": self.is_zero_tolerance,
        }


def plan(
    cases: Sequence[GoldenCase],
    thresholds: Iterable[Threshold],
    inconclusive: Inconclusive | None = None,
    pairs: bool = False,
) -> list[Gate]:
    """Return the gates of one dataset, unjudged; a budget that no case can meet makes none.

    A threshold set for this dataset wins over the same one set for all. ``inconclusive`` is what
    becomes of gates that the sample cannot decide: by default a gate that must be assured fails, and
    any other warns.
    """
    dataset = cases[0].dataset
    members = slice_members(cases, lambda case: case, pairs)
    gates: dict[tuple[str, str], Gate] = {}
    for threshold in sorted(thresholds, key=lambda each: each.dataset != ""):
        if threshold.dataset in ("", dataset):
            size = sum(map(BUDGETS[threshold.name].needs, members.get(threshold.slice, ())))
            if size:
                gates[threshold.name, threshold.slice] = Gate(
                    threshold.name,
                    dataset,
                    threshold.slice,
                    threshold.limit,
                    size,
                    threshold.decision,
                    inconclusive or ("fail" if threshold.decision == "assured" else "warn"),
                )
    return list(gates.values())


def idle_budgets(
    thresholds: Iterable[Threshold],
    planned: Sequence[Gate],
    cases: Iterable[GoldenCase],
    pairs: bool = False,
) -> list[str]:
    """Say which budgets meet no case at all, as one whose slice is misspelt does."""
    met = {(gate.name, gate.slice, dataset) for gate in planned for dataset in ("", gate.dataset)}
    idle = [each for each in thresholds if (each.name, each.slice, each.dataset) not in met]
    slices = {name for case in cases for name in slices_of(case, pairs)} if idle else set()
    told = []
    for each in idle:
        where = f" of {each.dataset}" if each.dataset else ""
        where += f", slice {each.slice}" if each.slice else ""
        hint = did_you_mean(each.slice, slices) if each.slice not in slices else ""
        told.append(f"the budget {each.name}{where} meets no case{hint}")
    return told


def decide(
    planned: Sequence[Gate],
    results: Iterable[CaseResult],
    accepted: Container[Key] = (),
    pairs: bool = False,
) -> list[Gate]:
    """Judge gates from the results at hand.

    The cases whose keys are ``accepted`` count as if they had not flipped.
    """
    members = _members(planned, results, pairs)
    weighed = [_weigh(gate, members[gate.dataset, gate.slice], accepted) for gate in planned]
    chances = [
        evidence.p_value(gate.limit) if evidence and gate.decision == "significant" else None
        for gate, evidence in weighed
    ]
    corrected = iter(holm(tests := [p for p in chances if p is not None]))
    return [
        _judge(gate, evidence, p, next(corrected) if p is not None else None, len(tests))
        for (gate, evidence), p in zip(weighed, chances, strict=True)
    ]


def _members(
    planned: Sequence[Gate], results: Iterable[CaseResult], pairs: bool
) -> Mapping[tuple[str, str], list[CaseResult]]:
    members: dict[tuple[str, str], list[CaseResult]] = {(g.dataset, g.slice): [] for g in planned}
    is_sliced = any(gate.slice for gate in planned)
    for result in results:
        dataset = result.case.dataset
        for name in ("", *(slices_of(result.case, pairs) if is_sliced else ())):
            if (found := members.get((dataset, name))) is not None:
                found.append(result)
    return members


def _weigh(
    gate: Gate, members: Sequence[CaseResult], accepted: Container[Key]
) -> tuple[Gate, Evidence | None]:
    budget = BUDGETS[gate.name]
    answered = [r for r in members if budget.needs(r.case) and r.old is not None and r.new is not None]
    paid = budget.flips or _NFR
    forgiven = sum(r.flip in paid and r.case.key in accepted for r in answered)
    gate = replace(gate, answered=len(answered), accepted=forgiven)
    return gate, budget.measure([_as_before(r) if r.case.key in accepted else r for r in answered])


def _as_before(result: CaseResult) -> CaseResult:
    if result.error is not None:
        return result
    if result.case.task == "generation":
        flip = Flip.UNCHANGED
    else:
        flip = Flip.BOTH_CORRECT if result.old_grade.correct else Flip.BOTH_WRONG
    draws = result.draws and replace(result.draws, flips=result.draws.own or 0.0)
    return replace(result, flip=flip, delta=0.0, draws=draws)


def _judge(
    gate: Gate, evidence: Evidence | None, p: float | None, corrected: float | None, tests: int
) -> Gate:
    if evidence is None:
        return gate
    # Holm compares each p-value with a level of its own; seen from this gate, that level is fixed.
    level = ALPHA if not p or not corrected else ALPHA * p / corrected

    def rule(evidence: Evidence) -> Ruling:
        return _RULES[gate.decision](evidence, gate.limit, level)

    measured = replace(
        gate, value=evidence.value, interval=evidence.interval, p=corrected, tests=tests, step=evidence.step
    )
    if gate.answered < gate.cases:
        return replace(measured, p=None)
    return replace(
        measured,
        ruling=rule(evidence),
        needed=evidence.needed(gate.limit),
        reversal=_reversal(evidence, rule),
    )


def _by_point(evidence: Evidence, limit: float, level: float) -> Ruling:
    return Ruling.PASSED if evidence.value <= limit + _LEAST else Ruling.FAILED


def _by_significance(evidence: Evidence, limit: float, level: float) -> Ruling:
    if evidence.value <= limit + _LEAST:
        return Ruling.PASSED
    interval = evidence.interval
    is_sure = interval is not None and interval[0] > limit and evidence.p_value(limit) <= level * (1 + 1e-9)
    return Ruling.FAILED if is_sure else Ruling.INCONCLUSIVE


def _by_assurance(evidence: Evidence, limit: float, level: float) -> Ruling:
    if evidence.value > limit + _LEAST:
        return Ruling.FAILED
    interval = evidence.interval
    is_sure = interval is not None and interval[1] <= limit + _LEAST
    return Ruling.PASSED if is_sure else Ruling.INCONCLUSIVE


_RULES: Mapping[Decision, Callable[[Evidence, float, float], Ruling]] = {
    "point": _by_point,
    "significant": _by_significance,
    "assured": _by_assurance,
}


def _reversal(evidence: Evidence, rule: Callable[[Evidence], Ruling]) -> int | None:
    now = rule(evidence)

    def differs(changes: int) -> bool | None:
        moved = evidence.shifted(changes)
        return None if moved is None else rule(moved) is not now

    worse = _first(lambda count: differs(count))
    better = _first(lambda count: differs(-count))
    if worse is None or better is None:
        return worse if better is None else -better
    return worse if worse <= better else -better


def _first(differs: Callable[[int], bool | None]) -> int | None:
    # The rulings are in order of the count: double until it differs (or no more answers can change), halve.
    low, high = 0, 1
    while (found := differs(high)) is False:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if (there := differs(middle)) is False:
            low = middle
        else:
            high, found = middle, there
    return high if found else None


# Cases --------------------------------------------------------------------------------------------


class Verdict(StrEnum):
    """What becomes of a case's test."""

    PASSED = "passed"
    TOLERATED = "tolerated"
    ACCEPTED = "accepted"
    FAILED = "failed"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case's verdict and, but for a pass, the reason."""

    verdict: Verdict
    reason: str = ""


class Judge:
    """Decides what becomes of each case, given all gates, judged."""

    def __init__(self, gates: Iterable[Gate], pairs: bool = False) -> None:
        self._gates: dict[tuple[str, str], list[Gate]] = defaultdict(list)
        self._budgeted: set[str] = set()
        self._pairs = pairs
        for gate in gates:
            self._gates[gate.dataset, gate.slice].append(gate)
            if BUDGETS[gate.name].is_for_flips:
                self._budgeted.add(gate.dataset)

    def outcome(self, result: CaseResult, accepted: str | None = None) -> Outcome:
        """Decide what becomes of one case; ``accepted`` is the reason for which its flip is, if it is.

        A flip fails where no budget is set, where a budget that pays for it is exceeded, and where none
        of them could be judged. Where budgets are set but none pays for this kind of flip, the gates
        alone decide and the flip is shown as tolerated, saying so.
        """
        if result.error is not None:
            return self._unjudged(result, result.error)
        if result.flip is None or not result.flip.is_regression:
            return Outcome(Verdict.PASSED)
        words = result.flip.words
        if accepted is not None:
            return Outcome(Verdict.ACCEPTED, f"{words}, accepted: {accepted or 'no reason given yet'}")
        if result.case.dataset not in self._budgeted:
            return Outcome(Verdict.FAILED, words)
        paying = self._paying(result)
        if not paying:
            return Outcome(Verdict.TOLERATED, f"{words}, tolerated: no budget is set for it")
        for gate in paying:
            if gate.ruling is Ruling.FAILED:
                return Outcome(Verdict.FAILED, f"{words}, over budget: {_budget(gate)}")
        for gate in paying:
            if gate.blocks:
                return Outcome(Verdict.FAILED, f"{words}, not surely within budget: {_budget(gate)}")
        for gate in paying:
            if gate.ruling is Ruling.INCONCLUSIVE:
                return Outcome(Verdict.TOLERATED, f"{words}, tolerated: not surely over {_budget(gate)}")
            if gate.ruling is Ruling.PASSED:
                return Outcome(Verdict.TOLERATED, f"{words}, tolerated: within {_budget(gate)}")
        return Outcome(Verdict.FAILED, f"{words}; {paying[0].verdict()}")

    def weighs(self, result: CaseResult) -> bool:
        """Whether a result's flip can fail or uses up a budget, if it is not accepted."""
        if result.flip is None or not result.flip.is_regression:
            return False
        return result.case.dataset not in self._budgeted or bool(self._paying(result))

    def _unjudged(self, result: CaseResult, error: str) -> Outcome:
        budgets = [gate for gate in self._all(result) if gate.name == "max_error_rate"]
        if budgets and all(gate.ruling is not Ruling.UNJUDGED and not gate.blocks for gate in budgets):
            return Outcome(Verdict.TOLERATED, f"not judged, tolerated: within {_budget(budgets[0])}: {error}")
        return Outcome(Verdict.ERROR, error)

    def _paying(self, result: CaseResult) -> list[Gate]:
        return [
            gate
            for gate in self._all(result)
            if result.flip in BUDGETS[gate.name].flips and BUDGETS[gate.name].needs(result.case)
        ]

    def _all(self, result: CaseResult) -> list[Gate]:
        case = result.case
        names = ("", *slices_of(case, self._pairs))
        return [gate for name in names for gate in self._gates.get((case.dataset, name), ())]


def _budget(gate: Gate) -> str:
    scope = f" of {gate.slice}" if gate.slice else ""
    return f"{gate.name}{scope} = {gate.limit:g} ({gate.value:.4f})"
