"""Accepted flips: regressions that people looked at and let pass, kept in the repository."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pytest_muscle.errors import MuscleError, did_you_mean
from pytest_muscle.flips import CaseResult, Flip
from pytest_muscle.golden import GoldenCase
from pytest_muscle.settings.values import ACCEPTED

Key = tuple[str, str]

_HEADER = """\
# Flips that were looked at and accepted. Each stops being accepted when the new answer changes and
# after the day in 'expires', if it has one. --muscle-accept rewrites this file and keeps the reasons;
# comments are lost.
"""


@dataclass(frozen=True, slots=True)
class AcceptedFlip:
    """One accepted flip; ``new_answer`` is :func:`answer_digest`, ``expires`` the last day it holds."""

    dataset: str
    id: str
    flip: Flip
    new_answer: str
    date: dt.date
    reason: str = ""
    expires: dt.date | None = None

    @property
    def key(self) -> Key:
        """What tells its case from every other one."""
        return self.dataset, self.id

    @property
    def title(self) -> str:
        """The case as pytest names it: ``golden/qa.jsonl::case-7``."""
        return f"{self.dataset}::{self.id}"


@dataclass(frozen=True, slots=True)
class StaleFlip:
    """An accepted flip whose line can go, and why."""

    accepted: AcceptedFlip
    why: str

    def sentence(self) -> str:
        """Say that the line can go."""
        return f"{ACCEPTED}: the line of {self.accepted.title} can go: {self.why}"


@dataclass(frozen=True, slots=True)
class AcceptedFlips:
    """The accepted flips by their case's key, as they hold on one day."""

    flips: Mapping[Key, AcceptedFlip] = field(default_factory=dict)
    today: dt.date = dt.date.min

    def find(self, result: CaseResult) -> AcceptedFlip | None:
        """Return what accepts this result's flip today, if anything does."""
        accepted = self.flips.get(_key(result))
        return accepted if accepted and self._problem(accepted, result) is None else None

    def stale(self, results: Iterable[CaseResult], gone: Collection[Key] = ()) -> list[StaleFlip]:
        """Return the lines that can go, judged by these results; ``gone`` are cases that exist no more."""
        stale = [StaleFlip(self.flips[key], "there is no such case") for key in gone if key in self.flips]
        for result in results:
            accepted = self.flips.get(_key(result))
            if accepted and result.error is None and (problem := self._problem(accepted, result)):
                stale.append(StaleFlip(accepted, problem))
        return stale

    def gone(self, cases: Iterable[GoldenCase]) -> set[Key]:
        """Return the keys of those that name no case, though ``cases`` holds others of their dataset."""
        known = {(_storable(case.dataset), _storable(case.id)) for case in cases}
        datasets = {dataset for dataset, _ in known}
        return {key for key in self.flips if key[0] in datasets and key not in known}

    def unexplained(self) -> list[AcceptedFlip]:
        """Return those whose reason nobody has filled in."""
        return [accepted for accepted in self.flips.values() if not accepted.reason.strip()]

    def renewed(self, results: Iterable[CaseResult], gone: Collection[Key] = ()) -> AcceptedFlips:
        """Return these with every flip of ``results`` accepted today.

        What is accepted already stays as it is; a line that can go goes; one that only expired keeps
        its reason. Cases without a result are left alone.
        """
        flips = {key: accepted for key, accepted in self.flips.items() if key not in gone}
        for result in results:
            if result.error is not None or self.find(result) is not None:
                continue
            previous = flips.pop(_key(result), None)
            if result.flip is not None and result.flip.is_regression:
                flips[_key(result)] = self._accept(result, result.flip, previous)
        return AcceptedFlips(flips, self.today)

    def _accept(self, result: CaseResult, flip: Flip, previous: AcceptedFlip | None) -> AcceptedFlip:
        dataset, name = _key(result)
        new = AcceptedFlip(dataset, name, flip, answer_digest(result), self.today)
        same = previous is not None and (previous.flip, previous.new_answer) == (new.flip, new.new_answer)
        return replace(new, reason=previous.reason) if previous is not None and same else new

    def _problem(self, accepted: AcceptedFlip, result: CaseResult) -> str | None:
        if result.flip is None or not result.flip.is_regression:
            return "the case flips no more"
        if result.flip is not accepted.flip:
            return f"the {accepted.flip.words} has become: {result.flip.words}"
        if answer_digest(result) != accepted.new_answer:
            return "the new answer has changed"
        if accepted.expires is not None and accepted.expires < self.today:
            return f"it expired after {accepted.expires}"
        return None


