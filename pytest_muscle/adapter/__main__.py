"""The command line: ``python -m pytest_muscle.adapter``, also under ``accelerate launch -m``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from pytest_muscle.adapter.config import PRESETS, CompatibilityConfig, Recipe, TaskConfig, TrainingConfig
from pytest_muscle.adapter.progress import Event, Note, Stage, Step, Validated
from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import read_golden
from pytest_muscle.models import ModelOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_muscle.adapter.report import AdapterResult

_SECONDS = 5.0
_LAUNCHING = """\
several processes on one machine, with GPUs or without:
  accelerate launch --multi_gpu --num_processes 2 -m pytest_muscle.adapter compatibility ...
(with --cpu instead of --multi_gpu accelerate starts one process only, unless MPI starts the others)"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train an adapter; 0 if one was written, 1 if none was worth keeping, 2 for an error."""
    options = vars(_parser().parse_args(arguments))
    try:
        result = _train(options)
    except MuscleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        _leave_processes()
    if _is_first():
        print(_summary(result))
    return 0 if result.path else 1


def _train(options: dict[str, Any]) -> AdapterResult:
    from pytest_muscle.adapter.training import train_compatibility_adapter, train_task_adapter

    shared = {
        "golden": [case for path in options["golden"] or () for case in read_golden(path)],
        "allow_overlap": options["allow_overlap"],
        "options": ModelOptions(
            device=options["device"], dtype=options["dtype"], batch_tokens=options["batch_tokens"]
        ),
        "progress": _Printer(),
    }
    given = {name: value for name, value in options.items() if value is not None}
    train, out = options["train"], options["out"]
    if options["command"] == "task":
        settings = TaskConfig(**{**_only(given, TaskConfig), "targets": tuple(given.get("targets", ()))})
        return train_task_adapter(options["base"], train, out, settings, **shared)
    config = _compatibility(given)
    return train_compatibility_adapter(options["old"], options["new"], train, out, config, **shared)


def _compatibility(given: dict[str, Any]) -> CompatibilityConfig:
    table = {"preset": given["preset"], **_only(given, Recipe), **_only(given, CompatibilityConfig)}
    return CompatibilityConfig.from_table(table)


def _only(given: dict[str, Any], kind: type[Recipe | TrainingConfig]) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in given.items() if name in names}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pytest_muscle.adapter",
        description="Train a LoRA adapter from golden-format records.",
        epilog=_LAUNCHING,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    compatibility = commands.add_parser(
        "compatibility", help="an adapter for the new model that keeps what the old one answers right"
    )
    compatibility.add_argument("--old", required=True, metavar="SPEC", help="the old model")
    compatibility.add_argument("--new", required=True, metavar="SPEC", help="the new model")
    compatibility.add_argument("--preset", default="default", choices=PRESETS, help="settings to start from")
    _add_shared(compatibility)
    _add_settings(compatibility, Recipe)
    _add_settings(compatibility, CompatibilityConfig)
    task = commands.add_parser("task", help="a task adapter for a base model, by cross-entropy")
    task.add_argument("--base", required=True, metavar="SPEC", help="the base model")
    _add_shared(task)
    _add_settings(task, TaskConfig)
    return parser


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train", required=True, type=Path, metavar="FILE", help="training records")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="the adapter's directory")
    parser.add_argument(
        "--golden", action="append", type=Path, metavar="FILE", help="golden dataset that must not overlap"
    )
    parser.add_argument("--allow-overlap", action="store_true", help="train on golden cases on purpose")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch-tokens", type=int, metavar="N", help="tokens in a batch outside training")


def _add_settings(parser: argparse.ArgumentParser, kind: type[Any]) -> None:
    """An option for each setting, with its type and, where there is no preset, its default."""
    group = parser.add_argument_group("recipe" if kind is Recipe else "settings")
    for name, hint in get_type_hints(kind).items():
        if name in ("recipe", "candidates"):
            continue
        flag = f"--{name.replace('_', '-')}"
        if get_origin(hint) is Literal:
            group.add_argument(flag, choices=get_args(hint))
        elif get_origin(hint) is tuple:
            group.add_argument(flag, nargs="+", metavar="NAME")
        else:
            number = float if hint is float else int
            group.add_argument(flag, type=number, metavar="N" if number is int else "X")


class _Printer:
    """One line for each thing that happens, and for steps one every few seconds."""

    def __init__(self) -> None:
        self._last = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Step):
            now = time.monotonic()
            if now - self._last < _SECONDS and event.step < event.steps:
                return
            self._last = now
            print(
                f"  step {event.step}/{event.steps}  loss {event.loss:.4f}  "
                f"from old model {event.from_old:.0%}  {event.seconds_left:.0f} s left",
                flush=True,
            )
        else:
            print(_line(event), flush=True)


def _line(event: Stage | Validated | Note) -> str:
    if isinstance(event, Stage):
        return event.text
    if isinstance(event, Note):
        return f"note: {event.text}"
    validation = event.validation
    figures = {"accuracy": validation.accuracy, "negative flips": validation.nfr, "loss": validation.loss}
    shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items() if value is not None)
    epoch = f"epoch {validation.epoch}" if validation.epoch else event.recipe
    return f"  {epoch}: {shown}"


def _summary(result: AdapterResult) -> str:
    if result.path is None:
        return "no epoch lowered the negative flips at the new model's accuracy: no adapter was written"
    kept = f", epoch {result.kept.epoch}" if result.kept else ""
    return f"{result.path}: {result.recipe}{kept}, {result.seconds:.0f} s"


def _is_first() -> bool:
    return os.environ.get("RANK", "0") == "0"


def _leave_processes() -> None:
    torch = sys.modules.get("torch")
    if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
