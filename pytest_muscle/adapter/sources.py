"""What the teachers are read from: disk, where their work is done once, or else a model in memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pytest_muscle.adapter.caches import Filling, NoRoomError
from pytest_muscle.adapter.config import CompatibilityConfig
from pytest_muscle.adapter.masks import CONSTANT
from pytest_muscle.adapter.progress import Note, Stage
from pytest_muscle.adapter.sides import vocabulary_size
from pytest_muscle.adapter.teachers import (
    CachedTeacher,
    LiveTeacher,
    MomentCache,
    StateCache,
    StudentTeacher,
    Teacher,
)
from pytest_muscle.adapter.trainer import texts_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from pytest_muscle.adapter.config import Recipe, TaskConfig
    from pytest_muscle.adapter.data import Collator, Example
    from pytest_muscle.adapter.processes import Processes
    from pytest_muscle.adapter.student import Student
    from pytest_muscle.adapter.trainer import Lesson
    from pytest_muscle.models.local.output import OutputLayer

# To make a teacher's moments takes two products with an output layer a token, to have them saves one an epoch
# (one for both teachers where a hard mask divides the tokens between them).
_EPOCHS_FOR_MOMENTS = 3
# To make those of a mixture takes three, to have them saves two an epoch.
_EPOCHS_FOR_MIXTURE = 2
_CACHE_TOKENS = {"cpu": 1024}
_CACHE_TOKENS_ELSEWHERE = 16384


@dataclass(frozen=True, slots=True)
class Source:
    """A teacher, and how many vocabulary entries it knows."""

    teacher: Teacher
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Told:
    """The training texts in a model's own tokens, and how they become batches."""

    examples: Sequence[Example]
    collator: Collator


class Sources:
    """Finds, makes and opens what the teachers of one training are read from.

    ``told`` says for each model, ``old`` and ``student``, what it reads. ``say`` is called with stages and
    notes.
    """

    def __init__(
        self,
        folder: Path,
        config: CompatibilityConfig | TaskConfig,
        recipes: Sequence[Recipe],
        told: Mapping[str, Told],
        processes: Processes,
        batch_tokens: int | None,
        say: Callable[[Stage | Note], None],
    ) -> None:
        self._folder = folder
        self._epochs = config.epochs
        self._recipes = recipes
        self._told = told
        self._processes = processes
        self._batch_tokens = batch_tokens or _CACHE_TOKENS.get(processes.device.type, _CACHE_TOKENS_ELSEWHERE)
        self._say = say
        self._cached = isinstance(config, CompatibilityConfig) and config.teacher == "cached"

    def found_old(self) -> Source | None:
        """The old model's states, where an earlier run has written them."""
        cache = self._states("old")
        return self._open(cache, "old") if self._cached and cache.complete else None

    def old(self, model: Any, output: OutputLayer | None, student: Student | None) -> Source:
        """The old model, run over the texts once, or kept in memory; the ``student`` may act as it."""
        cache = self._states("old")
        if self._cached and output is None:
            self._say(
                Note("the old model's logits are no plain function of hidden states: it stays in memory")
            )
        elif self._cached and self._written(
            "the old model stays in memory", cache.write, "old", model, output
        ):
            return self._open(cache, "old")
        teacher = StudentTeacher(student, "old") if student else LiveTeacher(model, output)
        return Source(teacher, vocabulary_size(model))

    def new(self, student: Student) -> Teacher:
        """The model that the student began as, run over the texts once, or at every step."""
        cache = self._states("student")
        if self._cached and student.output and not cache.complete:
            self._say(Stage("new model: probabilities"))
            instead = "the new model is run at every step"
            self._written(instead, cache.write, "student", _began_as(student), student.output)
        if self._cached and cache.complete:
            return self._open(cache, "student").teacher
        student.keep_start()
        return StudentTeacher(student, "new")

    def mixture(self, student: Student, lesson: Lesson) -> Lesson | None:
        """The lesson with both teachers as one, where their weights are known before.

        None where they are not, where that is not exact or no gain, and where the disk has no room.
        """
        (recipe, *others), output = self._recipes, student.output
        constant = recipe.mask in CONSTANT and recipe.uses_old and recipe.uses_new
        if others or not constant or not isinstance(lesson.old, CachedTeacher):
            return None
        if output is None or not self._moments_suit(output, _EPOCHS_FOR_MIXTURE):
            return None
        cache = MomentCache(self._folder / "mixed_moments")

        def old_weight(batch: Mapping[str, Tensor], counted: Tensor) -> Tensor:
            weight = torch.full((int(counted.sum()),), CONSTANT[recipe.mask], device=counted.device)
            trusted = lesson.trusted(batch, texts_of(counted))
            return weight if trusted is None else weight * trusted

        if not cache.complete:
            self._say(Stage("both models: what the student's output layer sees of them"))
            teachers = lesson.old, LiveTeacher(_began_as(student), output)
            seen = output, lesson.vocabulary, recipe.temperature
            instead = "the models are read one by one"
            if not self._written(instead, cache.write_mixture, "student", teachers, old_weight, *seen):
                return None
        return replace(lesson, both=cache.open(lesson.examples, lesson.collator.answer_only))

    def condensed(self, student: Student, lesson: Lesson) -> Lesson:
        """The lesson with moments for hidden states, where they are exact and the training is long enough."""
        temperatures, output = {recipe.temperature for recipe in self._recipes}, student.output
        if output is None or len(temperatures) > 1 or not self._moments_suit(output, _EPOCHS_FOR_MOMENTS):
            return lesson
        teachers: dict[str, Any] = {"old": lesson.old, "new": lesson.new}
        for name, teacher in teachers.items():
            if not isinstance(teacher, CachedTeacher):
                continue
            cache = MomentCache(self._folder / f"{name}_moments")
            if not cache.complete:
                self._say(Stage(f"{name} model: what the student's output layer sees of it"))
                seen = output, lesson.vocabulary, *temperatures
                self._written("its states are read", cache.write, "student", teacher, *seen)
            if cache.complete:
                teachers[name] = cache.open(lesson.examples, lesson.collator.answer_only)
        return replace(lesson, **teachers)

    def _moments_suit(self, output: OutputLayer, epochs: int) -> bool:
        layer = output.layer
        exact = isinstance(layer, nn.Linear) and layer.weight.dtype in (torch.float32, torch.float64)
        return exact and self._epochs >= epochs and not self._processes.share_weights

    def _written(self, instead: str, write: Callable[..., None], side: str, *what: Any) -> bool:
        """Whether there was room to write a cache; where not, what is done ``instead`` is said."""
        told = self._told[side]
        filling = Filling(told.examples, told.collator, self._batch_tokens, self._processes)
        try:
            write(filling, *what)
        except NoRoomError as shortage:
            self._say(Note(f"what the models say of the tokens needs {shortage}: {instead}, which is slower"))
            return False
        return True

    def _states(self, side: str) -> StateCache:
        return StateCache(self._folder / f"{'old' if side == 'old' else 'new'}_states")

    def _open(self, cache: StateCache, side: str) -> Source:
        told = self._told[side]
        teacher = cache.open(told.examples, told.collator.answer_only, self._processes.device)
        return Source(teacher, len(teacher.weight))


def _began_as(student: Student) -> Any:
    """The model that the student is before its training."""
    model: Any = student.model.get_base_model()
    return model.eval()
