"""Time a training step of a compatibility adapter against the naive loop, or against TRL's GKD.

    python distillation.py OLD NEW GOLDEN.jsonl [--peer naive|trl] [--rounds 5] [--batch 8] [--tokens 64]
        [--prompt 40] [--row NAME] [--profile]

``--peer naive`` is the paper's loss written down plainly: three whole models in memory, all their logits,
two KL divergences and a mask between them. ``--peer trl`` (``pip install trl datasets``) is the loss of its
GKD trainer, one teacher, forward KL. Both peers train an adapter as PEFT makes it. ``--prompt N`` counts the
tokens after the first N of each text only, as the default recipe does with the tokens of answers; all count
without it. Both sides are processes with models of their own that take their steps in turn: the same batches,
the same adapter to begin with, the same optimiser. Their losses over the first steps must agree, and so must
the adapter that these make, before anything is timed. Prints medians of CPU and wall seconds, each process's
peak memory, what the teachers cost once, before the steps, and the floor: the arithmetic that each side's way
of computing the loss asks for, at the best rate of this machine's matrix products. ``--profile`` adds where
the time of this package's step goes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import chain, cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from measuring import (
    fastest_product,
    linear_sizes,
    print_machine,
    print_profile,
    print_row,
    require_one_thread,
)
from torch.nn import functional

from pytest_muscle.adapter.caches import Filling
from pytest_muscle.adapter.config import CompatibilityConfig, Recipe
from pytest_muscle.adapter.data import Collator, Example
from pytest_muscle.adapter.loss import IGNORED
from pytest_muscle.adapter.processes import Processes
from pytest_muscle.adapter.student import Student, build_student
from pytest_muscle.adapter.teachers import CachedMoments, CachedTeacher, MomentCache, StateCache
from pytest_muscle.adapter.trainer import AdapterTrainer, Lesson, training_arguments
from pytest_muscle.golden import read_golden
from pytest_muscle.models.checkpoint import load_model, load_tokenizer, resolve_checkpoint
from pytest_muscle.models.local.output import find_output_layer
from pytest_muscle.models.quiet import quiet

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from torch import Tensor

CHECKED_STEPS = 3
CONFIG = CompatibilityConfig(rank=16, alpha=32.0)
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Work:
    """What both sides are given."""

    old: str
    new: str
    golden: Path
    batch: int
    tokens: int
    prompt: int
    recipe: Recipe

    def examples(self) -> list[Example]:
        """The dataset's prompts, one after another, cut into texts of the same length."""
        tokenizer: Any = load_tokenizer(resolve_checkpoint(self.new))
        prompts = [case.prompt for case in read_golden(self.golden)]
        tokens = list(chain.from_iterable(tokenizer(prompts)["input_ids"]))
        texts = [tuple(tokens[i : i + self.tokens]) for i in range(0, len(tokens), self.tokens)]
        whole = (len(texts) - 1) // self.batch * self.batch
        if not whole:
            sys.exit(f"error: {self.golden} is too short: it has {len(tokens)} tokens")
        return [Example(i, i, f"text {i}", text, self.prompt, True) for i, text in enumerate(texts[:whole])]


