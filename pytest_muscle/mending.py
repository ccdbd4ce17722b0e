"""A release over its budget -> a compatibility adapter: the run's side of the training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_muscle.golden import GoldenCase
from pytest_muscle.grading import Similarity
from pytest_muscle.metrics import Metrics
from pytest_muscle.models import Model, ModelOptions
from pytest_muscle.models.recorded import file_digest
from pytest_muscle.settings.values import Settings

if TYPE_CHECKING:
    from pytest_muscle.adapter.progress import Event

TrainingProgress = Callable[[], AbstractContextManager["Callable[[Event], None]"]]
"""Opens a display of a training; what it gives is called with each of its events."""

_RECORDED = (
    "accuracy_old",
    "accuracy_new",
    "nfr",
    "nfr_mc",
    "pfr",
    "score_old",
    "score_new",
    "mean_gain",
    "mean_regression",
)


@contextmanager
def silent_training() -> Iterator[Callable[[Event], None]]:
    """Show no progress."""
    yield lambda event: None


@dataclass(frozen=True, slots=True)
class Training:
    """A finished training; ``path`` is None where it found no adapter worth keeping."""

    path: Path | None
    recipe: str
    seconds: float
    notes: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """Return plain data for another process."""
        return {
            "path": str(self.path) if self.path else None,
            "recipe": self.recipe,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }

    @classmethod
    def resume(cls, described: Mapping[str, Any]) -> Training:
        """The inverse of :meth:`describe`."""
        path = Path(described["path"]) if described["path"] else None
        return cls(path, described["recipe"], described["seconds"], tuple(described["notes"]))

    def record(self, before: Metrics, after: Metrics) -> None:
        """Write what the golden datasets say into the adapter's report and model card."""
        from pytest_muscle.adapter import record_judgement

        if self.path:
            figures = [{name: getattr(each, name) for name in _RECORDED} for each in (before, after)]
            known = [name for name in _RECORDED if figures[0][name] is not None]
            record_judgement(self.path, *({name: each[name] for name in known} for each in figures))


def train_adapter(
    settings: Settings,
    old: Model,
    new: Model,
    golden: Sequence[GoldenCase],
    folder: Path,
    similarity: Similarity,
    progress: Callable[[Event], None],
) -> Training:
    """Train an adapter that lets the new model keep what the old one had right.

    It is written to ``settings.adapter_output`` or else to a place in ``folder`` named after everything
    that it was made from, so that the same run finds it again. Raises MuscleError.
    """
    from pytest_muscle.adapter import CompatibilityConfig, train_compatibility_adapter

    assert settings.train is not None
    made_from = [old.fingerprint, new.fingerprint, file_digest(settings.train), settings.training]
    name = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]
    result = train_compatibility_adapter(
        old.spec,
        new.spec,
        settings.train,
        settings.adapter_output or folder / name,
        CompatibilityConfig.from_table(settings.training),
        golden=golden,
        allow_overlap=settings.allow_overlap,
        options=ModelOptions(settings.device, settings.dtype, settings.batch_tokens),
        similarity=similarity,
        progress=progress,
        launcher=settings.launcher,
    )
    return Training(result.path, result.recipe, result.seconds, tuple(result.notes))
