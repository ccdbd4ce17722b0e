"""What happens during training, as events for a display."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_muscle.adapter.selection import Validation


@dataclass(frozen=True, slots=True)
class Stage:
    """A new part of the work begins; ``text`` says which, for people."""

    text: str


@dataclass(frozen=True, slots=True)
class Step:
    """One optimiser step is done.

    ``loss`` is the mean over its tokens, ``from_old`` the mean weight of the old teacher (the share of
    masked tokens); ``seconds_left`` is for this training, without validation.
    """

    step: int
    steps: int
    loss: float
    from_old: float
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Validated:
    """The validation records have been answered after an epoch, or by the new model before training."""

    recipe: str
    validation: Validation


@dataclass(frozen=True, slots=True)
class Note:
    """Something that the user should know."""

    text: str


Event = Stage | Step | Validated | Note
Progress = Callable[[Event], None]


def silent(event: Event) -> None:
    """Show nothing."""
