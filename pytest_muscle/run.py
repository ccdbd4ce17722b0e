"""The hooks of a pytest run that compares two models."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_muscle.errors import MuscleError
from pytest_muscle.items import UNREADABLE, CaseItem, GoldenFile, MuscleItem, logged, node_name
from pytest_muscle.settings.values import Settings

if TYPE_CHECKING:
    from pytest_muscle.comparison import Comparison, TrainedAdapter
    from pytest_muscle.session import Session

_WORDS = {
    "negative_flip": ("N", "NEGATIVE FLIP"),
    "inconsistency_flip": ("I", "INCONSISTENCY FLIP"),
    "gate": ("G", "GATE FAILED"),
}


class MusclePlugin:
    """The hooks of a run that compares two models."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        from pytest_muscle.reports.explain import WIDEST
        from pytest_muscle.session import Session

        self.config = config
        self.settings = settings
        worker = getattr(config, "workerinput", None)
        self.is_worker = worker is not None
        self.is_bare = worker["muscle_bare"] if worker else config.args_source.name != "ARGS"
        # Asked here, because it cannot be while output is captured.
        self.width = worker["muscle_width"] if worker else shutil.get_terminal_size((WIDEST, 24)).columns
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
        collected = {item.path for item in items if isinstance(item, MuscleItem)}
        collected |= {path for path in self.settings.golden if session.isinitpath(path)}
        for path in self.settings.golden:
            if path not in collected and not self._failed_to_collect(session, path):
                nodeid = self.settings.dataset_name(path)
                items.extend(session.genitems(GoldenFile.from_parent(session, path=path, nodeid=nodeid)))

    def _failed_to_collect(self, session: pytest.Session, path: Path) -> bool:
        return path in session.stash.setdefault(UNREADABLE, set())

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
        node.workerinput["muscle_width"] = self.width
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
            terminalreporter.write(logged(text), flush=True)
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
