"""Several requests under way at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def as_completed(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[tuple[Item, Result]]:
    """Yield ``(item, function(item))`` as they come, with at most ``workers`` calls under way.

    Once a call raises, no other is begun; those under way are waited for and yielded, and then it is
    raised. Nothing waits for the calls when the iterator is closed early.
    """
    waiting = deque(items)
    done: SimpleQueue[tuple[Item, Result] | BaseException | None] = SimpleQueue()

    def work() -> None:
        try:
            while waiting:
                try:
                    item = waiting.popleft()
                except IndexError:
                    break
                done.put((item, function(item)))
        except BaseException as error:
            done.put(error)
        finally:
            done.put(None)

    # Daemons, for an interrupted run must not wait for a slow server.
    running = [Thread(target=work, daemon=True) for _ in range(min(workers, len(items)))]
    for thread in running:
        thread.start()
    raised: BaseException | None = None
    alive = len(running)
    try:
        while alive:
            finished = done.get()
            if finished is None:
                alive -= 1
            elif isinstance(finished, BaseException):
                raised = raised or finished
                waiting.clear()
            else:
                yield finished
    finally:
        waiting.clear()
    if raised is not None:
        raise raised