def answer_digest(result: CaseResult) -> str:
    """A short digest of the new model's answer; of the choice's text, so that reordering is harmless."""
    answer = result.new_grade.answer
    if isinstance(answer, int):
        answer = result.case.choices[answer]
    return hashlib.sha256(json.dumps(answer).encode()).hexdigest()[:16]


def _key(result: CaseResult) -> Key:
    return _storable(result.case.dataset), _storable(result.case.id)


def _storable(text: str) -> str:
    # TOML is UTF-8, which has no lone surrogates.
    return text.encode("utf-8", "replace").decode()


# The file -----------------------------------------------------------------------------------------


def read_accepted(path: Path, today: dt.date) -> AcceptedFlips:
    """Read the accepted flips; none where there is no file.

    Raises MuscleError naming the file, the entry and the remedy.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return AcceptedFlips(today=today)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise MuscleError(f"{path}: cannot be read as TOML: {error}") from None
    entries = table.pop("accepted", [])
    if table or not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise MuscleError(f"{path}: must hold nothing but [[accepted]] entries")
    flips: dict[Key, AcceptedFlip] = {}
    for number, entry in enumerate(entries, 1):
        place = f"{path}: [[accepted]] entry {number}"
        accepted = _parse(entry, place)
        if accepted.key in flips:
            raise MuscleError(f"{place}: {accepted.title} is accepted twice; keep one entry")
        flips[accepted.key] = accepted
    return AcceptedFlips(flips, today)


def _parse(entry: Mapping[str, Any], place: str) -> AcceptedFlip:
    names = [each.name for each in fields(AcceptedFlip)]
    for name in entry:
        if name not in names:
            hint = did_you_mean(name, names) or f"; the keys are {', '.join(names)}"
            raise MuscleError(f"{place}: unknown key '{name}'{hint}")
    values = {name: _text(entry, name, place) for name in ("dataset", "id", "flip", "new_answer")}
    kinds = [str(flip) for flip in Flip if flip.is_regression]
    if values["flip"] not in kinds:
        raise MuscleError(f"{place}: 'flip' must be one of {', '.join(kinds)}, not '{values['flip']}'")
    return AcceptedFlip(
        dataset=values["dataset"],
        id=values["id"],
        flip=Flip(values["flip"]),
        new_answer=values["new_answer"],
        date=_date(entry, "date", place),
        reason=_text(entry, "reason", place) if "reason" in entry else "",
        expires=_date(entry, "expires", place) if "expires" in entry else None,
    )


def _text(entry: Mapping[str, Any], name: str, place: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str):
        wrong = "is missing" if name not in entry else f"must be a text, not {value!r}"
        raise MuscleError(f"{place}: '{name}' {wrong}")
    return value


def _date(entry: Mapping[str, Any], name: str, place: str) -> dt.date:
    value = entry.get(name)
    if type(value) is not dt.date:
        wrong = "is missing" if name not in entry else f"must be a day such as 2030-12-31, not {value!r}"
        raise MuscleError(f"{place}: '{name}' {wrong}")
    return value


def to_toml(accepted: AcceptedFlips) -> str:
    """Return the file's content, sorted by case so that a diff shows what changed."""
    return "\n".join([_HEADER, *(_entry(accepted.flips[key]) for key in sorted(accepted.flips))])


def _entry(accepted: AcceptedFlip) -> str:
    lines = ["[[accepted]]"]
    for name in ("dataset", "id", "flip", "new_answer", "reason", "date", "expires"):
        value = getattr(accepted, name)
        if value is not None:
            lines.append(f"{name} = {value.isoformat() if isinstance(value, dt.date) else _quoted(value)}")
    return "\n".join([*lines, ""])


def _quoted(text: str) -> str:
    return '"' + "".join(map(_escaped, _storable(text))) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    return character if character.isprintable() else f"\\U{ord(character):08x}"
