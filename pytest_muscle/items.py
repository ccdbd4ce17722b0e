"""Golden datasets as pytest sees them: a file, a test for each case and for each gate."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_muscle.errors import MuscleError
from pytest_muscle.plugin import ACTIVE, MARK

if TYPE_CHECKING:
    from pytest_muscle.flips import CaseResult
    from pytest_muscle.gates import Gate, Outcome
    from pytest_muscle.golden import GoldenCase
    from pytest_muscle.run import MusclePlugin

UNREADABLE = pytest.StashKey[set[Path]]()


class RegressionError(Exception):
    """A flip or a gate that fails; its text is the whole story, its first line the headline."""


class GoldenFile(pytest.File):
    """A golden dataset: one test per case, then one per gate."""

    def collect(self) -> Iterator[pytest.Item]:
        """Yield the cases and the gates of the dataset."""
        self.add_marker(MARK)
        plugin = self.config.stash[ACTIVE]
        try:
            cases, gates = plugin.session.cases(self.path), plugin.session.gates(self.path)
        except MuscleError as error:
            self.session.stash.setdefault(UNREADABLE, set()).add(self.path)
            raise self.CollectError(str(error)) from None
        for case in cases:
            yield CaseItem.from_parent(self, name=node_name(case.id), case=case)
        for gate in gates:
            yield GateItem.from_parent(self, name=node_name(gate.title), gate=gate)
        if plugin.settings.strict_accepted:
            yield AcceptedItem.from_parent(self, name="accepted", dataset=cases[0].dataset)


class MuscleItem(pytest.Item):
    """What cases and gates have in common: how they look when they fail."""

    @property
    def muscle(self) -> MusclePlugin:
        """The run's hooks."""
        return self.config.stash[ACTIVE]

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Show a flip or a gate as its own story, without a traceback."""
        if isinstance(excinfo.value, pytest.xfail.Exception) and not self.config.option.runxfail:
            return str(excinfo.value)
        if not isinstance(excinfo.value, RegressionError):
            return super().repr_failure(excinfo, style)
        shown = excinfo.getrepr(style="value")
        if shown.reprcrash is not None:
            shown.reprcrash.message = str(excinfo.value).split("\n", 1)[0]
        return shown


class CaseItem(MuscleItem):
    """Does the new model still do what the old one did right in this case?"""

    def __init__(self, *, case: GoldenCase, **how: Any) -> None:
        super().__init__(**how)
        self.case = case
        self.extra_keyword_matches.update(f"{tag}:{value}" for tag, value in case.tags.items())

    def setup(self) -> None:
        """Have the case answered, with all others that are selected."""
        comparison = self.muscle.comparison(self.session)
        self.result: CaseResult = comparison.result(self.case)
        self.outcome: Outcome = comparison.outcomes[self.case.key]
        self.user_properties += properties(self.result, self.outcome)
        if self.outcome.verdict == "error":
            pytest.fail(self._story(), pytrace=False)

    def runtest(self) -> None:
        """Fail on a flip, unless a budget or the accepted list bears it."""
        verdict = self.outcome.verdict
        if verdict == "failed":
            raise RegressionError(self._story())
        if verdict in ("tolerated", "accepted"):
            raise pytest.xfail.Exception(self.outcome.reason)

    def _story(self) -> str:
        from pytest_muscle.reports.explain import explain

        return logged(explain(self.result, self.outcome, self.muscle.width))

    def reportinfo(self) -> tuple[Path, int, str]:
        """Point at the record in the golden dataset."""
        return self.path, self.case.line - 1, self.name


class GateItem(MuscleItem):
    """Is the release within this budget?"""

    def __init__(self, *, gate: Gate, **how: Any) -> None:
        super().__init__(**how)
        self.gate = gate

    def setup(self) -> None:
        """Have every selected case answered, and judge the gate."""
        self.gate = self.muscle.comparison(self.session).gate(self.gate)

    def runtest(self) -> None:
        """Fail over budget; skip where some of the gate's cases have no answer.

        An inconclusive gate fails, is shown as an expected failure, or passes, as the settings say; it is
        counted apart in each case.
        """
        gate = self.gate
        measured = {"value": gate.value, "limit": gate.limit, "ruling": gate.ruling}
        self.user_properties += [("muscle", "gate"), *((name, str(each)) for name, each in measured.items())]
        told = "\n".join([gate.verdict(), f"on {gate.scope}", *gate.details()])
        if gate.ruling == "unjudged":
            pytest.skip(gate.verdict())
        if gate.blocks:
            raise RegressionError(told)
        if gate.ruling == "inconclusive" and gate.inconclusive == "warn":
            raise pytest.xfail.Exception(f"inconclusive: {gate.verdict()}")

    def reportinfo(self) -> tuple[Path, None, str]:
        """Point at the dataset."""
        return self.path, None, self.name


class AcceptedItem(MuscleItem):
    """Does every line of the accepted flips still accept something, and say why?"""

    def __init__(self, *, dataset: str, **how: Any) -> None:
        super().__init__(**how)
        self.dataset = dataset

    def runtest(self) -> None:
        """Fail where a line of this dataset can go or has no reason."""
        comparison = self.muscle.comparison(self.session)
        problems = [stale.sentence() for stale in comparison.stale if stale.accepted.dataset == self.dataset]
        problems += [
            f"{each.title} is accepted without a reason"
            for each in comparison.accepted.unexplained()
            if each.dataset == self.dataset
        ]
        if problems:
            from pytest_muscle.reports.text import plain

            raise RegressionError(logged(plain("\n".join(problems))))

    def reportinfo(self) -> tuple[Path, None, str]:
        """Point at the dataset."""
        return self.path, None, self.name


def logged(text: str) -> str:
    """Return text as it may be printed: on GitHub, nothing in it is taken for a command."""
    from pytest_muscle.reports.github import defuse, is_github

    return defuse(text) if is_github(os.environ) else text


def properties(result: CaseResult, decided: Outcome) -> list[tuple[str, object]]:
    """Return what JUnit shows of a case: flip, outcome and both answers."""
    from pytest_muscle.reports.text import one_line

    def shown(answer: str | int | None) -> str:
        return one_line(str(answer)) if answer is not None else ""

    flip = str(result.flip or "error")
    return [
        ("muscle", flip),
        ("flip", flip),
        ("outcome", str(decided.verdict)),
        ("old", shown(result.old_grade.answer)),
        ("new", shown(result.new_grade.answer)),
    ]


def node_name(text: str) -> str:
    """Return an id as a node's name: on one line, without ``::``, of bounded length, unique still."""
    escaped = text.replace("\\", "\\\\").replace("::", ":\\:").replace("##[", "#\\#[")
    if not escaped.isprintable():
        escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in escaped)
    if len(escaped) > 200:
        from hashlib import sha256

        digest = sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        escaped = f"{escaped[:180]}...{digest}"
    return escaped
