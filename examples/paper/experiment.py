"""One cell of the experiment: an update, a pair of bases, a variant of the training -> its figures."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bases
import world

from pytest_muscle import compare
from pytest_muscle.adapter import (
    CompatibilityConfig,
    Recipe,
    TaskConfig,
    train_compatibility_adapter,
    train_task_adapter,
)

if TYPE_CHECKING:
    from pytest_muscle.comparison import Comparison

NOISE = 0.1
"""The share of training records whose answer is wrong."""


SKEWED = "skewed"
"""The old base, its task adapter trained on biased records."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """An update and a task."""

    name: str
    task: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything a profile takes. ``length`` shortens the bases' training.

    ``epochs`` are those of the compatibility adapters and of their controls.
    """

    golden: int = 4000
    train: int = 1600
    task_epochs: int = 4
    epochs: int = 5
    length: float = 1.0


@dataclass(frozen=True, slots=True)
class Variant:
    """Settings of a training; ``recipe`` None stands for the new model as it is."""

    name: str
    recipe: Recipe | None
    rate: float = 2e-3
    settings: dict[str, Any] = field(default_factory=dict)


SCENARIOS = {
    f"{update}-{task}": Scenario(f"{update}-{task}", task, old, new)
    for update, (old, new) in {
        "small-gap": ("old", "new"),
        "more-parameters": ("old", "larger"),
        "large-gap": ("weak", "new"),
        "other-tokenizer": ("old", "pieces"),
        "other-format": ("old", "instructed"),
        "biased": (SKEWED, "new"),
    }.items()
    for task in bases.TASKS
}


class Bench:
    """One pair's models, data and cells, kept in a folder; what is there is not made again."""

    def __init__(self, pair: str, folder: Path, scale: Scale) -> None:
        self.pair = pair
        self.folder = folder / pair
        self.bases = folder / "bases"
        self.scale = scale

    def data(self, task: str) -> tuple[Path, Path]:
        """Golden cases and training records of a task, drawn for this pair."""
        golden, train = self.folder / "data" / f"{task}.jsonl", self.folder / "data" / f"{task}-train.jsonl"
        if not train.is_file():
            cases = world.Task(task, f"{self.pair} golden").records(self.scale.golden)
            unseen = {case["prompt"] for case in cases}
            records = world.Task(task, f"{self.pair} train", NOISE).records(self.scale.train, unseen)
            golden.parent.mkdir(parents=True, exist_ok=True)
            for path, rows in ((golden, cases), (train, records)):
                path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        return golden, train

    def skewed_records(self, task: str) -> Path:
        """Other training records of the task, biased ones."""
        golden, train = self.data(task)
        path = train.with_name(f"{task}-skewed.jsonl")
        if not path.is_file():
            unseen = {json.loads(line)["prompt"] for line in golden.read_text(encoding="utf-8").splitlines()}
            source = world.Task(task, f"{self.pair} skewed", NOISE, biased=True)
            rows = source.records(self.scale.train, unseen)
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        return path

    def task_model(self, base: str, task: str) -> Path:
        """A base's adapter for a task."""
        path = self.folder / "task" / f"{base}-{task}"
        skewed = base == SKEWED
        start = bases.BASES["old" if skewed else base]
        records = self.skewed_records(task) if skewed else self.data(task)[1]
        config = TaskConfig(
            rank=16,
            learning_rate=4e-3,
            batch_size=16,
            epochs=self.scale.task_epochs,
            save_steps=10**6,
            validation_share=0.0,
        )
        directory = bases.open_base(start, self.pair, self.bases, self.scale.length)
        train_task_adapter(str(directory), records, path, config)
        return path

    def cell(self, scenario: Scenario, variant: Variant) -> dict[str, Any]:
        """The figures of one variant; read where they are already there."""
        file = self.cell_file(scenario, variant)
        if not file.is_file():
            figures = self._measure(scenario, variant)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.with_suffix(".part").write_text(json.dumps(figures), encoding="utf-8")
            file.with_suffix(".part").rename(file)
        return dict(json.loads(file.read_text(encoding="utf-8")))

    def cell_file(self, scenario: Scenario, variant: Variant) -> Path:
        """Where a cell's figures are, or will be."""
        return self.folder / "cells" / scenario.name / f"{variant.name}@{variant.rate:g}.json"

    def _measure(self, scenario: Scenario, variant: Variant) -> dict[str, Any]:
        old, new = (self.task_model(base, scenario.task) for base in (scenario.old, scenario.new))
        about = {"scenario": scenario.name, "pair": self.pair, "variant": variant.name, "rate": variant.rate}
        plain = self._compare(old, new, scenario.task)
        if variant.recipe is None:
            chooses = plain.results[0].case.choices
            return {**about, **figures(plain, plain), "averaged": both_averaged(plain) if chooses else None}
        config = CompatibilityConfig(
            recipe=variant.recipe,
            rank=16,
            learning_rate=variant.rate,
            batch_size=32,
            epochs=self.scale.epochs,
            save_steps=10**6,
            validation_share=0.0,
            **{"tokens": "answer", **variant.settings},
        )
        # A control does not know the old model: it is the same one for all of them.
        knows, owner = (
            (old, scenario.name) if variant.recipe.uses_old else (new, f"{scenario.new}-{scenario.task}")
        )
        path = self.folder / "adapters" / owner / f"{variant.name}@{variant.rate:g}"
        trained = train_compatibility_adapter(str(knows), str(new), self.data(scenario.task)[1], path, config)
        mended = self._compare(old, path, scenario.task)
        return {**about, **figures(plain, mended), "seconds": trained.seconds}

    @cache  # noqa: B019
    def _compare(self, old: Path, new: Path, task: str) -> Comparison:
        golden, _ = self.data(task)
        return compare(str(old), str(new), str(golden), cache_dir=str(self.folder / "answers"))


