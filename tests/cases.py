"""Results of golden cases made up from what their answers are to be."""

from pytest_muscle.flips import CaseResult, judge
from pytest_muscle.golden import GoldenCase
from pytest_muscle.grading import grade
from pytest_muscle.models import Response

RIGHT, WRONG, OTHER = "1", "2", "3"
"""The accepted answer of every case made here, and two wrong ones."""

SET = "golden/qa.jsonl"


def result(old: str | None, new: str | None, name: str = "case", dataset: str = SET, **fields) -> CaseResult:
    """The result of one exact match; None stands for a failed call."""
    case = GoldenCase(name, dataset, "exact_match", (RIGHT,), prompt="?", **fields)
    responses = [Response(error="it timed out") if text is None else Response(text) for text in (old, new)]
    grades = [grade([case], [response], unused)[0] for response in responses]
    return judge(case, *responses, *grades)


def chosen(old: int, new: int, name: str = "case", dataset: str = SET, **fields) -> CaseResult:
    """The result of a multiple choice of three, the first two of which are right."""
    case = GoldenCase(name, dataset, "multiple_choice", (0, 1), prompt="?", choices=("a", "b", "c"), **fields)
    responses = [
        Response(loglikelihoods=tuple(-float(i != choice) for i in range(3))) for choice in (old, new)
    ]
    grades = [grade([case], [response], unused)[0] for response in responses]
    return judge(case, *responses, *grades)


def results(
    *, both: int = 0, lost: int = 0, won: int = 0, same: int = 0, other: int = 0, failed: int = 0, **fields
) -> list[CaseResult]:
    """So many results of each kind, numbered; ``same`` and ``other`` are wrong on both sides."""
    kinds = [
        *[(RIGHT, RIGHT)] * both,
        *[(RIGHT, WRONG)] * lost,
        *[(WRONG, RIGHT)] * won,
        *[(WRONG, WRONG)] * same,
        *[(WRONG, OTHER)] * other,
        *[(RIGHT, None)] * failed,
    ]
    start = fields.pop("start", 0)
    return [result(old, new, f"case-{i}", **fields) for i, (old, new) in enumerate(kinds, start)]


def scored(old: float, new: float, name: str = "case", dataset: str = SET, **fields) -> CaseResult:
    """The result of one generation whose texts get these scores."""
    case = GoldenCase(name, dataset, "generation", ("a summary",), prompt="?", metric="rouge1", **fields)
    responses = [Response(str(score)) for score in (old, new)]
    grades = [
        grade([case], [each], lambda metric, pairs: [float(text) for text, _ in pairs])[0]
        for each in responses
    ]
    return judge(case, *responses, *grades)


def unused(metric, pairs):
    """Stand for the similarity where nothing is generated."""
    raise AssertionError("no similarity is needed")