class Side(ABC):
    """A student and its optimiser; a subclass says how it learns.

    ``passes`` is how many times in a step states go forward, or their gradients back, through frozen weights:
    those of every token through the layers, those of every token (``all_count``) or of the tokens that count
    through the output layer.
    """

    teaching = 0.0
    passes: int
    all_count = True

    def __init__(self, work: Work) -> None:
        self.work = work
        self.examples = work.examples()
        self.collator = Collator(0, answer_only=True)
        groups = [self.examples[i : i + work.batch] for i in range(0, len(self.examples), work.batch)]
        self.batches = cycle([self.collator(group) for group in groups])
        self.prepare()
        # Half of a new adapter's tensors have no gradient: begin with one that does something.
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.trained():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 1e-2)
        self.model.train()
        self.optimiser = torch.optim.AdamW(self.trained(), lr=1e-3, weight_decay=0.0)

    model: Any

    @abstractmethod
    def prepare(self) -> None:
        """Load the models; ``model``, the student with its adapter, must be there afterwards."""

    @abstractmethod
    def learn(self, batch: dict[str, Tensor]) -> float:
        """Forward and backward; the mean loss per token of a batch."""

    def trained(self) -> list[torch.nn.Parameter]:
        """The adapter's tensors."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def step(self) -> tuple[float, float, float]:
        """One optimiser step on the next batch: the loss before it, CPU and wall seconds."""
        batch = next(self.batches)
        cpu, wall = time.process_time(), time.perf_counter()
        loss = self.learn(batch)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss, time.process_time() - cpu, time.perf_counter() - wall

    def operations(self) -> float:
        """The floating-point operations of a step's matrix products but for those of attention."""
        work, sizes = self.work, dict(linear_sizes(self.model))
        output = self.model.get_output_embeddings()
        head = output.in_features * output.out_features
        factors = sum(size for name, size in sizes.items() if "lora_" in name)
        layers = sum(sizes.values()) - factors - head
        tokens = work.batch * work.tokens
        scored = tokens if self.all_count else work.batch * (work.tokens - max(1, work.prompt))
        # The adapter's factors: forward, the inputs' gradient and their own.
        return 2.0 * (tokens * (self.passes * layers + 3 * factors) + scored * self.passes * head)

    def adapter(self) -> list[float]:
        """The norm of each of the adapter's tensors."""
        return [parameter.norm().item() for parameter in self.trained()]


class Here(Side):
    """The package, as in a training of three epochs or more: moments of the teachers, the loss in pieces."""

    # The student, forward and back.
    passes = 2
    all_count = False

    def prepare(self) -> None:
        """Fill the teachers' caches, one model after the other, and keep the student."""
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            old = self._states(load(self.work.old), Path(folder) / "old")
            base = load(self.work.new)
            new = self._states(base, Path(folder) / "new") if self.work.recipe.uses_new else None
            student = build_student(base, CONFIG)
            teachers = [
                self._moments(teacher, student, Path(folder) / name) if teacher else None
                for name, teacher in (("old moments", old), ("new moments", new))
            ]
            arguments = training_arguments(CONFIG, Path(folder), CPU, checkpoints=False)
        self.teaching = time.process_time() - began
        self.model = student.model
        lesson = Lesson(self.examples, self.collator, self.work.recipe, *teachers, len(old.weight))
        self.trainer = AdapterTrainer(student, lesson, self.examples, arguments, lambda _: None)

    def _states(self, model: Any, folder: Path) -> CachedTeacher:
        output = find_output_layer(model)
        assert output is not None
        cache = StateCache(folder)
        cache.write(self._filling(), model, output)
        return cache.open(self.examples, True, CPU)

    def _moments(self, teacher: CachedTeacher, student: Student, folder: Path) -> CachedMoments:
        assert student.output is not None
        cache = MomentCache(folder)
        temperature = self.work.recipe.temperature
        cache.write(self._filling(), teacher, student.output, len(teacher.weight), temperature)
        return cache.open(self.examples, True)

    def _filling(self) -> Filling:
        return Filling(self.examples, self.collator, 1024, Processes(CPU))

    def learn(self, batch: dict[str, Tensor]) -> float:
        """As the trainer does it."""
        tokens = (batch["labels"][:, 1:] != IGNORED).sum()
        return self.trainer.training_step(self.model, batch, num_items_in_batch=tokens).item()


class Peer(Side):
    """A side that goes back from one loss for the whole batch."""

    @abstractmethod
    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """The mean loss per token of a batch."""

    def learn(self, batch: dict[str, Tensor]) -> float:
        """Forward and backward at once."""
        loss = self.loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()


