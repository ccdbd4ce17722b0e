"""How far the models have come: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_muscle.adapter.progress import Event, Step
    from pytest_muscle.adapter.selection import Validation

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def show_progress(title: str, total: int, capture: Any, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show the progress of ``total`` cases with rate and time left.

    ``capture`` is pytest's capture manager, which is held open meanwhile; ``quiet`` shows nothing.
    """
    if quiet:
        yield lambda count: None
        return
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        if sys.stderr.isatty():
            with _bar(title, total) as advance:
                yield advance
        else:
            with _lines(title, total) as advance:
                yield advance


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    class Rate(TextColumn):
        def render(self, task: Any) -> Any:
            self.text_format = f"{task.finished_speed or task.speed or 0:.1f}/s"
            return super().render(task)

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(""),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    print(file=sys.stderr)
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)


@contextmanager
def _lines(title: str, total: int) -> Iterator[Callable[[int], None]]:
    start = shown = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, shown
        done += count
        now = time.monotonic()
        if now - shown >= _SECONDS_BETWEEN_LINES and done < total:
            shown = now
            rate = done / (now - start)
            left = (total - done) / rate
            print(
                f"{title}: {done}/{total} cases, {rate:.1f}/s, {left:.0f} s left", file=sys.stderr, flush=True
            )

    print(f"\n{title}: {total} cases", file=sys.stderr, flush=True)
    yield advance
    seconds = time.monotonic() - start
    print(f"{title}: {done} cases in {seconds:.1f} s", file=sys.stderr, flush=True)


@contextmanager
def show_training(capture: Any, quiet: bool) -> Iterator[Callable[[Event], None]]:
    """Show a training's stages, loss, share of masked tokens, validation and time left."""
    if quiet:
        yield lambda event: None
        return
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        print("\ncompatibility adapter", file=sys.stderr, flush=True)
        yield _TrainingLines(sys.stderr.isatty()).show


class _TrainingLines:
    """Prints each event on a line; in a terminal the step's line is written over."""

    def __init__(self, in_place: bool) -> None:
        self._in_place = in_place
        self._shown = 0.0

    def show(self, event: Event) -> None:
        from pytest_muscle.adapter.progress import Note, Stage, Step, Validated

        if isinstance(event, Step):
            self._step(event)
        elif isinstance(event, Validated):
            self._line(f"{event.recipe}: {_validation(event.validation)}")
        elif isinstance(event, Stage | Note):
            self._line(event.text)

    def _step(self, event: Step) -> None:
        last = event.step == event.steps
        interval = 0.2 if self._in_place else _SECONDS_BETWEEN_LINES
        if time.monotonic() - self._shown < interval and not last:
            return
        self._shown = time.monotonic()
        text = (
            f"  step {event.step}/{event.steps}  loss {event.loss:.4f}  "
            f"from old {100 * event.from_old:.0f}%  {event.seconds_left:.0f} s left"
        )
        if self._in_place:
            print(f"\r\x1b[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def _line(self, text: str) -> None:
        start = "\r\x1b[K" if self._in_place else ""
        print(f"{start}  {text}", file=sys.stderr, flush=True)


def _validation(validation: Validation) -> str:
    figures = [f"epoch {validation.epoch}" if validation.epoch else "before training"]
    if validation.accuracy is not None:
        figures.append(f"validation accuracy {validation.accuracy:.4f}")
    if validation.nfr is not None:
        figures.append(f"NFR {validation.nfr:.4f}")
    return ", ".join(figures)
