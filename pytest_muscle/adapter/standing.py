"""How the old and the new model stand on each record: from which of them the student may learn."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from pytest_muscle.adapter.config import Guard
    from pytest_muscle.golden import GoldenCase
    from pytest_muscle.grading import Grade

LARGE_GAP = 0.15
"""An old model that is this much less accurate, and clearly so, is too weak to align to."""

_CLEARLY = 1.645  # standard errors: one-sided, 5%


@dataclass(frozen=True, slots=True)
class Standing:
    """For each record, by number: what a guard needs to know. All are [records], bool.

    ``right`` says that the old model answers right (generation: no worse than the new one), ``flips`` that
    it does and the new one does not (generation: better than the new one), ``groups`` that in none of the
    record's groups the old model is clearly the worse one.
    """

    right: Tensor
    flips: Tensor
    groups: Tensor

    def trusted(self, guard: Guard, cases: Tensor) -> Tensor | None:
        """Where the old model may teach, for texts of the given records; None is everywhere."""
        if guard == "none":
            return None
        trusted: Tensor = getattr(self, guard)[cases]
        return trusted


def standing(
    cases: Sequence[GoldenCase], old: Sequence[Grade], new: Sequence[Grade], device: torch.device
) -> Standing:
    """Both models' standing on graded records."""
    scores = [(before.score or 0.0, after.score or 0.0) for before, after in zip(old, new, strict=True)]
    written = [case.task == "generation" for case in cases]
    unfair = {
        name for name, (gap, error) in slice_gaps(cases, old, new).items() if gap + _CLEARLY * error < 0
    }
    columns = (
        [a >= b if free else a == 1 for (a, b), free in zip(scores, written, strict=True)],
        [a > b if free else a == 1 > b for (a, b), free in zip(scores, written, strict=True)],
        [unfair.isdisjoint(groups_of(case)) for case in cases],
    )
    return Standing(*(torch.tensor(column, dtype=torch.bool, device=device) for column in columns))


def slice_gaps(
    cases: Sequence[GoldenCase], old: Sequence[Grade], new: Sequence[Grade]
) -> Mapping[str, tuple[float, float]]:
    """The old model's mean score less the new one's, and its error: by group, and for ``""`` as a whole."""
    gaps: dict[str, list[float]] = defaultdict(list)
    for case, before, after in zip(cases, old, new, strict=True):
        for name in ("", *groups_of(case)):
            gaps[name].append((before.score or 0.0) - (after.score or 0.0))
    return {name: _mean_and_error(values) for name, values in gaps.items()}


def groups_of(case: GoldenCase) -> tuple[str, ...]:
    """The groups of a record: its ``group``, else its tags as slices."""
    if case.group:
        return (f"group={case.group}",)
    return tuple(f"{key}={value}" for key, value in case.tags.items())


def too_weak(cases: Sequence[GoldenCase], old: Sequence[Grade], new: Sequence[Grade]) -> str | None:
    """A sentence where the old model is too weak to align to, with the slices on which it is not."""
    gaps = dict(slice_gaps(cases, old, new))
    gap, error = gaps.pop("")
    if gap > -LARGE_GAP or gap + _CLEARLY * error >= 0:
        return None
    held = sorted(name for name, (gap, error) in gaps.items() if gap + _CLEARLY * error >= 0)
    where = f"on {', '.join(held)} it is not clearly worse" if held else "it is so on every slice"
    return (
        f"the old model is {-100 * gap:.1f} points less accurate than the new one, too weak to align to as a "
        f"whole; {where if gaps else 'the records have no tags to look closer'}"
    )


def _mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    n, mean = len(values), sum(values) / len(values)
    return mean, (sum((value - mean) ** 2 for value in values) / n / n) ** 0.5
