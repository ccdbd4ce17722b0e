"""What a training leaves behind: the result, ``adapter_report.json`` and the model card."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pytest_muscle.adapter.folder import REPORT
from pytest_muscle.adapter.selection import Validation

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SCHEMA = "pytest-muscle-adapter/1"


@dataclass(frozen=True, slots=True)
class Pilot:
    """A short run of one recipe, and how it did."""

    recipe: str
    validation: Validation


@dataclass(frozen=True, slots=True)
class AdapterResult:
    """A finished training.

    ``path`` is the adapter's directory, or None where no epoch was worth keeping. ``old`` and ``new`` are
    the models before it on the validation records (None without such records; a task adapter has no
    ``old``); ``kept`` is one of ``epochs``. ``seconds`` and ``peak_memory`` (bytes) are of the process
    that finished the training. ``report`` is the content of ``adapter_report.json``.
    """

    path: Path | None
    recipe: str
    seconds: float
    peak_memory: int
    old: Validation | None
    new: Validation | None
    epochs: tuple[Validation, ...]
    kept: Validation | None
    pilots: tuple[Pilot, ...]
    notes: tuple[str, ...]
    report: Mapping[str, Any]


def result_from_report(report: Mapping[str, Any], output: Path) -> AdapterResult:
    """The result that a report tells of."""

    def validation(fields: Mapping[str, Any] | None) -> Validation | None:
        return None if fields is None else Validation(**fields)

    kept = validation(report["kept"])
    return AdapterResult(
        path=None if kept is None else output,
        recipe=report["recipe"],
        seconds=report["seconds"],
        peak_memory=report["peak_memory"],
        old=validation(report["validation"]["old"]),
        new=validation(report["validation"]["new"]),
        epochs=tuple(Validation(**fields) for fields in report["epochs"]),
        kept=kept,
        pilots=tuple(Pilot(p["recipe"], Validation(**p["validation"])) for p in report["pilots"]),
        notes=tuple(report["notes"]),
        report=report,
    )


def versions() -> dict[str, str]:
    """The versions of everything that can change an adapter."""
    return {name: version(name) for name in ("pytest-muscle", "torch", "transformers", "peft", "accelerate")}


def peak_memory() -> int:
    """The most bytes that this process has held, on the accelerator if there is one."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def record_judgement(adapter: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Add what the golden datasets say to an adapter's report and model card.

    ``before`` and ``after`` are metrics of the new model without and with the adapter, by name.
    """
    report = json.loads((adapter / REPORT).read_text(encoding="utf-8"))
    report["golden"] = {"before": dict(before), "after": dict(after)}
    write_report(adapter, report)


def write_report(adapter: Path, report: Mapping[str, Any]) -> None:
    """Write ``adapter_report.json`` and the model card made from it, each whole or not at all."""
    texts = {REPORT: json.dumps(report, indent=1, allow_nan=False) + "\n", "README.md": model_card(report)}
    for name, text in texts.items():
        unfinished = adapter / f"{name}.part"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(adapter / name)


def model_card(report: Mapping[str, Any]) -> str:
    """The README.md of an adapter."""
    compatible = report["kind"] == "compatibility"
    return "\n".join(
        [
            "---",
            f"base_model: {json.dumps(report['base'])}",
            "library_name: peft",
            "pipeline_tag: text-generation",
            "tags:",
            "- lora",
            "- pytest-muscle",
            f"- {report['kind']}-adapter",
            "---",
            "",
            *(_compatibility_text(report) if compatible else _task_text(report)),
            "",
            "## Models",
            "",
            "| | spec | fingerprint |",
            "| --- | --- | --- |",
            *(f"| {name} | `{m['spec']}` | `{m['fingerprint']}` |" for name, m in report["models"].items()),
            "",
            "## Training",
            "",
            f"- recipe: {report['recipe']}",
            f"- records: {report['train']['records']} (sha256 `{report['train']['sha256']}`), of them "
            f"{report['validation_records']} for validation",
            f"- rank {report['rank']}, {len(report['steps'])} steps, {report['seconds']:.0f} s",
            *(f"- {note}" for note in report["notes"]),
            "",
            "## On the validation records",
            "",
            *_validation_table(report),
            *_golden_table(report),
            "",
            "The figures behind these, step by step, are in `adapter_report.json`.",
            "",
        ]
    )


def _compatibility_text(report: Mapping[str, Any]) -> list[str]:
    old, new = (f"`{report['models'][name]['spec']}`" for name in ("old", "new"))
    return [
        "# Compatibility adapter",
        "",
        f"A LoRA adapter for {new}, trained so that it keeps more of what {old} answered right "
        "(after MUSCLE, Echterhoff et al. 2024). It replaces the new model's task adapter and costs nothing "
        "at inference.",
        "",
        "**Use it for** the task of its training records, with exactly the base model named above, when the "
        "update without it breaks more answers than your budget allows.",
        "",
        "**Limits.** It was chosen on the records below; on other tasks nothing is known. What it "
        "learns from the old model includes that model's mistakes and biases. Judge it on golden data of "
        "your own before you ship it.",
    ]


def _task_text(report: Mapping[str, Any]) -> list[str]:
    return [
        "# Task adapter",
        "",
        f"A LoRA adapter for `{report['models']['base']['spec']}`, trained on the task of its "
        "records by plain cross-entropy. On other tasks nothing is known.",
    ]


def _validation_table(report: Mapping[str, Any]) -> list[str]:
    rows = [("old model", report["validation"]["old"]), ("before", report["validation"]["new"])]
    kept = report["kept"]
    rows.append((f"with adapter (epoch {kept['epoch']})" if kept else "with adapter", kept))
    table = ["| | accuracy | negative flips |", "| --- | --- | --- |"]
    return table + [
        f"| {name} | {row['accuracy']:.4f} | {'' if row['nfr'] is None else format(row['nfr'], '.4f')} |"
        for name, row in rows
        if row and row["accuracy"] is not None
    ]


def _golden_table(report: Mapping[str, Any]) -> list[str]:
    golden = report.get("golden")
    if not golden:
        return []
    before, after = golden["before"], golden["after"]
    return [
        "",
        "## On the golden datasets",
        "",
        "| | new model | with adapter |",
        "| --- | --- | --- |",
        *(f"| {name} | {_figure(before[name])} | {_figure(after.get(name))} |" for name in before),
    ]


def _figure(value: Any) -> str:
    return format(value, ".4f") if isinstance(value, float) else "" if value is None else str(value)
