"""How far the models have come: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

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
