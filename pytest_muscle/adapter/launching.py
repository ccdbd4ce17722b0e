"""A training in processes that a launcher starts, such as ``accelerate launch``."""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from pytest_muscle.adapter.config import Recipe
from pytest_muscle.adapter.progress import Progress, Stage
from pytest_muscle.errors import MuscleError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pytest_muscle.adapter.config import CompatibilityConfig
    from pytest_muscle.models import ModelOptions


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A training by the command line of :mod:`pytest_muscle.adapter` under a launcher.

    ``models`` are the specs by side. Each line that the training prints is an event for ``progress``.
    """

    launcher: str
    models: Mapping[str, str]
    train: Path
    output: Path
    config: CompatibilityConfig
    options: ModelOptions
    progress: Progress

    def run(self) -> str:
        """Train, and return what went to the standard error.

        Whether there is an adapter, the run's folder tells: launchers take the exit status for "none was
        worth keeping" for a crash. Raises MuscleError where the launcher cannot be started.
        """
        # What tells a worker of pytest-xdist which device is its own is not meant for these processes.
        environment = {name: each for name, each in os.environ.items() if not name.startswith("PYTEST_XDIST")}
        with TemporaryFile() as errors:
            try:
                process = subprocess.Popen(
                    self.command(),
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    errors="replace",
                    env=environment,
                )
            except OSError as error:
                raise MuscleError(
                    f"launcher {self.launcher!r} cannot be started ({error.strerror}); it begins a command, "
                    "as 'accelerate launch --multi_gpu --num_processes 8' does"
                ) from None
            with process:
                for line in process.stdout or ():
                    self.progress(Stage(line.strip()))
            errors.seek(0)
            return errors.read().decode("utf-8", "replace")

    def command(self) -> list[str]:
        """The whole command; overlaps with golden cases have been looked for before."""
        command = [*shlex.split(self.launcher), "-m", "pytest_muscle.adapter", "compatibility"]
        for name, spec in self.models.items():
            command += [f"--{name}", spec]
        command += ["--train", str(self.train), "--out", str(self.output), "--allow-overlap"]
        command += ["--device", self.options.device, "--dtype", self.options.dtype]
        if self.options.batch_tokens:
            command += ["--batch-tokens", str(self.options.batch_tokens)]
        return command + list(_settings(self.config))

    def failure(self, errors: str) -> MuscleError:
        """Say why there is no result: by the training's own error, else by the last lines."""
        lines = errors.strip().splitlines()
        own = next((line for line in lines if "error: " in line), None)
        why = own or " / ".join(lines[-5:]) or "it said nothing"
        return MuscleError(f"the training under {self.launcher!r} left no adapter: {why}")


def _settings(config: CompatibilityConfig) -> Iterator[str]:
    """All settings as options; ``recipe = "auto"`` is that of the preset on which they build."""
    yield from ("--preset", "default")
    groups: list[Any] = [config]
    if isinstance(config.recipe, Recipe):
        groups.append(config.recipe)
    for group in groups:
        for field in fields(group):
            value = getattr(group, field.name)
            if field.name in ("recipe", "candidates") or value in (None, ()):
                continue
            yield f"--{field.name.replace('_', '-')}"
            yield from map(str, value if isinstance(value, tuple) else (value,))
