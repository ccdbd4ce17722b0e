"""Models asked several times: the majority's verdict on each case, and how much flips by itself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations, product
from typing import Any

from pytest_muscle.evidence import ExcessRate
from pytest_muscle.flips import CaseResult, Drawn, Draws, Flip, judge
from pytest_muscle.golden import GoldenCase
from pytest_muscle.grading import Grade, Similarity, grade
from pytest_muscle.models import Response
from pytest_muscle.statistics import Interval, Z, wilson

DISSENT = 0.2
"""A case is unstable where more than this share of a side's draws disagree with the rest (2604.27405)."""


def compare_draws(
    cases: Sequence[GoldenCase],
    old: Sequence[Sequence[Response | None]],
    new: Sequence[Sequence[Response | None]],
    similarity: Similarity,
    tolerance: float = 0.0,
) -> list[CaseResult]:
    """Grade and compare both models' responses; ``old[i][j]`` is the i-th draw for ``cases[j]``."""
    sides = [[_graded(cases, draw, similarity) for draw in draws] for draws in (old, new)]
    by_case = zip(cases, zip(*sides[0], strict=True), zip(*sides[1], strict=True), strict=True)
    if len(old) == len(new) == 1:
        return [judge(case, o, n, og, ng, tolerance) for case, ((o, og),), ((n, ng),) in by_case]
    return [judge_draws(case, olds, news, tolerance) for case, olds, news in by_case]


def _graded(
    cases: Sequence[GoldenCase], responses: Sequence[Response | None], similarity: Similarity
) -> list[Drawn]:
    return list(zip(responses, grade(cases, responses, similarity), strict=True))


def judge_draws(
    case: GoldenCase, old: Sequence[Drawn], new: Sequence[Drawn], tolerance: float = 0.0
) -> CaseResult:
    """Compare what the majority of each side's draws says.

    A generation's score is the mean of its draws'. A side of which no more than half could be judged
    is an error.
    """
    (old_response, old_grade), (new_response, new_grade) = (majority(case, draws) for draws in (old, new))
    result = judge(case, old_response, new_response, old_grade, new_grade, tolerance)
    olds, news = ([each for _, each in draws if each.error is None] for draws in (old, new))
    if result.error is not None:
        return replace(result, draws=Draws(tuple(old), tuple(new), 0.0, None, None, False))

    shares = _shares_of_scores if case.task == "generation" else _shares_of_answers
    flips, own = shares(olds, news, tolerance)
    draws = Draws(
        old=tuple(old),
        new=tuple(new),
        flips=flips,
        own=own,
        variance=_variance(olds, news),
        unstable=False,
    )
    unstable = _is_unstable(result, draws.variance, olds, news)
    return replace(result, draws=replace(draws, unstable=unstable))


def _shares_of_answers(
    old: Sequence[Grade], new: Sequence[Grade], tolerance: float
) -> tuple[float, float | None]:
    right = sum(bool(each.correct) for each in old)
    wrong = sum(not each.correct for each in new)
    pairs = len(old) * (len(old) - 1)
    return right * wrong / (len(old) * len(new)), right * (len(old) - right) / pairs if pairs else None


def _shares_of_scores(
    old: Sequence[Grade], new: Sequence[Grade], tolerance: float
) -> tuple[float, float | None]:
    before, after = ([each.score or 0.0 for each in side] for side in (old, new))
    flips = [y - x < -tolerance for x, y in product(before, after)]
    own = [y - x < -tolerance for x, y in permutations(before, 2)]
    return _mean(flips), _mean(own) if own else None


def majority(case: GoldenCase, draws: Sequence[Drawn]) -> Drawn:
    """Return the draw that stands for all: right if more than half are, with the commonest such answer."""
    judged = [(response, each) for response, each in draws if each.error is None]
    if 2 * len(judged) <= len(draws):
        response, failed = next((response, each) for response, each in draws if each.error is not None)
        several = f"{len(draws) - len(judged)} of {len(draws)} draws failed, the first: "
        return response, replace(failed, error=(several if len(draws) > 1 else "") + (failed.error or ""))
    if case.task == "generation":
        mean = _mean([each.score or 0.0 for _, each in judged])
        response, nearest = min(judged, key=lambda each: abs((each[1].score or 0.0) - mean))
        return response, replace(nearest, score=mean)
    right = 2 * sum(bool(each.correct) for _, each in judged) > len(judged)
    agreeing = [(response, each) for response, each in judged if each.correct is right]
    answer, _ = Counter(each.answer for _, each in agreeing).most_common(1)[0]
    return next((response, each) for response, each in agreeing if each.answer == answer)


