"""What a reviewer is told first, in words and in the order of what matters."""

from __future__ import annotations

from pytest_muscle.comparison import Comparison
from pytest_muscle.flips import CaseResult, Flip
from pytest_muscle.gates import Gate, Ruling, Verdict
from pytest_muscle.grading import margin
from pytest_muscle.models import Response
from pytest_muscle.statistics import Interval

NOTHING = "–"


def percent(rate: float | None) -> str:
    """Write a fraction as ``15.85%``."""
    return NOTHING if rate is None else f"{100 * rate:.2f}%"


def points(difference: float | None) -> str:
    """Write a difference of fractions as ``+1.50 points``."""
    return NOTHING if difference is None else f"{100 * difference:+.2f} points"


def score(value: float | None) -> str:
    """Write a similarity as ``0.7132``."""
    return NOTHING if value is None else f"{value:.4f}"


def amount(gate: str, value: float | None) -> str:
    """Write what a gate measures: a similarity where it is one, a rate otherwise."""
    return score(value) if gate == "max_mean_regression" else percent(value)


def bounds(interval: Interval | None, gate: str = "") -> str:
    """Write an interval as ``13.97% to 17.91%``."""
    return NOTHING if interval is None else f"{amount(gate, interval[0])} to {amount(gate, interval[1])}"


def count(number: int, noun: str, plural: str = "") -> str:
    """Write ``1 case`` and ``1,319 cases``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def ruled(gate: Gate) -> str:
    """Write what became of a gate in a word or two, with a mark before it."""
    words = {Ruling.PASSED: "✓ within", Ruling.FAILED: "✕ over", Ruling.INCONCLUSIVE: "≈ inconclusive"}
    return words.get(gate.ruling) or f"? {gate.answered:,} of {gate.cases:,} answered"


def sentences(comparison: Comparison) -> list[str]:
    """Return what happened, in one minute: what broke, how badly, and what is in the way."""
    metrics = comparison.metrics
    told = []
    if metrics.n:
        broken = len(comparison.of(Flip.NEGATIVE))
        told.append(
            f"{count(broken, 'case')} of {metrics.n:,} got worse "
            f"(NFR {percent(metrics.nfr)}, 95% interval {bounds(metrics.intervals.get('nfr'))})."
        )
    if metrics.accuracy_old is not None:
        inconsistent = comparison.quadrants[Flip.INCONSISTENCY]
        told.append(f"{count(inconsistent, 'wrong answer')} turned into another wrong answer.")
        told.append(
            f"Accuracy went from {percent(metrics.accuracy_old)} to {percent(metrics.accuracy_new)} "
            f"({points(metrics.accuracy_delta)})."
        )
    if metrics.score_old is not None:
        told.append(f"The mean score went from {score(metrics.score_old)} to {score(metrics.score_new)}.")
    if comparison.gates:
        rulings = [gate.ruling for gate in comparison.gates]
        failed, unsure = rulings.count(Ruling.FAILED), rulings.count(Ruling.INCONCLUSIVE)
        also = f", {unsure:,} could not be decided" if unsure else ""
        told.append(f"{failed:,} of {count(len(rulings), 'gate')} failed{also}.")
    verdicts = [each.verdict for each in comparison.outcomes.values()]
    for verdict, words in (
        (Verdict.ACCEPTED, "accepted by name"),
        (Verdict.TOLERATED, "tolerated"),
        (Verdict.ERROR, "not judged"),
    ):
        if number := verdicts.count(verdict):
            told.append(f"{count(number, 'case')} {'was' if number == 1 else 'were'} {words}.")
    return told


def worst_first(comparison: Comparison) -> list[CaseResult]:
    """Return the results by the size of their regression, the largest first."""
    return sorted(comparison.results, key=_severity)


def _severity(result: CaseResult) -> tuple[float, bool, float]:
    delta = result.delta if result.delta is not None else 0.0
    before, after = margins(result)
    slide = after - before if before is not None and after is not None else 0.0
    calm = result.error is None and result.flip is not Flip.INCONSISTENCY
    return delta, calm, slide if slide == slide else 0.0


def margins(result: CaseResult) -> tuple[float | None, float | None]:
    """Return the old and the new model's margin of the right choice; None where there is none."""

    def of(response: Response | None) -> float | None:
        usable = response is not None and len(response.loglikelihoods) == len(result.case.choices)
        return margin(result.case, response.loglikelihoods) if response is not None and usable else None

    return of(result.old), of(result.new)
