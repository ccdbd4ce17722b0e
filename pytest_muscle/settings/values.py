"""The settings of a run, validated and immutable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os.path import relpath
from pathlib import Path
from typing import Any

from pytest_muscle.settings.options import AdapterMode, Decision, Inconclusive

ACCEPTED = "muscle-accepted.toml"
"""The file of accepted flips; it lies in the root folder of the tests."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """A budget; ``dataset`` and ``slice`` are empty where it holds for all.

    ``decision`` says how it is judged: by the ``point`` estimate; ``significant`` fails only where the
    sample shows that the budget is exceeded; ``assured`` passes only where it shows that it is not.
    """

    name: str
    limit: float
    dataset: str = ""
    slice: str = ""
    decision: Decision = "point"


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model as the user wrote it (``name``), its spec with absolute paths, and its own options.

    ``samples`` is how often it is asked, None where it is asked as often as the other.
    """

    name: str
    spec: str
    options: Mapping[str, Any] = field(default_factory=dict)
    samples: int | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a run was asked to do; ``sources`` says where each value came from.

    Paths are absolute. ``cache_dir`` is None where no response is to be kept after the run.
    ``inconclusive`` is what becomes of a gate that the sample cannot decide; None leaves it to the
    gate's decision. ``slice_pairs`` makes a slice of each pair of tags, too. ``golden_logs`` says of those
    golden datasets that are another tool's logs what kind they are, such as ``lm-eval``.
    """

    root: Path
    old: ModelSpec
    new: ModelSpec
    golden: tuple[Path, ...] = ()
    golden_logs: Mapping[Path, str] = field(default_factory=dict)
    adapter: AdapterMode = "off"
    train: Path | None = None
    adapter_output: Path | None = None
    allow_overlap: bool = False
    training: Mapping[str, Any] = field(default_factory=dict)
    launcher: str | None = None
    json: Path | None = None
    report: Path | None = None
    markdown: Path | None = None
    history: Path | None = None
    accepted: Path | None = None
    accept: bool = False
    strict_accepted: bool = False
    record: Path | None = None
    limit: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_tokens: int | None = None
    cache_dir: Path | None = None
    samples: int = 1
    decision: Decision = "point"
    inconclusive: Inconclusive | None = None
    slice_pairs: bool = False
    tolerance: float = 0.0
    bertscore_model: str = "roberta-large"
    metrics: tuple[str, ...] = ()
    thresholds: tuple[Threshold, ...] = ()
    datasets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    def samples_of(self, model: ModelSpec) -> int:
        """Return how often a model is asked each case."""
        return model.samples or self.samples

    @property
    def own_metrics(self) -> frozenset[str]:
        """Return the ``module:callable`` that the project itself names, and records may use."""
        of_datasets = (str(fields.get("metric", "")) for fields in self.datasets.values())
        return frozenset(self.metrics) | {metric for metric in of_datasets if ":" in metric}

    def dataset_name(self, path: Path) -> str:
        """Return a dataset's path as people write it, from the root."""
        try:
            return Path(relpath(path, self.root)).as_posix()
        except ValueError:
            # On Windows there is no way from one drive to another.
            return path.as_posix()
