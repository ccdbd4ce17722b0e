"""How an adapter is trained: its loss, its size, the optimiser, which epoch is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from pytest_muscle.errors import MuscleError, did_you_mean

Mask = Literal[
    "student_wrong",
    "old_correct",
    "old_only",
    "token_likelihood",
    "sequence_likelihood",
    "truth_weighted",
    "average",
    "new_only",
]
Guard = Literal["none", "right", "flips", "groups"]
Tokens = Literal["all", "answer"]
Texts = Literal["answer", "choices"]
Overlong = Literal["truncate", "drop"]
Schedule = Literal["cosine", "linear", "constant"]
TeacherMode = Literal["cached", "live"]
Selection = Literal["nfr", "validation_loss"]
TaskSelection = Literal["accuracy", "validation_loss"]


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise MuscleError(f"adapter setting {name} must be a whole number of at least {least}, not {value!r}")


def _within(name: str, value: Any, low: float, high: float) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high:
        raise MuscleError(f"adapter setting {name} must lie between {low:g} and {high:g}, not {value!r}")


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise MuscleError(f"adapter setting {name} must be one of {', '.join(allowed)}, not {value!r}")


@dataclass(frozen=True, slots=True)
class Recipe:
    """The loss of one token (MUSCLE, Echterhoff et al. 2024, equations 1, 2 and 5).

    ``mask`` says how far a token is learned from the old model, the rest of it being learned from the
    new one; ``temperature`` softens teachers and student alike; ``cross_entropy_weight`` is 1 - lambda
    of equation 5: at 0 only the teachers count, at 1 only the text itself. ``guard`` says which records
    the old model may teach at all: every one (``none``), those that it answers right (``right``), of these
    only the ones that the new model answers wrong (``flips``), or those of groups (tags, or the records'
    ``group``) in which it is not clearly the worse model (``groups``). Elsewhere the new model teaches.
    """

    mask: Mask = "old_only"
    temperature: float = 1.0
    cross_entropy_weight: float = 0.0
    guard: Guard = "none"

    def __post_init__(self) -> None:
        _one_of("mask", self.mask, get_args(Mask))
        _one_of("guard", self.guard, get_args(Guard))
        _within("temperature", self.temperature, 0.01, 100.0)
        _within("cross_entropy_weight", self.cross_entropy_weight, 0.0, 1.0)

    @property
    def uses_old(self) -> bool:
        """Whether anything is learned from the old model."""
        return self.cross_entropy_weight < 1 and self.mask != "new_only"

    @property
    def uses_new(self) -> bool:
        """Whether anything is learned from the new model."""
        return self.cross_entropy_weight < 1 and (self.mask != "old_only" or self.guard != "none")

    def __str__(self) -> str:
        if self.cross_entropy_weight == 1:
            return "cross-entropy"
        name = f"{self.mask}, T={self.temperature:g}"
        if self.guard != "none":
            name += f", guard {self.guard}"
        if self.cross_entropy_weight:
            name += f", cross-entropy {self.cross_entropy_weight:g}"
        return name


DEFAULT_RECIPE = Recipe("average", cross_entropy_weight=0.2)
"""The recipe that broke least at the new model's accuracy in ``examples/paper``, on small gaps and large."""

