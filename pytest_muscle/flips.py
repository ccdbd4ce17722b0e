"""Old Grade x new Grade -> Flip."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pytest_muscle.golden import GoldenCase
from pytest_muscle.grading import Grade, is_fragile
from pytest_muscle.models import Response


class Flip(StrEnum):
    """What the update did to one case."""

    BOTH_CORRECT = "both_correct"
    BOTH_CORRECT_CHANGED = "both_correct_changed"
    POSITIVE = "positive_flip"
    BOTH_WRONG = "both_wrong"
    INCONSISTENCY = "inconsistency_flip"
    NEGATIVE = "negative_flip"
    UNCHANGED = "unchanged"

    @property
    def words(self) -> str:
        """The name as prose: ``negative flip``."""
        return self.value.replace("_", " ")

    @property
    def is_regression(self) -> bool:
        """Whether a user of the old model sees something new go wrong."""
        return self in (Flip.NEGATIVE, Flip.INCONSISTENCY)


Drawn = tuple[Response | None, Grade]


@dataclass(frozen=True, slots=True)
class Draws:
    """Everything that was said to a case that was asked several times.

    ``flips`` is the share of pairs of an old and a new draw that are a negative flip, ``own`` the same
    of two old draws: what the old model does to itself; None where it was asked once. ``variance`` is
    that of ``delta`` by drawing alone, None where a side was asked once. An ``unstable`` case could as
    well have come out otherwise.
    """

    old: tuple[Drawn, ...]
    new: tuple[Drawn, ...]
    flips: float
    own: float | None
    variance: float | None
    unstable: bool


@dataclass(frozen=True, slots=True)
class CaseResult:
    """One golden case under both models; ``flip`` is None where a response could not be judged.

    ``delta`` is the new score less the old one: D(x) for generation, else -1, 0 or 1. Where a model
    was asked several times, the response is one of the majority's, and ``draws`` holds them all. Where
    the new model has a compatibility adapter, ``unmended`` is what it is worth without.
    """

    case: GoldenCase
    old: Response | None
    new: Response | None
    old_grade: Grade
    new_grade: Grade
    flip: Flip | None
    delta: float | None
    draws: Draws | None = None
    unmended: Grade | None = None

    @property
    def fragile(self) -> bool:
        """Whether rounding, which batches and hardware change, may decide a model's choice."""
        judged = ((self.old, self.old_grade), (self.new, self.new_grade))
        return any(
            response is not None and grade.error is None and is_fragile(self.case, response.loglikelihoods)
            for response, grade in judged
        )

    @property
    def error(self) -> str | None:
        """Why the case could not be judged, naming the model."""
        for name, each in (("old", self.old_grade), ("new", self.new_grade)):
            if each.error is not None:
                return f"{name} model: {each.error}"
        return None


def judge(
    case: GoldenCase,
    old: Response | None,
    new: Response | None,
    old_grade: Grade,
    new_grade: Grade,
    tolerance: float = 0.0,
) -> CaseResult:
    """Compare the two grades of a case; ``tolerance`` is the |D| up to which generation is unchanged."""
    if old_grade.error is not None or new_grade.error is not None:
        return CaseResult(case, old, new, old_grade, new_grade, None, None)
    assert old_grade.score is not None
    assert new_grade.score is not None
    delta = new_grade.score - old_grade.score
    flip = _by_score(delta, tolerance) if case.task == "generation" else _by_answer(old_grade, new_grade)
    return CaseResult(case, old, new, old_grade, new_grade, flip, delta)


def _by_score(delta: float, tolerance: float) -> Flip:
    if delta > tolerance:
        return Flip.POSITIVE
    return Flip.NEGATIVE if delta < -tolerance else Flip.UNCHANGED


def _by_answer(old: Grade, new: Grade) -> Flip:
    same = old.answer == new.answer
    if old.correct:
        if not new.correct:
            return Flip.NEGATIVE
        return Flip.BOTH_CORRECT if same else Flip.BOTH_CORRECT_CHANGED
    if new.correct:
        return Flip.POSITIVE
    return Flip.BOTH_WRONG if same else Flip.INCONSISTENCY