def figures(plain: Comparison, mended: Comparison) -> dict[str, Any]:
    """What is reported of a comparison; ``plain`` is that of the new model as it is."""
    metrics = mended.metrics
    written = metrics.score_new is not None
    groups = {
        f"{name}_{group}": score(mended, name, group) for name in ("old", "new") for group in world.NAMES
    }
    return {
        "n": metrics.n,
        "score_old": metrics.score_old if written else metrics.accuracy_old,
        "score": metrics.score_new if written else metrics.accuracy_new,
        "nfr": metrics.nfr,
        "pfr": metrics.pfr,
        "nfr_mc": metrics.nfr_mc,
        "mean_regression": metrics.mean_regression,
        "inherited": inherited(plain, mended),
        **groups,
    }


def score(comparison: Comparison, model: str, group: str) -> float:
    """The mean score of the old or the new model on the cases of a group."""
    scores = [
        (result.old_grade if model == "old" else result.new_grade).score or 0.0
        for result in comparison.results
        if result.case.tags["group"] == group
    ]
    return sum(scores) / len(scores)


def inherited(plain: Comparison, mended: Comparison) -> float:
    """The share of cases that the adapter turned from right into the old model's wrong answer."""
    rows = zip(plain.results, mended.results, strict=True)
    return sum(
        bool(before.new_grade.correct and not after.new_grade.correct)
        and after.new_grade.answer == after.old_grade.answer
        for before, after in rows
    ) / len(plain.results)


def both_averaged(comparison: Comparison) -> dict[str, float]:
    """Both models at once, their choices' probabilities averaged: the reference at twice the cost."""
    import torch

    right = flips = 0
    for result in comparison.results:
        logits = [torch.tensor(r.loglikelihoods) for r in (result.old, result.new)]
        chosen = int(sum(each.softmax(0) for each in logits).argmax())
        right += chosen in result.case.answer
        flips += bool(result.old_grade.correct) and chosen not in result.case.answer
    return {"score": right / len(comparison.results), "nfr": flips / len(comparison.results)}
