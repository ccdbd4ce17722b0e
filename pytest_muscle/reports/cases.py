"""The cases as the page carries them: cut to fit, and unable to leave the element they stand in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from pytest_muscle.comparison import Comparison
from pytest_muscle.flips import CaseResult, Flip
from pytest_muscle.grading import Grade
from pytest_muscle.metrics import slices_of
from pytest_muscle.reports import plots, story
from pytest_muscle.reports.text import plain

NAME = 200
"""How many characters of an id, a slice's or a file's name are shown."""

_MOST_BYTES = 13_000_000
_LIMITS = (
    (20_000, 20_000),
    (20_000, 4_000),
    (20_000, 1_000),
    (8_000, 600),
    (4_000, 400),
    (2_000, 250),
    (1_000, 150),
    (600, 100),
    (150, 50),
)
"""How many characters of a text are kept, of regressions and of other cases: the first that fits is used."""

_RECORD_BYTES = 600

_SYMBOLS = {
    Flip.NEGATIVE: "▼",
    Flip.INCONSISTENCY: "◆",
    Flip.POSITIVE: "▲",
    Flip.BOTH_CORRECT: "●",
    Flip.BOTH_CORRECT_CHANGED: "◉",
    Flip.BOTH_WRONG: "○",
    Flip.UNCHANGED: "=",
}
FLIPS = {str(flip): {"words": flip.words, "symbol": symbol} for flip, symbol in _SYMBOLS.items()}
FLIPS["error"] = {"words": "not judged", "symbol": "?"}
"""How each flip is called and marked, and a case that could not be judged."""


def embedded_cases(comparison: Comparison) -> str:
    """Return every case as JSON for a script element, some 13 MB at the most for 10,000 cases.

    Texts that are too long are cut and say so, those of calm cases before those of regressions.
    """
    ranks = {result.case.key: rank for rank, result in enumerate(story.worst_first(comparison))}
    datasets = {name: i for i, name in enumerate(comparison.datasets)}
    text = ""
    for limits in _LIMITS[_first_that_may_fit(comparison) :]:
        cases = []
        for result in comparison.results:
            record = _case(result, limits[_is_calm(result)])
            decided = comparison.outcomes[result.case.key]
            if result.draws is not None:
                record["draws"] = [
                    [_drawn(result, g) for _, g in side] for side in (result.draws.old, result.draws.new)
                ]
                record["unstable"] = result.draws.unstable
            record["slices"] = [plain(name, NAME) for name in slices_of(result.case, comparison.slice_pairs)]
            record["dataset"] = datasets[result.case.dataset]
            record["rank"] = ranks[result.case.key]
            record["outcome"] = str(decided.verdict)
            record["reason"] = plain(decided.reason, 1000)
            cases.append(record)
        names = [plain(name, NAME) for name in datasets]
        text = _embedded({"flips": FLIPS, "datasets": names, "cases": cases})
        if len(text.encode("utf-8", "replace")) <= _MOST_BYTES:
            break
    return text


def _is_calm(result: CaseResult) -> bool:
    return result.flip is not None and not result.flip.is_regression


def _first_that_may_fit(comparison: Comparison) -> int:
    lengths = [(_is_calm(r), len(text)) for r in comparison.results for text in _texts(r)]
    room = _MOST_BYTES - _RECORD_BYTES * len(comparison.results)
    for i, limits in enumerate(_LIMITS):
        if sum(min(length, limits[calm]) for calm, length in lengths) <= room:
            return i
    return len(_LIMITS) - 1


def _texts(result: CaseResult) -> Iterator[str]:
    yield _request(result)
    yield from result.case.choices
    for response in (result.old, result.new):
        if response and response.text:
            yield response.text


def _embedded(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _case(result: CaseResult, limit: int) -> dict[str, Any]:
    case = result.case
    is_choice = case.task == "multiple_choice"
    margins = [value for value in story.margins(result) if value is not None and math.isfinite(value)]
    record = {
        "id": plain(case.id, NAME),
        "task": case.task,
        "flip": str(result.flip or "error"),
        "delta": result.delta,
        "prompt": plain(_request(result), limit),
        "choices": [plain(choice, limit) for choice in case.choices],
        "answer": list(case.answer) if is_choice else [],
        "truth": [] if is_choice else [plain(str(text), limit) for text in case.answer],
        "old": _side(result, "old", limit),
        "new": _side(result, "new", limit),
        "margin": margins if len(margins) == 2 else [],
        "unit": plots.UNITS[case.choice_rule] if is_choice else "",
    }
    return _filled(record)


def _side(result: CaseResult, side: str, limit: int) -> dict[str, Any]:
    response = result.old if side == "old" else result.new
    grade = result.old_grade if side == "old" else result.new_grade
    answer = None if result.case.task == "generation" else grade.answer
    return _filled(
        {
            "text": plain(response.text or "", limit) if response else "",
            "answer": plain(answer, NAME) if isinstance(answer, str) else answer,
            "correct": grade.correct,
            "score": grade.score,
            "loglikelihoods": [_finite(value) for value in response.loglikelihoods] if response else [],
            "error": plain(grade.error, 1000) if grade.error is not None else None,
        }
    )


def _drawn(result: CaseResult, grade: Grade) -> str:
    if grade.error is not None:
        return "not judged"
    if result.case.task == "generation":
        return story.score(grade.score)
    answer = grade.answer
    return plain(result.case.choices[answer] if isinstance(answer, int) else answer or "no answer", NAME // 4)


def _filled(record: dict[str, Any]) -> dict[str, Any]:
    # What is not there, the page's script takes as empty.
    return {name: value for name, value in record.items() if value not in (None, "", [], {})}


def _request(result: CaseResult) -> str:
    case = result.case
    return case.prompt or "\n\n".join(f"{each['role']}: {each['content']}" for each in case.messages)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
