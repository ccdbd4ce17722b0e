"""Metrics x thresholds -> verdicts, on the release and on each case."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from pytest_muscle.flips import CaseResult, Flip
from pytest_muscle.golden import GoldenCase
from pytest_muscle.metrics import Metrics, measure, slice_members, slices_of
from pytest_muscle.settings import Threshold
from pytest_muscle.statistics import Interval


@dataclass(frozen=True, slots=True)
class Budget:
    """What a threshold's name stands for: a value, its interval, and the flips it pays for."""

    value: Callable[[Metrics], float | None]
    interval: Callable[[Metrics], Interval | None]
    flips: frozenset[Flip]
    needs: Callable[[GoldenCase], bool]


def _is_answered(case: GoldenCase) -> bool:
    return case.task != "generation"


BUDGETS: Mapping[str, Budget] = {
    "max_nfr": Budget(
        value=lambda m: m.nfr,
        interval=lambda m: m.intervals.get("nfr"),
        flips=frozenset({Flip.NEGATIVE}),
        needs=lambda case: True,
    ),
    "max_nfr_mc": Budget(
        value=lambda m: m.nfr_mc,
        interval=lambda m: m.intervals.get("nfr_mc"),
        flips=frozenset({Flip.NEGATIVE, Flip.INCONSISTENCY}),
        needs=_is_answered,
    ),
    "max_accuracy_drop": Budget(
        value=lambda m: None if m.accuracy_delta is None else max(0.0, -m.accuracy_delta),
        interval=lambda m: _drop(m.intervals.get("accuracy_delta")),
        flips=frozenset(),
        needs=_is_answered,
    ),
    "max_mean_regression": Budget(
        value=lambda m: 0.0 if m.mean_delta is not None and m.mean_regression is None else m.mean_regression,
        interval=lambda m: None,
        flips=frozenset(),
        needs=lambda case: not _is_answered(case),
    ),
}


def _drop(interval: Interval | None) -> Interval | None:
    return None if interval is None else (max(0.0, -interval[1]), max(0.0, -interval[0]))


@dataclass(frozen=True, slots=True)
class Gate:
    """One budget on one dataset or one of its slices.

    ``answered`` of ``cases`` cases have both responses; ``passed`` is None where the gate could not be
    judged, because some have not. ``accepted`` flips are left out of ``value`` and ``interval``.
    """

    name: str
    dataset: str
    slice: str
    limit: float
    cases: int
    answered: int
    value: float | None = None
    interval: Interval | None = None
    passed: bool | None = None
    accepted: int = 0

    @property
    def scope(self) -> str:
        """The dataset, and the slice where there is one: ``golden/qa.jsonl[lang=de]``."""
        return f"{self.dataset}[{self.slice}]" if self.slice else self.dataset

    @property
    def title(self) -> str:
        """The gate within its dataset: ``gate[max_nfr]`` or ``gate[lang=de:max_nfr]``."""
        return f"gate[{self.slice}:{self.name}]" if self.slice else f"gate[{self.name}]"

    def covers(self, result: CaseResult) -> bool:
        """Whether this budget is what a case's flip is paid from."""
        return (
            result.flip in BUDGETS[self.name].flips
            and result.case.dataset == self.dataset
            and (not self.slice or self.slice in slices_of(result.case))
            and BUDGETS[self.name].needs(result.case)
        )

    def verdict(self) -> str:
        """One sentence: what was measured against what."""
        if self.passed is None:
            return f"{self.answered} of {self.cases} cases answered: {self.name} cannot be judged on a part"
        bounds = f" (95% interval {self.interval[0]:.4f} to {self.interval[1]:.4f})" if self.interval else ""
        word = "within" if self.passed else "over"
        bounds += f" without {self.accepted} accepted" if self.accepted else ""
        measured = self.name.removeprefix("max_")
        return f"{measured} {self.value:.4f}{bounds} is {word} the budget of {self.limit:g}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "name": self.name,
            "scope": self.scope,
            "limit": self.limit,
            "value": self.value,
            "interval": list(self.interval) if self.interval else None,
            "passed": self.passed,
            "accepted": self.accepted,
        }