class Naive(Peer):
    """The paper's loss as one writes it down."""

    # Both teachers, the student forward and back.
    passes = 4

    def prepare(self) -> None:
        """Load all three models."""
        self.old, self.new = load(self.work.old), load(self.work.new)
        self.model = with_adapter(load(self.work.new))

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """Equation 1 on whole logits."""
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        student = self.model(**inputs, use_cache=False).logits[:, :-1]
        with torch.no_grad():
            old, new = (model(**inputs, use_cache=False).logits[:, :-1] for model in (self.old, self.new))
        log_student = functional.log_softmax(student, -1)
        to_old, to_new = (
            functional.kl_div(
                log_student, functional.log_softmax(teacher, -1), reduction="none", log_target=True
            )
            for teacher in (old, new)
        )
        labels = batch["labels"][:, 1:]
        mask = (student.argmax(-1) != labels).float()
        return (mask * to_old.sum(-1) + (1 - mask) * to_new.sum(-1))[labels != IGNORED].mean()


class Trl(Peer):
    """TRL's GKD trainer, given the same batches."""

    passes = 3

    def prepare(self) -> None:
        """Build the trainer with its own defaults but for forward KL at temperature 1."""
        from datasets import Dataset
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        self.folder = tempfile.TemporaryDirectory()
        self.model = with_adapter(load(self.work.new))
        arguments = GKDConfig(
            output_dir=self.folder.name, beta=0.0, temperature=1.0, lmbda=0.0, use_cpu=True, report_to="none",
            gradient_checkpointing=False, bf16=False,
        )  # fmt: skip
        with quiet():
            self.trainer = GKDTrainer(
                model=self.model,
                teacher_model=load(self.work.old),
                args=arguments,
                train_dataset=Dataset.from_list([{"messages": []}]),
                processing_class=load_tokenizer(resolve_checkpoint(self.work.new)),
            )

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """As the trainer computes it."""
        tokens = (batch["labels"][:, 1:] != IGNORED).sum()
        return self.trainer.compute_loss(self.model, batch, num_items_in_batch=tokens)


PEERS = {"naive": (Naive, Recipe("student_wrong")), "trl": (Trl, Recipe("old_only"))}


def load(spec: str) -> Any:
    """A frozen model in float32."""
    return load_model(resolve_checkpoint(spec), device="cpu", dtype="float32").requires_grad_(False)


def with_adapter(model: Any) -> Any:
    """The model with an adapter of the same size and places as this package's, made by PEFT alone."""
    from peft import LoraConfig, get_peft_model

    size = LoraConfig(
        r=CONFIG.rank, lora_alpha=int(CONFIG.alpha), target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, size)


def serve(kind: type[Side], work: Work, pipe: Connection) -> None:
    """A side's process: a step for every request, and at the end what it cost."""
    side = kind(work)
    answers = {"step": side.step, "adapter": side.adapter, "profile": lambda: print_profile(side.step)}
    pipe.send(side.teaching)
    while request := pipe.recv():
        pipe.send(answers[request]())
    pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, side.operations()))


class Process:
    """A side, as the measuring process sees it."""

    def __init__(self, kind: type[Side], work: Work) -> None:
        self.pipe, other = multiprocessing.get_context("spawn").Pipe()
        multiprocessing.get_context("spawn").Process(
            target=serve, args=(kind, work, other), daemon=True
        ).start()
        self.teaching: float = self.pipe.recv()
        self.steps: list[tuple[float, float, float]] = []

    def ask(self, request: str) -> Any:
        """Send a request and wait for the answer."""
        self.pipe.send(request)
        return self.pipe.recv()