CANDIDATES = (DEFAULT_RECIPE, Recipe("old_only"))
"""What ``recipe="auto"`` tries: for a new version, and for a compressed model."""


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """What both kinds of adapter share.

    ``tokens`` says which tokens count: the ``answer`` or ``all`` (prompt and answer, as in the paper);
    ``texts`` whether a multiple choice gives its right answer or all its ``choices`` as text (the wrong
    ones teach what the old model thinks of them, and never enter the cross-entropy). ``warmup_steps``
    below 1 is a share of all steps. ``max_length`` is in tokens and defaults to the models' context.
    ``targets`` are the names of linear layers, or none for all of them but the output layer.
    A step sees ``batch_size * gradient_accumulation`` texts on each process.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ()
    dropout: float = 0.0
    learning_rate: float = 5e-4
    schedule: Schedule = "cosine"
    warmup_steps: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    batch_size: int = 8
    gradient_accumulation: int = 1
    epochs: int = 2
    validation_share: float = 0.2
    seed: int = 0
    tokens: Tokens = "all"
    texts: Texts = "answer"
    max_length: int | None = None
    overlong: Overlong = "truncate"
    save_steps: int = 50

    def __post_init__(self) -> None:
        for name in ("rank", "batch_size", "gradient_accumulation", "epochs", "save_steps"):
            _whole(name, getattr(self, name), 1)
        _whole("seed", self.seed, 0)
        if self.max_length is not None:
            _whole("max_length", self.max_length, 2)
        _within("alpha", self.alpha, 1e-6, 1e6)
        _within("dropout", self.dropout, 0.0, 0.99)
        _within("learning_rate", self.learning_rate, 1e-9, 1.0)
        _within("warmup_steps", self.warmup_steps, 0.0, 1e9)
        _within("weight_decay", self.weight_decay, 0.0, 10.0)
        _within("max_grad_norm", self.max_grad_norm, 0.0, 1e9)
        _within("validation_share", self.validation_share, 0.0, 0.9)
        _one_of("schedule", self.schedule, get_args(Schedule))
        _one_of("tokens", self.tokens, get_args(Tokens))
        _one_of("texts", self.texts, get_args(Texts))
        _one_of("overlong", self.overlong, get_args(Overlong))
        if not isinstance(self.targets, tuple) or not all(isinstance(name, str) for name in self.targets):
            raise MuscleError(f"adapter setting targets must be a tuple of names, not {self.targets!r}")


@dataclass(frozen=True, slots=True)
class CompatibilityConfig(TrainingConfig):
    """How a compatibility adapter is trained; ``preset`` gives the settings worth starting from.

    ``recipe`` ``auto`` trains each of ``candidates`` for ``pilot_share`` of the steps and then the best
    one to the end. ``teacher`` ``cached`` computes once, on disk, the teachers' final hidden states, and
    what the loss needs of them where the training is long enough: the same loss, and the old model is never
    in memory with the new one; ``live`` computes them at every step, as is done, and noted, where the disk
    has no room. ``selection`` ``nfr`` keeps the epoch with the fewest negative flips among those whose
    accuracy is not below the new model's (within its standard error), ``validation_loss`` is the paper's
    rule.
    """

    tokens: Tokens = "answer"
    recipe: Recipe | Literal["auto"] = DEFAULT_RECIPE
    candidates: tuple[Recipe, ...] = CANDIDATES
    pilot_share: float = 0.2
    teacher: TeacherMode = "cached"
    selection: Selection = "nfr"

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        if not isinstance(self.recipe, Recipe) and self.recipe != "auto":
            raise MuscleError(f"adapter setting recipe must be a Recipe or 'auto', not {self.recipe!r}")
        if not self.candidates or not all(isinstance(recipe, Recipe) for recipe in self.candidates):
            raise MuscleError("adapter setting candidates must be a tuple of at least one Recipe")
        _within("pilot_share", self.pilot_share, 0.01, 1.0)
        _one_of("teacher", self.teacher, get_args(TeacherMode))
        _one_of("selection", self.selection, get_args(Selection))
        if self.recipe == "auto" and not self.validation_share:
            raise MuscleError("adapter setting recipe 'auto' needs a validation_share above 0 to choose by")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> CompatibilityConfig:
        """The settings called ``name``, with changes.

        ``default`` is for a new version of a model. ``compressed`` is for a new model that is the old one
        quantised or pruned: there the old model is the better teacher everywhere. ``paper`` is equation 1
        with the hyperparameters of table 8.
        """
        try:
            settings = PRESETS[name]
        except KeyError:
            raise MuscleError(f"unknown preset {name!r}; use one of {', '.join(PRESETS)}") from None
        unknown = sorted(set(changes) - {field.name for field in fields(cls)})
        if unknown:
            raise MuscleError(f"unknown adapter setting {unknown[0]!r}")
        return cls(**{**settings, **changes})

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> CompatibilityConfig:
        """The settings of ``[tool.pytest-muscle.training]``.

        Its keys are ``preset`` (``default``), ``mask``, ``temperature``, ``cross_entropy_weight`` and
        ``guard``, which change the preset's recipe, ``recipe = "auto"``, and the other settings by name.
        Raises ``MuscleError`` naming the key.
        """
        recipe_keys = [field.name for field in fields(Recipe)]
        settings = [field.name for field in fields(cls) if field.name != "candidates"]
        known = ["preset", *recipe_keys, *settings]
        for key in table:
            if key not in known:
                raise MuscleError(f"unknown key '{key}'{did_you_mean(key, known)}")
        name = table.get("preset", "default")
        changes = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items() if k in settings}
        if recipe := {key: table[key] for key in recipe_keys if key in table}:
            if "recipe" in table:
                raise MuscleError(f"'{next(iter(recipe))}' does not go with 'recipe'")
            base = cls.preset(name).recipe
            assert isinstance(base, Recipe)
            changes["recipe"] = replace(base, **recipe)
        return cls.preset(name, **changes)


@dataclass(frozen=True, slots=True)
class TaskConfig(TrainingConfig):
    """How a task adapter is trained: plain cross-entropy, on the answers unless ``tokens`` says otherwise."""

    tokens: Tokens = "answer"
    selection: TaskSelection = "accuracy"

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        _one_of("selection", self.selection, get_args(TaskSelection))


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "compressed": {"recipe": Recipe("old_only"), "tokens": "all"},
    "paper": {
        "tokens": "all",
        "recipe": Recipe("student_wrong", temperature=2.0),
        "rank": 128,
        "alpha": 256.0,
        "learning_rate": 1e-4,
        "schedule": "linear",
        "warmup_steps": 500.0,
        "gradient_accumulation": 8,
        "batch_size": 1,
        "epochs": 10,
        "selection": "validation_loss",
    },
}
