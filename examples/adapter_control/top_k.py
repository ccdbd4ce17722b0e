"""What would it do to an adapter to keep only the old model's K likeliest tokens?

    python top_k.py OLD NEW TRAIN GOLDEN WORK [--k 16 64] [adapter settings ...]

The package keeps the old model's final hidden states on disk and forms all its logits from them, which is
exact. Keeping the K largest logits of each token is the common alternative. This trains the same adapter
with either: with all of them, with K renormalised, and with K and the rest of the probability spread evenly
over the other tokens. It prints bytes a token on disk, how much of the teacher's probability K logits hold
(on average, and in the worst hundredth of the tokens), and what the golden dataset says of the adapter.
What has been trained and answered is kept in WORK.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pytest_muscle import MuscleError, compare
from pytest_muscle.adapter import stages, training
from pytest_muscle.adapter.__main__ import main as train_adapter
from pytest_muscle.adapter.logits import TokenLogits
from pytest_muscle.adapter.sources import Sources
from pytest_muscle.adapter.stages import Training
from pytest_muscle.adapter.teachers import CachedTeacher

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from pytest_muscle.adapter.report import AdapterResult
    from pytest_muscle.adapter.student import Student
    from pytest_muscle.adapter.trainer import Lesson

IMPOSSIBLE = -1e4


@dataclass(frozen=True, slots=True)
class TopK:
    """A teacher that has forgotten all but its K largest logits of each token."""

    teacher: CachedTeacher
    k: int
    spread: bool
    kept: list[Tensor] = field(default_factory=list)

    def predict(self, batch: Mapping[str, Tensor], counted: Tensor, vocabulary: int) -> TokenLogits:
        """Truncated log-probabilities of the positions marked in ``counted``."""
        exact = self.teacher.predict(batch, counted, vocabulary).rows(slice(None)).log_softmax(-1)
        top = exact.topk(self.k)
        kept = top.values.exp().sum(-1)
        self.kept.append(kept)
        rest = IMPOSSIBLE
        if self.spread:
            rest = ((1 - kept).clamp_min(1e-12) / (vocabulary - self.k)).log()[:, None]
        truncated = torch.zeros_like(exact) + rest
        return TokenLogits(truncated.scatter_(-1, top.indices, top.values), vocabulary)


class States(Sources):
    """What the teachers are read from, without moments: logits are to be had from states only."""

    def mixture(self, student: Student, lesson: Lesson) -> None:
        """None."""

    def condensed(self, student: Student, lesson: Lesson) -> Lesson:
        """The lesson as it is."""
        return lesson


class Forgetful(Training):
    """A training whose old model is a ``TopK``, where ``k`` is not 0."""

    k = 0
    spread = False

    def _lesson(self, *known: Any) -> Lesson:
        lesson = super()._lesson(*known)
        assert isinstance(lesson.old, CachedTeacher), "the two models must have one tokenizer"
        self.teacher = TopK(lesson.old, self.k, self.spread)
        return replace(lesson, old=self.teacher) if self.k else lesson

    def run(self, about: Mapping[str, Any]) -> AdapterResult:
        """Train, and remember what the teacher had to offer."""
        result = super().run({**about, "k": self.k, "spread": self.spread})
        states, kept = self.teacher.teacher.states.values, self.teacher.kept
        size = 8 * self.k or states.shape[1] * states.element_size()
        shares = torch.cat(kept) if kept else torch.ones(1)
        told = {"bytes": size, "kept": shares.mean().item(), "worst": shares.quantile(0.01).item()}
        (self.folder.output / "teacher.json").write_text(json.dumps(told))
        return result


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, train what is missing, print the table."""
    parser = argparse.ArgumentParser(description="Measure what truncated teachers make of an adapter.")
    for name in ("old", "new"):
        parser.add_argument(name, help="directory, .gguf file or org/name")
    for name in ("train", "golden", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--k", type=int, nargs="+", default=[16, 64])
    options, settings = parser.parse_known_args(arguments)
    variants = [(0, False), *((k, spread) for k in options.k for spread in (False, True))]
    adapters = {variant: train(options, settings, *variant) for variant in variants}
    print(f"\n{'':22}{'bytes':>8}{'kept':>8}{'worst':>8}{'accuracy':>10}{'negative flips':>16}")
    try:
        print_row("new model", options, options.new)
        for (k, spread), adapter in adapters.items():
            name = f"{k} logits{', rest spread' if spread else ''}" if k else "all logits"
            print_row(name, options, str(adapter), json.loads((adapter / "teacher.json").read_text()))
    except MuscleError as problem:
        sys.exit(f"error: {problem}")


def train(options: argparse.Namespace, settings: list[str], k: int, spread: bool) -> Path:
    """Train one adapter, unless it is there."""
    output: Path = options.work / f"k{k}{'-spread' if spread else ''}"
    stages.Sources = States  # type: ignore[misc]
    training.Training = type("Variant", (Forgetful,), {"k": k, "spread": spread})  # type: ignore[misc]
    models = ["--old", options.old, "--new", options.new, "--golden", str(options.golden)]
    print(f"== {output.name}", flush=True)
    code = train_adapter(
        ["compatibility", *models, "--train", str(options.train), "--out", str(output), *settings]
    )
    if code:
        sys.exit(code)
    return output


def print_row(
    name: str, options: argparse.Namespace, new: str, teacher: Mapping[str, float] | None = None
) -> None:
    """What the golden dataset says of a model, and what its teacher had to offer."""
    metrics = compare(options.old, new, options.golden, cache_dir=str(options.work / "answers")).metrics
    told = f"{teacher['bytes']:8d}{teacher['kept']:8.3f}{teacher['worst']:8.3f}" if teacher else " " * 24
    print(f"{name:22}{told}{metrics.accuracy_new:10.4f}{metrics.nfr:16.4f}")


if __name__ == "__main__":
    main()