def main(arguments: list[str] | None = None) -> None:
    """Read the command line, check that both sides learn the same, print the timings."""
    parser = argparse.ArgumentParser(description="Time a training step of a compatibility adapter.")
    for name in ("old", "new"):
        parser.add_argument(name, help="directory or .gguf file")
    parser.add_argument("golden", type=Path, help="dataset whose prompts are the text")
    parser.add_argument("--peer", choices=PEERS, default="naive")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8, help="texts in a step")
    parser.add_argument("--tokens", type=int, default=64, help="tokens in a text")
    parser.add_argument("--prompt", type=int, default=0, help="tokens of a text that do not count")
    parser.add_argument("--row", metavar="NAME", help="print the result as a row of README's table, too")
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    options = parser.parse_args(arguments)
    if options.profile:
        require_one_thread(parser)
    kind, recipe = PEERS[options.peer]
    sizes = options.batch, options.tokens, options.prompt
    work = Work(options.old, options.new, options.golden, *sizes, recipe)
    peer = {"naive": "the naive loop", "trl": "TRL's GKD"}[options.peer]
    sides = {"pytest-muscle": Process(Here, work), peer: Process(kind, work)}
    check(*sides.values())
    for _ in range(options.rounds):
        for side in sides.values():
            side.steps.append(side.ask("step"))
    print_machine()
    if options.profile:
        sides["pytest-muscle"].ask("profile")
    print_sides(sides, peer, options.row)
    scored = options.tokens - max(1, options.prompt)
    print(f"a step has {options.batch * options.tokens} tokens, {options.batch * scored} of which count")


def check(here: Process, there: Process) -> None:
    """Take the first steps and stop unless losses and adapters are the same."""
    losses = [[side.ask("step")[0] for _ in range(CHECKED_STEPS)] for side in (here, there)]
    adapters = [torch.tensor(side.ask("adapter")) for side in (here, there)]
    apart = max(abs(a - b) / b for a, b in zip(*losses, strict=True))
    grown = ((adapters[0] - adapters[1]).abs() / adapters[1]).max().item()
    print(f"losses of {CHECKED_STEPS} steps: {' '.join(f'{loss:.6f}' for loss in losses[1])}")
    print(f"largest relative distance: losses {apart:.1e}, the adapter's tensors' norms {grown:.1e}")
    if apart > 1e-4 or grown > 1e-3:
        sys.exit("error: the two do not learn the same")


def print_sides(sides: dict[str, Process], peer: str, row: str | None) -> None:
    """A row for each side, medians of the steps' ratios to the peer; how near each came to its floor."""
    medians = {
        name: [statistics.median(step[i] for step in side.steps) for i in (1, 2)]
        for name, side in sides.items()
    }
    ends = {name: side.ask("") for name, side in sides.items()}
    print(f"{'':16}{'CPU s':>8}{'ratio':>8}{'wall s':>8}{'ratio':>8}{'peak GB':>9}{'share':>7}{'before':>9}")
    of_steps = {
        name: [[a[i] / b[i] for a, b in zip(sides[peer].steps, side.steps, strict=True)] for i in (1, 2)]
        for name, side in sides.items()
    }
    for name, (cpu, wall) in medians.items():
        ratios = [statistics.median(each) for each in of_steps[name]]
        memory = ends[name][0]
        print(
            f"{name:16}{cpu:8.2f}{ratios[0]:8.2f}{wall:8.2f}{ratios[1]:8.2f}{memory:9.2f}"
            f"{memory / ends[peer][0]:7.2f}{sides[name].teaching:7.1f} s"
        )
    ours = next(name for name in sides if name != peer)
    spread = "; ".join(
        f"{what} from {min(each):.2f} to {max(each):.2f}"
        for what, each in zip(("CPU", "wall"), of_steps[ours], strict=True)
    )
    print(f"ratios of {len(sides[ours].steps)} steps: {spread}")
    rate = fastest_product().rate
    floors = {name: operations / rate for name, (_, operations) in ends.items()}
    for name, floor in floors.items():
        share = floor / medians[name][0]
        print(f"floor of {name}: {floor:.2f} s at {rate / 1e9:.0f} GFLOP/s, {share:.0%} of its time")
    bound = floors[peer] / min(floors.values())
    print(f"ratio at equal rates without any other work: {bound:.2f}")
    faster = f"{statistics.median(of_steps[ours][1]):.2f} times as fast as {peer}"
    share = ends[ours][0] / ends[peer][0]
    print_row(row, f"{faster}, in {share:.2f} of its memory", f"{bound:.2f}")


if __name__ == "__main__":
    main()
