"""The pytest plugin: hooks, options and fixtures, thin, with no logic of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_muscle.errors import MuscleError
from pytest_muscle.settings import OPTIONS, Settings, load_settings

if TYPE_CHECKING:
    from pytest_muscle.comparison import Comparison, TrainedAdapter
    from pytest_muscle.flips import CaseResult, Flip
    from pytest_muscle.gates import Gate, Outcome
    from pytest_muscle.golden import GoldenCase
    from pytest_muscle.session import Session

MARK = "muscle"
_ACTIVE = pytest.StashKey["MusclePlugin"]()
_NEEDS_MODELS = "needs an old and a new model: --muscle-old=SPEC --muscle-new=SPEC"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, each of which may also stand in ``[tool.pytest-muscle]``."""
    group = parser.getgroup("muscle", "regression testing for LLM releases")
    for option in OPTIONS:
        how: dict[str, Any] = {"dest": option.dest, "help": option.help, "default": None}
        if option.metavar is None:
            how["action"] = "store_true"
        else:
            how |= {"metavar": option.metavar, "action": "append" if option.repeatable else "store"}
        group.addoption(option.flag, **how)


def pytest_configure(config: pytest.Config) -> None:
    """Start a run where two models are named; do nothing at all otherwise."""
    config.addinivalue_line("markers", f"{MARK}: a golden case or gate of pytest-muscle")
    given = {option.key: config.getoption(option.dest) for option in OPTIONS}
    try:
        settings = load_settings(config.rootpath, config.invocation_params.dir, given, _own_toml(config))
    except MuscleError as error:
        raise pytest.UsageError(str(error)) from None
    if settings is not None:
        plugin = MusclePlugin(config, settings)
        try:
            plugin.session.check()
        except MuscleError as error:
            raise pytest.UsageError(str(error)) from None
        config.stash[_ACTIVE] = plugin
        config.pluginmanager.register(plugin, "muscle-run")
    elif any(given.values()):
        flag = next(option.flag for option in OPTIONS if given[option.key])
        raise pytest.UsageError(f"{flag} {_NEEDS_MODELS}")


def _own_toml(config: pytest.Config) -> Path | None:
    inipath = config.inipath
    is_ours = inipath is not None and inipath.suffix == ".toml" and "pytest.toml" not in inipath.name
    return inipath if is_ours else None


