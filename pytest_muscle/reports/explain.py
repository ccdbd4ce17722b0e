"""One case's failure, as a person wants to read it."""

from __future__ import annotations

import textwrap

from pytest_muscle.flips import CaseResult
from pytest_muscle.gates import Outcome
from pytest_muscle.golden import GoldenCase
from pytest_muscle.models import Response
from pytest_muscle.reports.text import difference, one_line, plain

# Longer lines are hard to read, however wide the terminal is.
WIDEST = 110

_NARROWEST = 40
_MARGIN = 10
_INDENT = " " * _MARGIN


def headline(result: CaseResult, decided: Outcome) -> str:
    """Return one line: what happened, the truth and both answers."""
    if result.error is not None:
        return f"not judged: {one_line(result.error)}"
    flip = result.flip.words if result.flip else ""
    why = decided.reason.removeprefix(flip).lstrip(",; ")
    return f"{flip}: {change(result)}" + (f"; {one_line(why, 120)}" if why else "")


def change(result: CaseResult) -> str:
    """Return the change in a few words: ``'18' -> '26' (truth '18')`` or ``0.71 -> 0.40 rouge1``."""
    case = result.case
    if case.task == "generation":
        return f"{result.old_grade.score:.3f} -> {result.new_grade.score:.3f} {case.metric}"
    old, new = (_answer(case, grade.answer) for grade in (result.old_grade, result.new_grade))
    return f"{old} -> {new} (truth {truth(case)})"


def explain(result: CaseResult, decided: Outcome, width: int = WIDEST) -> str:
    """Return the whole story of a case: prompt, truth, both answers, and where they differ.

    The first line is the headline; the others have at most ``width`` characters.
    """
    case = result.case
    lines = _field("prompt", request(case))
    lines += _field("truth", truth(case))
    if case.choices:
        lines += _choices(result)
    else:
        lines += _field("old", _said(result.old, _worth(result, old=True)))
        lines += _field("new", _said(result.new, _worth(result, old=False)))
        if result.old and result.new and result.old.text and result.new.text:
            marked = difference(result.old.text, result.new.text)
            lines += _field("changed", marked) if marked else []
    wrapped = (piece for line in lines for piece in _wrapped(line, min(width, WIDEST)))
    return "\n".join([headline(result, decided), "", *wrapped])


def request(case: GoldenCase) -> str:
    """Return what the model was given, messages one under the other."""
    if not case.messages:
        return plain(case.prompt)
    return plain("\n".join(f"{message['role']}: {message['content']}" for message in case.messages))


def truth(case: GoldenCase) -> str:
    """Return the accepted answers."""
    return " or ".join(_answer(case, answer) for answer in case.answer)


def _answer(case: GoldenCase, answer: str | int | None) -> str:
    if answer is None:
        return "no answer"
    if isinstance(answer, int):
        return f"[{answer}] {one_line(case.choices[answer], 60)}"
    return f"'{one_line(answer, 80)}'"


def _worth(result: CaseResult, old: bool) -> str:
    grade = result.old_grade if old else result.new_grade
    if grade.error is not None:
        return f"not judged: {one_line(grade.error)}"
    if result.case.task == "generation":
        return f"{result.case.metric} {grade.score:.3f}"
    return f"{'right' if grade.correct else 'wrong'}: {_answer(result.case, grade.answer)}"


def _said(response: Response | None, worth: str) -> str:
    text = plain(response.text) if response and response.text is not None else ""
    return f"{worth}\n{text}" if text.strip() else f"{worth} (empty response)" if response else worth


def _choices(result: CaseResult) -> list[str]:
    case = result.case
    responses = (result.old, result.new)
    by_letter = any(response and response.choice_method == "letter" for response in responses)
    how = "asked for by letter" if by_letter else "log-likelihoods"
    lines = _field("choices", f"{'old':>10} {'new':>10}   ({how}; the choice is marked)")
    for i, choice in enumerate(case.choices):
        values = (
            _value(response, i, grade.answer)
            for response, grade in ((result.old, result.old_grade), (result.new, result.new_grade))
        )
        right = " (right)" if i in case.answer else ""
        lines += _field("", f"{' '.join(values)}   [{i}] {one_line(choice, 100)}{right}")
    if by_letter:
        for side, response in zip(("old", "new"), responses, strict=True):
            lines += _field(side, f"'{one_line(response.text or '', 200)}'" if response else "no response")
    return lines


def _value(response: Response | None, i: int, answer: str | int | None) -> str:
    mark = "*" if i == answer else " "
    known = response is not None and i < len(response.loglikelihoods)
    return f"{response.loglikelihoods[i]:9.2f}{mark}" if response and known else f"{'':9}{mark}"


def _field(name: str, text: str) -> list[str]:
    first, *rest = text.split("\n") or [""]
    return [f"{name:<{_MARGIN}}{first}", *(_INDENT + line for line in rest)]


def _wrapped(line: str, width: int) -> list[str]:
    pieces = textwrap.wrap(line, max(width, _NARROWEST), subsequent_indent=_INDENT, break_on_hyphens=False)
    return pieces or [""]
