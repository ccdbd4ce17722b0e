"""Which epoch is kept, and which recipe: by what the validation records show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_muscle.adapter.config import Selection, TaskSelection


@dataclass(frozen=True, slots=True)
class Validation:
    """A model on the validation records.

    ``nfr`` is against the old model and None where there is none; ``loss`` is the mean over the counted
    tokens and None for a model that is not in training. Without validation records all are None.
    """

    accuracy: float | None = None
    standard_error: float = 0.0
    nfr: float | None = None
    loss: float | None = None
    epoch: int = 0


def select_epoch(
    epochs: Sequence[Validation], new: Validation | None, rule: Selection | TaskSelection
) -> Validation | None:
    """The epoch to keep, or None if none is worth keeping; the later of equals.

    ``nfr``: the fewest negative flips, not more than the ``new`` model's, among the epochs whose accuracy is
    not below the new model's less its standard error; of equals that with the lowest loss.
    ``accuracy``: the highest accuracy, then the lowest loss. ``validation_loss``: the lowest loss.
    """
    if rule == "nfr":
        assert new is not None
        epochs = [epoch for epoch in epochs if is_eligible(epoch, new)]
        return min(reversed(epochs), key=lambda epoch: (_nfr(epoch), _loss(epoch)), default=None)
    if rule == "accuracy":
        return min(reversed(epochs), key=lambda epoch: (-_accuracy(epoch), _loss(epoch)), default=None)
    return min(reversed(epochs), key=_loss, default=None)


def is_eligible(epoch: Validation, new: Validation) -> bool:
    """Whether an epoch breaks no more than the new model and is as good, within the standard error."""
    return _accuracy(epoch) >= _accuracy(new) - new.standard_error and _nfr(epoch) <= _nfr(new)


def select_recipe(pilots: Sequence[Validation], new: Validation) -> int:
    """The number of the pilot to train to the end: of the eligible ones (else of all) that with the fewest
    negative flips and lost accuracy together, then the highest accuracy.

    A short run shows only the beginning of a fall in accuracy, so all of it counts. Losses of different
    recipes cannot be compared.
    """

    def price(number: int) -> tuple[float, float]:
        pilot = pilots[number]
        return _nfr(pilot) + max(0.0, _accuracy(new) - _accuracy(pilot)), -_accuracy(pilot)

    eligible = [number for number, pilot in enumerate(pilots) if is_eligible(pilot, new)]
    return min(eligible or range(len(pilots)), key=price)


def _accuracy(validation: Validation) -> float:
    return 0.0 if validation.accuracy is None else validation.accuracy


def _nfr(validation: Validation) -> float:
    return 1.0 if validation.nfr is None else validation.nfr


def _loss(validation: Validation) -> float:
    return float("inf") if validation.loss is None else validation.loss