def plan(cases: Sequence[GoldenCase], thresholds: Iterable[Threshold]) -> list[Gate]:
    """Return the gates of one dataset, unjudged; a budget that no case can meet makes none.

    A threshold set for this dataset wins over the same one set for all.
    """
    dataset = cases[0].dataset
    members = slice_members(cases, lambda case: case)
    gates: dict[tuple[str, str], Gate] = {}
    for threshold in sorted(thresholds, key=lambda each: each.dataset != ""):
        if threshold.dataset in ("", dataset):
            needs = BUDGETS[threshold.name].needs
            size = sum(map(needs, members.get(threshold.slice, ())))
            if size:
                gate = Gate(threshold.name, dataset, threshold.slice, threshold.limit, size, 0)
                gates[threshold.name, threshold.slice] = gate
    return list(gates.values())


def decide(gate: Gate, members: Sequence[CaseResult], accepted: Container[tuple[str, str]] = ()) -> Gate:
    """Judge a gate from the results at hand of its dataset's slice.

    The cases whose keys are ``accepted`` count as if they had not flipped.
    """
    budget = BUDGETS[gate.name]
    answered = [r for r in members if budget.needs(r.case) and r.old is not None and r.new is not None]
    paid = budget.flips or {Flip.NEGATIVE}
    forgiven = [r for r in answered if r.flip in paid and r.case.key in accepted]
    metrics = measure([_as_before(r) if r.case.key in accepted else r for r in answered])
    value = budget.value(metrics)
    complete = len(answered) == gate.cases and value is not None
    return replace(
        gate,
        answered=len(answered),
        value=value,
        interval=budget.interval(metrics),
        passed=value <= gate.limit + 1e-12 if complete and value is not None else None,
        accepted=len(forgiven),
    )


def _as_before(result: CaseResult) -> CaseResult:
    if result.case.task == "generation":
        return replace(result, flip=Flip.UNCHANGED, delta=0.0)
    return replace(result, flip=Flip.BOTH_CORRECT if result.old_grade.correct else Flip.BOTH_WRONG, delta=0.0)


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


def outcome(result: CaseResult, gates: Sequence[Gate], accepted: str | None = None) -> Outcome:
    """Decide what becomes of one case, given the gates of its dataset.

    ``accepted`` is the reason for which its flip is, if it is: then nothing else matters.

    A flip fails where no budget is set, where a budget that pays for it is exceeded, and where none
    of them could be judged. Where budgets are set but none pays for this kind of flip, the gates
    alone decide and the flip is shown as tolerated, saying so.
    """
    if result.error is not None:
        return Outcome(Verdict.ERROR, result.error)
    if result.flip is None or not result.flip.is_regression:
        return Outcome(Verdict.PASSED)
    words = result.flip.words
    if accepted is not None:
        return Outcome(Verdict.ACCEPTED, f"{words}, accepted: {accepted or 'no reason given yet'}")
    if not gates:
        return Outcome(Verdict.FAILED, words)
    paying = [gate for gate in gates if gate.covers(result)]
    exceeded = next((gate for gate in paying if gate.passed is False), None)
    if exceeded is not None:
        return Outcome(Verdict.FAILED, f"{words}, over budget: {_budget(exceeded)}")
    holding = next((gate for gate in paying if gate.passed), None)
    if holding is not None:
        return Outcome(Verdict.TOLERATED, f"{words}, tolerated: within {_budget(holding)}")
    if paying:
        return Outcome(Verdict.FAILED, f"{words}; {paying[0].verdict()}")
    return Outcome(Verdict.TOLERATED, f"{words}, tolerated: no budget is set for it")


def _budget(gate: Gate) -> str:
    scope = f" of {gate.slice}" if gate.slice else ""
    return f"{gate.name}{scope} = {gate.limit:g} ({gate.value:.4f})"
