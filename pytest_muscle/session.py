"""One run: settings in, one Comparison out, each response asked at most once."""

from __future__ import annotations

import datetime as dt
import shutil
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_muscle.accepted import AcceptedFlips, StaleFlip, read_accepted
from pytest_muscle.comparison import Comparison, ModelIdentity, TrainedAdapter
from pytest_muscle.errors import MuscleError
from pytest_muscle.evaluation import Key, Methods, Progress, ask, check_methods, choice_methods, held, silent
from pytest_muscle.flips import CaseResult
from pytest_muscle.gates import Gate, idle_budgets, plan
from pytest_muscle.golden import GoldenCase, read_golden, read_records
from pytest_muscle.grading import make_similarity, untrusted_metric
from pytest_muscle.mending import Training, TrainingProgress, silent_training, train_adapter
from pytest_muscle.models import ChoiceMethod, Model, ModelOptions, Response, golden_reader, open_model
from pytest_muscle.models.recorded import file_digest
from pytest_muscle.reports.files import write_files
from pytest_muscle.sampling import compare_draws
from pytest_muscle.settings.loading import load_settings
from pytest_muscle.settings.values import ACCEPTED, ModelSpec, Settings
from pytest_muscle.store import Store


class Session:
    """A run of the plugin or of :func:`compare`.

    Reading a dataset and planning its gates is cheap and happens when asked for; the models are asked
    when ``comparison`` is first looked at. ``run_id`` is the same in all processes of one run, of which
    ``workers`` divide the cases.
    """

    def __init__(
        self,
        settings: Settings,
        run_id: str = "",
        progress: Progress = silent,
        training_progress: TrainingProgress = silent_training,
        workers: int = 1,
    ) -> None:
        self.settings = settings
        self.run_id = run_id or uuid.uuid4().hex
        self.progress = progress
        self.training_progress = training_progress
        self.workers = workers
        self.selected: AbstractSet[Key] | None = None
        self._notices: dict[str, None] = {}
        self._datasets: dict[Path, list[GoldenCase]] = {}
        self._digests: dict[Path, str] = {}
        self._trained: Training | None = None

    def cases(self, path: Path) -> list[GoldenCase]:
        """Return the cases of one golden dataset; raises MuscleError where it cannot be read."""
        if path not in self._datasets:
            name = self.settings.dataset_name(path)
            defaults = self.settings.datasets.get(name)
            kind = self.settings.golden_logs.get(path)
            records = golden_reader(kind) if kind else read_records
            digest = _digest(path)
            cases = read_golden(path, name, defaults, self.settings.limit, records)
            self._require_trusted_metrics(cases)
            self._datasets[path], self._digests[path] = cases, digest
        return self._datasets[path]

    def _require_unchanged(self, digests: Mapping[Path, str]) -> None:
        for path, digest in digests.items():
            if _digest(path) != digest:
                raise MuscleError(
                    f"{self.settings.dataset_name(path)}: the file has changed since its cases were "
                    "collected; run again"
                )

    def _require_trusted_metrics(self, cases: Sequence[GoldenCase]) -> None:
        trusted = self.settings.own_metrics
        for case in cases:
            if ":" in case.metric and case.metric not in trusted:
                raise MuscleError(f"{case.dataset}:{case.line}: {untrusted_metric(case.metric)}")

    def gates(self, path: Path) -> list[Gate]:
        """Return the gates of one golden dataset, unjudged."""
        settings = self.settings
        return plan(self.cases(path), settings.thresholds, settings.inconclusive, settings.slice_pairs)

    def select(self, keys: AbstractSet[Key]) -> None:
        """Name the cases that may be sent to a model; without this, all of the golden datasets."""
        self.selected = keys

    def check(self) -> None:
        """Raise MuscleError where a model that is named does not exist, before anything is done."""
        self._open(self.settings.old, "old")
        self._open(self.settings.new, "new")

    def describe(self) -> dict[str, Any]:
        """Return what another process needs to make the same comparison from the store."""
        selected = None if self.selected is None else [list(key) for key in self.selected]
        return {
            "datasets": {str(path): digest for path, digest in self._digests.items()},
            "selected": selected,
            "trained": self._trained and self._trained.describe(),
            "notices": list(self._notices),
        }

    def resume(self, described: Mapping[str, Any]) -> None:
        """Take over what another process's session describes.

        Raises MuscleError where a golden dataset is no more what the other process read.
        """
        digests = {Path(path): digest for path, digest in described["datasets"].items()}
        self._require_unchanged(digests)
        for path in digests:
            self.cases(path)
        if described["selected"] is not None:
            self.select({(dataset, case_id) for dataset, case_id in described["selected"]})
        if described["trained"] is not None:
            self._trained = Training.resume(described["trained"])
        self._notices |= dict.fromkeys(described["notices"])

    @cached_property
    def comparison(self) -> Comparison:
        """Ask both models for every selected case, and compare; train an adapter if that is asked for."""
        mode = self.settings.adapter
        if mode == "always" or (mode == "auto" and self.plain.is_over_budget):
            return self.mended
        return self.plain

    @cached_property
    def plain(self) -> Comparison:
        """Compare the models as they are; raises MuscleError where a golden dataset was changed meanwhile."""
        self._require_unchanged(self._digests)
        return self._compare(*self.models, asking=True)

    @cached_property
    def mended(self) -> Comparison:
        """Compare the old model and the new one with its compatibility adapter, which is trained now.

        Raises MuscleError where the models or the training records do not allow that.
        """
        self._trained = self._train()
        return self._with_adapter(self.plain, self._trained, asking=True)

    def from_store(self) -> Comparison:
        """Compare by what is at hand, asking no model anything."""
        plain = self._compare(*self.models, asking=False)
        return self._with_adapter(plain, self._trained, asking=False) if self._trained else plain

    def _train(self) -> Training:
        settings, (old, new) = self.settings, self.models
        if settings.train is None:
            raise MuscleError("a compatibility adapter needs training records: add --muscle-train=PATH")
        folder = settings.cache_dir or settings.root / ".pytest-muscle"
        with self._store.lock("compatibility adapter"), self.training_progress() as progress:
            return train_adapter(
                settings, old, new, self._everything, folder / "adapters", self._similarity, progress
            )

    def _with_adapter(self, plain: Comparison, trained: Training, asking: bool) -> Comparison:
        adapter = TrainedAdapter(trained.path, trained.recipe, trained.seconds, plain, None, trained.notes)
        if trained.path is None:
            return replace(plain, adapter=adapter)
        old, _ = self.models
        name = f"{self.settings.new.name} + adapter"
        spec = replace(self.settings.new, name=name, spec=str(trained.path))
        mended = self._compare(old, self._open(spec, "new"), asking, spec.name).mending(plain)
        if asking:
            trained.record(plain.metrics, mended.metrics)
        return replace(mended, adapter=replace(adapter, after=mended))

    @cached_property
    def models(self) -> tuple[Model, Model]:
        """The old and the new model, opened but not loaded."""
        return self._open(self.settings.old, "old"), self._open(self.settings.new, "new")

    @property
    def _everything(self) -> list[GoldenCase]:
        for path in self.settings.golden:
            self.cases(path)
        return [case for cases in self._datasets.values() for case in cases]

    def _open(self, model: ModelSpec, side: str) -> Model:
        settings = self.settings
        common = {
            "device": settings.device,
            "dtype": settings.dtype,
            "batch_tokens": settings.batch_tokens,
            "samples": settings.samples_of(model),
            "run_id": self.run_id,
        }
        try:
            return open_model(model.spec, ModelOptions(**{**common, **model.options}))
        except MuscleError as error:
            raise MuscleError(f"the {side} model: {error}") from None

    def _compare(self, old: Model, new: Model, asking: bool, new_name: str = "") -> Comparison:
        everything = selected = self._everything
        if self.selected is not None:
            selected = [case for case in everything if case.key in self.selected]
        settings = self.settings
        sides = [
            self._draws(model, title, everything, selected, asking, settings.samples_of(spec))
            for model, title, spec in (
                (old, "old model", settings.old),
                (new, new_name or "new model", settings.new),
            )
        ]
        methods = [choice_methods(side) for side in sides]
        check_methods(*methods)
        results, beside = self._judge(everything, selected, *sides)
        planned = [gate for path in self._datasets for gate in self.gates(path)]
        idle = []
        if settings.golden and settings.limit is None:
            idle = idle_budgets(settings.thresholds, planned, everything, settings.slice_pairs)
        self._notices |= dict.fromkeys([*self._store.notices, *old.notices, *new.notices])
        compared = Comparison(
            old=ModelIdentity(settings.old.name, old.fingerprint, _names(methods[0])),
            new=ModelIdentity(new_name or settings.new.name, new.fingerprint, _names(methods[1])),
            results=results,
            beside=beside,
            planned=planned,
            notices=list(dict.fromkeys([*idle, *self._notices])),
            unselected=len(everything) - len(selected),
            slice_pairs=self.settings.slice_pairs,
        )
        return self._accept(compared, everything)

    def _accept(self, compared: Comparison, everything: Sequence[GoldenCase]) -> Comparison:
        if self.settings.accepted is None:
            return compared
        accepted = read_accepted(self.settings.accepted, dt.date.today())
        # A limited run does not see every case, and so cannot say that one is gone.
        gone = accepted.gone(everything) if self.settings.limit is None else set()
        if self.settings.accept:
            free = {r.case.key for r in compared.results if r.flip and r.flip.is_regression}
            free -= {r.case.key for r in compared.results if compared.weighs(r)}
            accepted = accepted.renewed([r for r in compared.results if r.case.key not in free], gone)
            gone = set()
        stale = accepted.stale([*compared.results, *compared.beside], gone)
        notices = [*compared.notices, *_about(accepted, stale)]
        if self.settings.history and compared.unselected:
            notices.append(f"not added to the history: {compared.unselected:,} cases were not selected")
        return replace(compared, accepted=accepted, stale=stale, notices=notices)

    def _draws(
        self,
        model: Model,
        title: str,
        everything: Sequence[GoldenCase],
        selected: Sequence[GoldenCase],
        asking: bool,
        samples: int,
    ) -> list[Mapping[Key, Response]]:
        draws: list[Mapping[Key, Response]] = []
        for draw in range(samples):
            found = held(model, _drawn(everything, draw), self._store)
            if asking and not model.stored:
                name = f"{title}, draw {draw + 1} of {samples}" if samples > 1 else title
                again = draw + 1 < samples
                chosen = _drawn(selected, draw)
                found.update(ask(model, chosen, self._store, self.progress, name, again, self.workers))
            draws.append(found)
        return draws

    def _judge(
        self,
        everything: Sequence[GoldenCase],
        selected: Sequence[GoldenCase],
        old: Sequence[Mapping[Key, Response]],
        new: Sequence[Mapping[Key, Response]],
    ) -> tuple[list[CaseResult], list[CaseResult]]:
        chosen = {case.key for case in selected}
        cases = [
            case
            for case in everything
            if case.key in chosen or all(case.key in draw for draw in (*old, *new))
        ]
        olds, news = ([[draw.get(case.key) for case in cases] for draw in draws] for draws in (old, new))
        judged = compare_draws(cases, olds, news, self._similarity, self.settings.tolerance)
        results = [result for result in judged if result.case.key in chosen]
        return results, [result for result in judged if result.case.key not in chosen]

    @cached_property
    def _similarity(self) -> Any:
        return make_similarity(self.settings.bertscore_model, self.settings.device, self.settings.own_metrics)

    @cached_property
    def _store(self) -> Store:
        return Store(self.settings.cache_dir or self._own_folder, self.run_id)

    @property
    def _own_folder(self) -> Path:
        return Path(tempfile.gettempdir()) / f"pytest-muscle-{self.run_id}"

    def close(self, keep: bool = False) -> None:
        """Close the store; delete it where nothing is to be kept and no other process needs it."""
        if "_store" in self.__dict__:
            if not keep:
                self._store.forget_failures()
            self._store.close()
        if self.settings.cache_dir is None and not keep:
            shutil.rmtree(self._own_folder, ignore_errors=True)


