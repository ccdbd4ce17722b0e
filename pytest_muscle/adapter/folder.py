"""The folder of a run: everything that a killed run leaves for the next one, and the way to the output."""

from __future__ import annotations

import errno
import json
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_muscle.errors import MuscleError

if TYPE_CHECKING:
    from collections.abc import Iterator

REPORT = "adapter_report.json"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where a run works until its output is whole; ``digest`` stands for its inputs and settings."""

    output: Path
    digest: str

    @property
    def path(self) -> Path:
        """The hidden folder beside the output."""
        return self.output.parent / f".{self.output.name}.partial"

    def finished(self) -> dict[str, Any] | None:
        """The report of this very run if it has been finished before.

        Raises ``MuscleError`` if the output is something else, or the work of another run is in the way.
        """
        if self.output.exists():
            report = read_json(self.output / REPORT)
            if report and report.get("digest") == self.digest:
                return dict(report)
            raise MuscleError(
                f"adapter output {self.output} exists and is not of this run (same models, records and "
                "settings); remove it or choose another output"
            )
        run = read_json(self.path / "run.json")
        if run and run.get("digest") != self.digest:
            raise MuscleError(
                f"{self.path} is an unfinished run with other models, records or settings; start that one "
                "again to finish it, remove the folder, or choose another output"
            )
        report = self.read(REPORT)
        return None if report is None else dict(report)

    def begin(self) -> None:
        """Make the folder, or go on in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.write("run.json", {"digest": self.digest})

    def read(self, name: str) -> Any:
        """What ``write`` wrote, or None."""
        return read_json(self.path / name)

    def write(self, name: str, content: Any) -> None:
        """Write JSON; a reader sees the old or the new content, whenever the process dies."""
        unfinished = self.path / f"{name}.part"
        unfinished.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
        unfinished.replace(self.path / name)

    def publish(self, result: Path) -> None:
        """Make ``result``, a folder in this one, the output, and remove the rest."""
        result.rename(self.output)
        shutil.rmtree(self.path)

    def keep_only(self, name: str) -> None:
        """Remove everything but one file and what identifies the run."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (name, "run.json"):
                path.unlink()


def read_json(path: Path) -> Any:
    """The content of a JSON file, None if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@contextmanager
def disk_errors_explained(folder: Path) -> Iterator[None]:
    """Say what to do when the disk is full, whatever a library makes of it."""
    try:
        yield
    except MuscleError:
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        # Writers in C++ and Rust wrap the system's error; torch's says no more than that it could not write.
        told = any(sign in str(error) for sign in ("No space left", "file write failed", "os error 28"))
        if not full and not told:
            raise
        raise MuscleError(
            f"the disk is full: {folder} could not be written to; free some space and start the same run "
            "again, it goes on from its last checkpoint"
        ) from error