def _is_unstable(
    result: CaseResult, variance: float | None, old: Sequence[Grade], new: Sequence[Grade]
) -> bool:
    if result.case.task == "generation":
        is_noise = variance is not None and abs(result.delta or 0.0) <= Z * math.sqrt(variance)
        return is_noise and result.flip is not Flip.UNCHANGED
    right = [sum(bool(each.correct) for each in side) for side in (old, new)]
    return any(min(k, len(side) - k) / len(side) > DISSENT for k, side in zip(right, (old, new), strict=True))


def _variance(old: Sequence[Grade], new: Sequence[Grade]) -> float | None:
    if min(len(old), len(new)) < 2:
        return None
    return sum(_spread([each.score or 0.0 for each in side]) / len(side) for side in (old, new))


def _spread(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


# The noise floor ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Noise:
    """What drawing alone does to ``n`` cases; figures that cannot be had are None.

    ``self_flip_rate`` is the chance that one draw of the old model is a negative flip against another
    of its own, ``draw_nfr`` that of one draw of the new model against one of the old;
    ``excess_nfr`` is what the second has over the first, not below 0. ``delta_error`` is the standard
    error of generation's mean D by drawing alone, ``delta_errors`` mean D in units of it. ``unstable``
    counts the cases that could as well have come out otherwise.
    """

    n: int
    draws_old: int
    draws_new: int
    unstable: int
    draw_nfr: float
    self_flip_rate: float | None
    excess_nfr: float | None
    delta_error: float | None
    delta_errors: float | None
    intervals: dict[str, Interval] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain["intervals"] = {name: list(bounds) for name, bounds in self.intervals.items()}
        return plain


def noise_of(results: Sequence[CaseResult]) -> Noise | None:
    """Measure the noise floor; None where every case was asked once."""
    drawn = _drawn(results)
    if not drawn:
        return None
    n = len(drawn)
    flips = math.fsum(each.flips for each in drawn)
    excess = excess_of(results)
    intervals = {"draw_nfr": wilson(flips, n)}
    if excess is not None:
        intervals |= {"self_flip_rate": wilson(excess.own, n), "excess_nfr": excess.interval}
    error, distance = _delta_errors(results)
    return Noise(
        n=n,
        draws_old=max(len(each.old) for each in drawn),
        draws_new=max(len(each.new) for each in drawn),
        unstable=sum(each.unstable for each in drawn),
        draw_nfr=flips / n,
        self_flip_rate=excess.own / n if excess else None,
        excess_nfr=excess.value if excess else None,
        delta_error=error,
        delta_errors=distance,
        intervals=intervals,
    )


def excess_of(results: Sequence[CaseResult]) -> ExcessRate | None:
    """Measure how much more the new model flips than the old one flips against itself.

    Both rates are of single draws, so that like is compared with like. None where the old model was
    asked once.
    """
    drawn = _drawn(results)
    own = [each.own for each in drawn if each.own is not None]
    if not own or len(own) < len(drawn):
        return None
    return ExcessRate(math.fsum(each.flips for each in drawn), math.fsum(own), len(drawn))


def _drawn(results: Sequence[CaseResult]) -> list[Draws]:
    return [result.draws for result in results if result.draws is not None and result.error is None]


def _delta_errors(results: Sequence[CaseResult]) -> tuple[float | None, float | None]:
    scored = [r for r in results if r.error is None and r.case.task == "generation"]
    variances = [each.variance for each in _drawn(scored) if each.variance is not None]
    if not scored or len(variances) < len(scored):
        return None, None
    error = math.sqrt(math.fsum(variances)) / len(scored)
    return error, _mean([r.delta or 0.0 for r in scored]) / error if error else None
