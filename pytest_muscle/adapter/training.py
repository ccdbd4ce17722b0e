"""From two models and training records to an adapter on disk."""

from __future__ import annotations

import gc
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_muscle.adapter.config import CompatibilityConfig, TaskConfig
from pytest_muscle.adapter.data import read_cases
from pytest_muscle.adapter.folder import RunFolder, disk_errors_explained
from pytest_muscle.adapter.launching import Elsewhere
from pytest_muscle.adapter.overlap import refuse_overlaps
from pytest_muscle.adapter.processes import Processes, random_state_kept
from pytest_muscle.adapter.progress import Progress, silent
from pytest_muscle.adapter.report import SCHEMA, AdapterResult, result_from_report
from pytest_muscle.adapter.sides import Side
from pytest_muscle.adapter.stages import Training
from pytest_muscle.errors import MuscleError
from pytest_muscle.grading import make_similarity
from pytest_muscle.models import ModelOptions
from pytest_muscle.models.checkpoint import Checkpoint, resolve_checkpoint, resolve_device
from pytest_muscle.models.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_muscle.golden import GoldenCase
    from pytest_muscle.grading import Similarity

_ELSEWHERE = ("recorded:", "lm-eval:", "inspect:", "promptfoo:", "openai:", "python:")


def train_compatibility_adapter(
    old: str,
    new: str,
    train: str | Path | Sequence[GoldenCase | Mapping[str, Any]],
    output: str | Path,
    config: CompatibilityConfig | None = None,
    *,
    golden: Sequence[GoldenCase] = (),
    allow_overlap: bool = False,
    options: ModelOptions | None = None,
    similarity: Similarity | None = None,
    progress: Progress = silent,
    launcher: str | None = None,
) -> AdapterResult:
    """Train a LoRA adapter for the new model that keeps what the old model answers right (MUSCLE).

    ``old`` and ``new`` are specs of local models, ``train`` a file of records in the golden format or the
    records themselves, ``output`` the adapter's directory, which appears when it is whole. A run that was
    killed goes on when it is started again with the same inputs; one that has finished gives its result
    again. ``golden`` are the cases that the adapter will be judged by: training records that repeat them
    are refused unless ``allow_overlap``. ``similarity`` scores generated texts (``make_similarity``);
    without one, records cannot use a metric of their own. ``progress`` is called with each event.
    ``launcher`` begins a command that runs the training in processes of its own, such as
    ``accelerate launch --num_processes 8``; ``train`` is then a file, and similarities are the usual ones.

    Raises ``MuscleError`` for anything wrong with models, records, settings or the output.
    """
    config = config or CompatibilityConfig()
    options = options or ModelOptions()
    models = {"old": _local(old, "old", options), "new": _local(new, "new", options)}
    cases = read_cases(train)
    if not allow_overlap:
        refuse_overlaps(cases, golden)
    output, elsewhere = Path(output), None
    if launcher:
        if not isinstance(train, str | Path):
            raise MuscleError("a launcher needs the training records as a file")
        specs = {"old": old, "new": new}
        elsewhere = Elsewhere(launcher, specs, Path(train), output, config, options, progress)
    return _run(
        "compatibility", models, cases, Path(output), config, options, similarity, progress, elsewhere
    )


def train_task_adapter(
    base: str,
    train: str | Path | Sequence[GoldenCase | Mapping[str, Any]],
    output: str | Path,
    config: TaskConfig | None = None,
    *,
    golden: Sequence[GoldenCase] = (),
    allow_overlap: bool = False,
    options: ModelOptions | None = None,
    similarity: Similarity | None = None,
    progress: Progress = silent,
) -> AdapterResult:
    """Train a LoRA task adapter by cross-entropy: for those who have only base models.

    ``base`` is the spec of a local model; everything else is as for ``train_compatibility_adapter``.
    """
    config = config or TaskConfig()
    options = options or ModelOptions()
    models = {"base": _local(base, "base", options)}
    cases = read_cases(train)
    if not allow_overlap:
        refuse_overlaps(cases, golden)
    return _run("task", models, cases, Path(output), config, options, similarity, progress)


def _local(spec: str, name: str, options: ModelOptions) -> Checkpoint:
    if kind := next((kind for kind in _ELSEWHERE if spec.startswith(kind)), None):
        raise MuscleError(
            f"the {name} model {spec!r} gives answers but no weights: an adapter is trained from the models' "
            f"probabilities of every token; instead of {kind}... name a directory, a .gguf file or org/name"
        )
    return resolve_checkpoint(spec, allow_pickle=options.allow_pickle, revision=options.revision)


def _run(
    kind: str,
    checkpoints: Mapping[str, Checkpoint],
    cases: Sequence[GoldenCase],
    output: Path,
    config: CompatibilityConfig | TaskConfig,
    options: ModelOptions,
    similarity: Similarity | None,
    progress: Progress,
    elsewhere: Elsewhere | None = None,
) -> AdapterResult:
    models = {
        name: {"spec": checkpoint.spec, "fingerprint": checkpoint.fingerprint()}
        for name, checkpoint in checkpoints.items()
    }
    records = _digest([_content(case) for case in cases])
    settings = [asdict(config), options.dtype, options.system_prompt]
    folder = RunFolder(
        output, _digest([kind, [model["fingerprint"] for model in models.values()], records, settings])
    )
    if report := folder.finished():
        return result_from_report(report, output)
    if elsewhere:
        errors = elsewhere.run()
        if report := folder.finished():
            return result_from_report(report, output)
        raise elsewhere.failure(errors)
    with quiet(), random_state_kept(), disk_errors_explained(output.parent):
        processes = Processes(resolve_device(options.device))
        *old, student = checkpoints.values()
        sides = {"student": Side.open(student, options)}
        if old:
            sides["old"] = Side.open(old[0], options)
        if processes.first:
            folder.begin()
        processes.wait()
        scorer = similarity or make_similarity(device=options.device)
        training = Training(sides, cases, config, options, folder, processes, scorer, progress)
        result = training.run(
            {
                "schema": SCHEMA,
                "kind": kind,
                "digest": folder.digest,
                "models": models,
                "train": {"records": len(cases), "sha256": records},
            }
        )
    gc.collect()
    return result


def _content(case: GoldenCase) -> dict[str, Any]:
    return {name: value for name, value in asdict(case).items() if name not in ("dataset", "line")}


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