def _drawn(cases: Sequence[GoldenCase], draw: int) -> Sequence[GoldenCase]:
    return [replace(case, draw=draw) for case in cases] if draw else cases


def _digest(path: Path) -> str:
    return file_digest(path) if path.is_file() else ""


def _names(methods: Methods) -> tuple[ChoiceMethod, ...]:
    return tuple(sorted(set(methods.values())))


def _about(accepted: AcceptedFlips, stale: Sequence[StaleFlip]) -> list[str]:
    notices = [each.sentence() for each in stale[:_MOST_NOTICES]]
    if len(stale) > _MOST_NOTICES:
        notices.append(
            f"{ACCEPTED}: {len(stale) - _MOST_NOTICES:,} more lines can go; --muscle-accept removes them"
        )
    if unexplained := len(accepted.unexplained()):
        notices.append(f"{ACCEPTED}: {unexplained:,} accepted flips have no reason yet")
    return notices


_MOST_NOTICES = 5


def compare(old: str, new: str, golden: str | Path | Sequence[str | Path], **options: Any) -> Comparison:
    """Compare two models on golden datasets, without pytest.

    ``old`` and ``new`` are model specs, ``golden`` paths or patterns. Options are the keys of
    ``[tool.pytest-muscle]``, such as ``thresholds={"max_nfr": 0.02}``; no file is read for them.
    Raises MuscleError for anything the caller can mend.
    """
    here = Path.cwd()
    paths = [golden] if isinstance(golden, str | Path) else list(golden)
    table = {"old": old, "new": new, "golden": [str(path) for path in paths], **options}
    settings = load_settings(here, here, {}, table=table)
    assert settings is not None
    session = Session(settings)
    try:
        write_files(session.comparison, settings)
        return session.comparison
    finally:
        session.close()