class MusclePlugin:
    """The hooks of a run that compares two models."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        from pytest_muscle.session import Session

        self.config = config
        self.settings = settings
        worker = getattr(config, "workerinput", None)
        self.is_worker = worker is not None
        self.is_bare = worker["muscle_bare"] if worker else config.args_source.name != "ARGS"
        run_id, workers = (worker["testrunuid"], worker["workercount"]) if worker else ("", 1)
        self.session: Session = Session(settings, run_id, self._progress, self._training, workers)
        self._rerun: set[str] = set()
        self._has_output = False
        self.shown: Comparison | None = None

    # Collection

    def pytest_report_header(self) -> list[str]:
        """Say which models are compared and who named them."""
        from pytest_muscle.reports.text import one_line

        sources = self.settings.sources
        sides = (("old", self.settings.old), ("new", self.settings.new))
        models = [f"{side} {one_line(model.name)} ({sources[side]})" for side, model in sides]
        return [f"muscle: {', '.join(models)}"]

    def pytest_collect_file(self, file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        """Collect golden datasets that are configured or named as an argument."""
        from pytest_muscle.golden import SUFFIXES

        is_named = file_path.suffix.lower() in SUFFIXES and parent.session.isinitpath(file_path)
        if is_named or file_path in self.settings.golden:
            return GoldenFile.from_parent(parent, path=file_path)
        return None

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """Add the golden datasets that lie where pytest does not look by itself."""
        if not (self.is_bare or self.settings.sources.get("golden", "").startswith("--")):
            return
        collected = {item.path for item in items if isinstance(item, _MuscleItem)}
        collected |= {path for path in self.settings.golden if session.isinitpath(path)}
        for path in self.settings.golden:
            if path not in collected and not self._failed_to_collect(session, path):
                nodeid = self.settings.dataset_name(path)
                items.extend(session.genitems(GoldenFile.from_parent(session, path=path, nodeid=nodeid)))

    def _failed_to_collect(self, session: pytest.Session, path: Path) -> bool:
        return path in session.stash.setdefault(_UNREADABLE, set())

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note which cases are left: no other is ever sent to a model."""
        names = [getattr(item, "fixturenames", ()) for item in session.items]
        if any("comparison" in each or "compatibility_adapter" in each for each in names):
            return
        keys = {item.case.key for item in session.items if isinstance(item, CaseItem)}
        for item, fixtures in zip(session.items, names, strict=True):
            if "flip" in fixtures:
                keys.add(item.callspec.params["golden_case"].key)  # type: ignore[attr-defined]
        self.session.select(keys)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Give ``golden_case`` (and so ``flip``) every golden case in turn."""
        if "golden_case" in metafunc.fixturenames:
            try:
                cases = [case for path in self.settings.golden for case in self.session.cases(path)]
            except MuscleError as error:
                raise metafunc.definition.CollectError(str(error)) from None  # type: ignore[attr-defined]
            ids = [f"{case.dataset}-{node_name(case.id)}" for case in cases]
            metafunc.parametrize("golden_case", cases, indirect=True, ids=ids)

    # Running

    def comparison(self, session: pytest.Session) -> Comparison:
        """Return the comparison; the first caller makes all selected cases be answered.

        Where that cannot be done, no other test is run: each would fail for the same reason.
        """
        try:
            self.shown = self.session.comparison
        except MuscleError as error:
            session.shouldfail = "pytest-muscle: the models could not be compared"
            raise pytest.fail.Exception(str(error), pytrace=False) from None
        return self.shown

    def adapter(self, session: pytest.Session) -> TrainedAdapter | None:
        """Return the compatibility adapter, trained now if a gate is exceeded; None where none is needed."""
        comparison = self.comparison(session)
        if comparison.adapter is None and comparison.is_over_budget:
            try:
                comparison = self.session.mended
            except MuscleError as error:
                raise pytest.fail.Exception(str(error), pytrace=False) from None
        return comparison.adapter

    def _progress(self, title: str, total: int) -> Any:
        from pytest_muscle.reports.progress import show_progress

        quiet = self.is_worker or self.config.get_verbosity() < 0
        return show_progress(title, total, self.config.pluginmanager.getplugin("capturemanager"), quiet)

    def _training(self) -> Any:
        from pytest_muscle.reports.progress import show_training

        quiet = self.is_worker or self.config.get_verbosity() < 0
        return show_training(self.config.pluginmanager.getplugin("capturemanager"), quiet)

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> Any:
        """Name a failing flip or gate by what it is; it counts as failed all the same."""
        if report.outcome == "worker lost":  # type: ignore[comparison-overlap]
            return "worker lost", "L", ("WORKER LOST", {"yellow": True})
        properties = dict(getattr(report, "user_properties", ()))
        if report.when != "call" or "muscle" not in properties:
            return None
        if properties.get("ruling") == "inconclusive":
            return "failed" if report.failed else "inconclusive", "?", ("INCONCLUSIVE", {"yellow": True})
        if report.failed:
            letter, word = _WORDS.get(properties["muscle"], ("F", "FAILED"))
            return "failed", letter, (word, {"red": True})
        if hasattr(report, "wasxfail"):
            word = properties["outcome"]
            return "xfailed", word[0], (word.upper(), {"yellow": True})
        return None

    # Reporting

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell an xdist worker what it cannot see."""
        node.workerinput["muscle_bare"] = self.is_bare
        self.session.run_id = node.workerinput["testrunuid"]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Take over what a worker compared; every worker compares the same cases."""
        if output := getattr(node, "workeroutput", {}).get("muscle"):
            try:
                self.session.resume(output)
            except MuscleError as error:
                self.failure = str(error)
            else:
                self._has_output = True

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport, sched: Any) -> None:
        """Run the case or gate at which a worker was lost again; it was most likely asking a model."""
        datasets = tuple(f"{self.settings.dataset_name(path)}::" for path in self.settings.golden)
        if crashitem in self._rerun or not crashitem.startswith(datasets):
            return
        with suppress(NotImplementedError):
            sched.mark_test_pending(crashitem)
            self._rerun.add(crashitem)
            report.outcome = "worker lost"  # type: ignore[assignment]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the result; under xdist the workers only say what they compared."""
        if self.failure:
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
        elif self._has_output:
            self.shown = self.session.from_store()
        if self.is_worker:
            if self.shown is not None:
                self.config.workeroutput["muscle"] = self.session.describe()  # type: ignore[attr-defined]
        elif self.shown is not None:
            from pytest_muscle.reports.files import write_files
            from pytest_muscle.reports.github import append_summary, is_github

            try:
                write_files(self.shown, self.settings)
                if is_github(os.environ):
                    append_summary(self.shown, os.environ)
            except MuscleError as error:
                session.exitstatus = pytest.ExitCode.USAGE_ERROR
                self.failure = str(error)

    failure = ""

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show the quadrants, rates, gates, slices and the worst regressions."""
        if self.shown is not None:
            from pytest_muscle.reports.terminal import summarise

            terminalreporter.section("pytest-muscle")
            writer = terminalreporter._tw
            text = summarise(self.shown, writer.fullwidth, writer.hasmarkup)
            terminalreporter.write(_logged(text), flush=True)
            self._annotate(terminalreporter)
        if self.failure:
            terminalreporter.write_line(f"ERROR: {self.failure}", red=True)

    def _annotate(self, terminalreporter: pytest.TerminalReporter) -> None:
        from pytest_muscle.reports.github import commands, is_github

        if is_github(os.environ) and self.shown is not None:
            for line in commands(self.shown, self.settings.root, os.environ):
                terminalreporter.write_line(line)

    def pytest_unconfigure(self) -> None:
        """Close the store."""
        self.session.close(keep=self.is_worker)


_WORDS = {
    "negative_flip": ("N", "NEGATIVE FLIP"),
    "inconsistency_flip": ("I", "INCONSISTENCY FLIP"),
    "gate": ("G", "GATE FAILED"),
}
_UNREADABLE = pytest.StashKey[set[Path]]()


class RegressionError(Exception):
    """A flip or a gate that fails; its text is the whole story, its first line the headline."""


class GoldenFile(pytest.File):
    """A golden dataset: one test per case, then one per gate."""

    def collect(self) -> Iterator[pytest.Item]:
        """Yield the cases and the gates of the dataset."""
        self.add_marker(MARK)
        plugin = self.config.stash[_ACTIVE]
        try:
            cases, gates = plugin.session.cases(self.path), plugin.session.gates(self.path)
        except MuscleError as error:
            self.session.stash.setdefault(_UNREADABLE, set()).add(self.path)
            raise self.CollectError(str(error)) from None
        for case in cases:
            yield CaseItem.from_parent(self, name=node_name(case.id), case=case)
        for gate in gates:
            yield GateItem.from_parent(self, name=node_name(gate.title), gate=gate)
        if plugin.settings.strict_accepted:
            yield AcceptedItem.from_parent(self, name="accepted", dataset=cases[0].dataset)


class _MuscleItem(pytest.Item):
    """What cases and gates have in common: how they look when they fail."""

    @property
    def muscle(self) -> MusclePlugin:
        return self.config.stash[_ACTIVE]

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        if isinstance(excinfo.value, pytest.xfail.Exception) and not self.config.option.runxfail:
            return str(excinfo.value)
        if not isinstance(excinfo.value, RegressionError):
            return super().repr_failure(excinfo, style)
        shown = excinfo.getrepr(style="value")
        if shown.reprcrash is not None:
            shown.reprcrash.message = str(excinfo.value).split("\n", 1)[0]
        return shown


class CaseItem(_MuscleItem):
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
            from pytest_muscle.reports.explain import explain

            pytest.fail(_logged(explain(self.result, self.outcome)), pytrace=False)

    def runtest(self) -> None:
        """Fail on a flip, unless a budget or the accepted list bears it."""
        verdict = self.outcome.verdict
        if verdict == "failed":
            from pytest_muscle.reports.explain import explain

            raise RegressionError(_logged(explain(self.result, self.outcome)))
        if verdict in ("tolerated", "accepted"):
            raise pytest.xfail.Exception(self.outcome.reason)

    def reportinfo(self) -> tuple[Path, int, str]:
        """Point at the record in the golden dataset."""
        return self.path, self.case.line - 1, self.name


class GateItem(_MuscleItem):
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


class AcceptedItem(_MuscleItem):
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

            raise RegressionError(_logged(plain("\n".join(problems))))

    def reportinfo(self) -> tuple[Path, None, str]:
        """Point at the dataset."""
        return self.path, None, self.name


def _logged(text: str) -> str:
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


# Fixtures -----------------------------------------------------------------------------------------


def _active(request: pytest.FixtureRequest) -> MusclePlugin:
    plugin = request.config.stash.get(_ACTIVE, None)
    if plugin is None:
        pytest.skip(_NEEDS_MODELS)
    return plugin


@pytest.fixture
def golden_case(request: pytest.FixtureRequest) -> GoldenCase:
    """Every golden case in turn."""
    _active(request)
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def flip(request: pytest.FixtureRequest, golden_case: GoldenCase) -> Flip:
    """What the update did to ``golden_case``; an error where a response could not be judged."""
    result = _active(request).comparison(request.session).result(golden_case)
    if result.flip is None:
        pytest.fail(f"not judged: {result.error}", pytrace=False)
    return result.flip


@pytest.fixture(scope="session")
def comparison(request: pytest.FixtureRequest) -> Comparison:
    """Both models on all golden cases: ``metrics``, ``datasets``, ``gates``, ``results``, ``to_frame()``."""
    return _active(request).comparison(request.session)


@pytest.fixture(scope="session")
def compatibility_adapter(request: pytest.FixtureRequest) -> TrainedAdapter | None:
    """The adapter that brings the release within its budgets: ``path``, ``before``, ``after``, ``recipe``.

    None, and nothing is trained, where no gate is exceeded.
    """
    return _active(request).adapter(request.session)
