"""The training loop: transformers' Trainer with the compatibility loss."""

from __future__ import annotations

import math
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from pytest_muscle.adapter.data import LengthGroupedSampler
from pytest_muscle.adapter.gradients import Gradients
from pytest_muscle.adapter.heads import token_logits
from pytest_muscle.adapter.logits import widest
from pytest_muscle.adapter.loss import IGNORED, token_loss
from pytest_muscle.adapter.progress import Step
from pytest_muscle.errors import MuscleError
from pytest_muscle.models.local.cores import Threads, threads_for
from pytest_muscle.models.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from pytest_muscle.adapter.config import Recipe, TrainingConfig
    from pytest_muscle.adapter.data import Collator, Example
    from pytest_muscle.adapter.progress import Progress
    from pytest_muscle.adapter.standing import Standing
    from pytest_muscle.adapter.student import Student
    from pytest_muscle.adapter.teachers import CachedMoments, Teacher
    from pytest_muscle.adapter.vocabulary.teacher import MappedTeacher

_COMPLETE = "complete"
# Tokens that go through the student at once; the activations kept for the backward pass are theirs.
_PART_TOKENS, _PART_WIDTH = 256, 512
_PART_TOKENS_ELSEWHERE = 16384
# Parts that go through at the same time on a CPU; each keeps its activations.
_THREADS = 2
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the student learns: texts, recipe and teachers, in a vocabulary common to all models.

    ``both`` are the two teachers by the recipe's weights, where these are known before: no other is asked.
    """

    examples: Sequence[Example]
    collator: Collator
    recipe: Recipe
    old: Teacher | MappedTeacher | CachedMoments | None
    new: Teacher | CachedMoments | None
    vocabulary: int
    standing: Standing | None = None
    both: CachedMoments | None = None

    def trusted(self, batch: Mapping[str, Tensor], texts: Tensor) -> Tensor | None:
        """Where the old teacher may teach, for tokens of a batch's ``texts`` [n]; None is everywhere."""
        if self.standing is None:
            return None
        return self.standing.trusted(self.recipe.guard, batch["case"][texts])


@dataclass(frozen=True, slots=True)
class _Said:
    """What the teachers say of a batch's tokens."""

    old: Any = None
    new: Any = None
    both: Any = None


# Summed loss, the old teacher's summed weight, tokens.
_Figures: TypeAlias = tuple[float, float, int]


@dataclass(frozen=True, slots=True)
class _PartLoss:
    """Loss and the old teacher's weight, summed over a batch's tokens, and their number."""

    total: Tensor
    from_old: Tensor
    tokens: int

    def figures(self) -> _Figures:
        """As numbers, without the graph."""
        return self.total.item(), self.from_old.item(), self.tokens


class AdapterTrainer(Trainer):
    """A Trainer whose loss is the compatibility loss, per token over a whole step and all processes.

    ``examples`` are those of the lesson to train on. Checkpoints go to the arguments' ``output_dir``.
    """

    def __init__(
        self,
        student: Student,
        lesson: Lesson,
        examples: Sequence[Example],
        arguments: TrainingArguments,
        progress: Progress,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.student = student
        self.lesson = lesson
        self._figures: list[_Figures] = []
        model: Any = student.model
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=list(examples),
            data_collator=lesson.collator,
            callbacks=[*callbacks, _Report(self, progress), _Completed(self)],
        )
        self.remove_callback(PrinterCallback)
        # The loss below is divided by the tokens of the whole step; labels are shifted by it.
        self.model_accepts_loss_kwargs = True
        self.loss_is_scaled_for_ga = True
        self._loss_shifts_labels = True

    def training_step(
        self,
        model: Any,
        inputs: dict[str, Tensor | Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Forward and backward in parts of few tokens, which is the same gradient in less memory.

        Several processes add up their gradients at every backward pass: these do it once, on the whole.
        """
        if self.args.world_size > 1:
            return super().training_step(model, inputs, num_items_in_batch)
        parts = parts_of(inputs, self._part_tokens())
        if self.args.device.type == "cpu" and not self.sharded:
            assert num_items_in_batch is not None
            return self._side_by_side(model, parts, num_items_in_batch)
        return torch.stack(
            [super(AdapterTrainer, self).training_step(model, part, num_items_in_batch) for part in parts]
        ).sum()

    def _side_by_side(self, model: Any, parts: Sequence[dict[str, Tensor]], tokens: Tensor | int) -> Tensor:
        """The parts in threads, dealt out in turn: sums do not depend on which thread is faster."""
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

        # A call for each part, so that its graph is gone before the next one's is made.
        def learn(gradients: Gradients, part: dict[str, Tensor], said: _Said) -> _Figures:
            loss = self._loss_of(model, part, said)
            gradients.add_from(loss.total / tokens)
            return loss.figures()

        def learn_all(
            gradients: Gradients, dealt: Sequence[tuple[dict[str, Tensor], _Said]]
        ) -> list[_Figures]:
            return [learn(gradients, *each) for each in dealt]

        asked = [(part, self._ask_teachers(part)) for part in parts]
        with Threads(min(self._at_once, len(parts))) as threads:
            # Made before the activations: see their module.
            sums = [Gradients(trained) for _ in range(threads.count)]
            tasks = [partial(learn_all, each, asked[i :: threads.count]) for i, each in enumerate(sums)]
            learnt = threads.run(tasks)
        figures = [learnt[i % threads.count][i // threads.count] for i in range(len(parts))]
        for each, part in zip(figures, parts, strict=True):
            self._note(each, part)
        for more in sums[1:]:
            sums[0].add(more)
        sums[0].hand_over()
        return torch.tensor(math.fsum(total for total, *_ in figures) / int(tokens))

    @cached_property
    def _at_once(self) -> int:
        count = min(_THREADS, threads_for(self.student.model))
        # Threads would draw from one generator, in an order that is never twice the same.
        return 1 if count > 1 and draws_numbers(self.student.model) else count

    def _part_tokens(self) -> int:
        if self.args.device.type != "cpu":
            return _PART_TOKENS_ELSEWHERE
        width = int(getattr(self.student.model.config, "hidden_size", _PART_WIDTH))
        return max(_PART_TOKENS, _PART_TOKENS * _PART_WIDTH // width)

    def compute_loss(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of one batch, scaled so that a step's batches on all processes add up to their mean."""
        loss = self._loss_of(model, inputs, self._ask_teachers(inputs))
        self._note(loss.figures(), inputs)
        assert num_items_in_batch is not None
        return loss.total * self.accelerator.num_processes / num_items_in_batch

    def _ask_teachers(self, batch: Mapping[str, Tensor]) -> _Said:
        lesson = self.lesson
        asked = batch, _counted(batch), lesson.vocabulary
        if lesson.both:
            return _Said(both=lesson.both.predict(*asked))
        return _Said(
            lesson.old.predict(*asked) if lesson.old and lesson.recipe.uses_old else None,
            lesson.new.predict(*asked) if lesson.new and lesson.recipe.uses_new else None,
        )

    def _loss_of(self, model: Any, batch: Mapping[str, Tensor], said: _Said) -> _PartLoss:
        lesson, counted = self.lesson, _counted(batch)
        # A model that is sharded over devices only shows its output layer inside its own forward pass.
        output = None if self.sharded else self.student.output
        student = token_logits(model, output, batch, counted, lesson.vocabulary)
        texts, targets = texts_of(counted), batch["labels"][:, 1:][counted]
        loss = token_loss(
            student,
            said.old,
            said.new,
            targets,
            lesson.recipe,
            sequence=texts,
            truthful=batch["truthful"][texts],
            trusted=lesson.trusted(batch, texts),
            both=said.both,
        )
        return _PartLoss(loss.total, loss.from_old, len(targets))

    def _note(self, figures: _Figures, batch: Mapping[str, Tensor]) -> None:
        total, *_ = figures
        if not math.isfinite(total):
            places = [self.lesson.examples[index].where for index in batch["example"].tolist()]
            raise MuscleError(
                f"the loss became {total} at step {self.state.global_step + 1}, in the batch of "
                f"{', '.join(places)}; look at these records, lower learning_rate, or use dtype float32"
            )
        self._figures.append(figures)

    @torch.no_grad()
    def mean_loss(self, examples: Sequence[Example]) -> float:
        """The mean loss per token of texts, shared among the processes unless they share the weights."""
        model = self.student.model
        training = model.training
        model.eval()
        size = self.args.per_device_train_batch_size
        ordered = sorted(examples, key=lambda example: len(example.tokens))
        mine = ordered if self.sharded else ordered[self.args.process_index :: self.args.world_size]
        figures = []
        for start in range(0, len(mine), size):
            batch = {
                name: tensor.to(self.args.device)
                for name, tensor in self.lesson.collator(mine[start : start + size]).items()
            }
            figures.append(self._loss_of(model, batch, self._ask_teachers(batch)).figures())
        model.train(training)
        total, _, tokens = self._over_processes(figures)
        return total / max(1, tokens)

    def take_sums(self) -> tuple[float, float]:
        """Mean loss and old teacher's weight per token since the last call, over all processes."""
        total, from_old, tokens = self._over_processes(self._figures)
        self._figures.clear()
        return total / tokens, from_old / tokens

    def _over_processes(self, figures: Sequence[_Figures]) -> _Figures:
        sums = [math.fsum(column) for column in zip((0.0, 0.0, 0), *figures, strict=True)]
        device = self.args.device
        reduced: Any = self.accelerator.reduce(torch.tensor(sums, device=device, dtype=widest(device)))
        total, from_old, tokens = reduced.tolist()
        return total, from_old, round(tokens)

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the student's weights: all must then run the same layers."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Within, what FSDP keeps outside the layers, such as the embeddings, is whole in each process.

        The layers gather their own weights; what is asked of parts of the model passes the rest by.
        """
        model: Any = self.student.model
        if not hasattr(model, "unshard"):
            yield
            return
        model.unshard()
        try:
            yield
        finally:
            model.reshard()

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGroupedSampler:
        examples: Any = train_dataset or self.train_dataset
        lengths = [len(example.tokens) for example in examples]
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        return LengthGroupedSampler(lengths, self.args.per_device_train_batch_size, seed)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self.args.should_save:
            self.student.save(Path(output_dir or str(self.args.output_dir)), state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.student.load_directory(Path(resume_from_checkpoint))


def _counted(batch: Mapping[str, Tensor]) -> Tensor:
    return batch["labels"][:, 1:] != IGNORED


def texts_of(counted: Tensor) -> Tensor:
    """The text's number in its batch, [n], for each position marked in ``counted`` [batch, tokens - 1]."""
    return torch.arange(len(counted), device=counted.device)[:, None].expand_as(counted)[counted]


def draws_numbers(model: Any) -> bool:
    """Whether the model's forward pass in training draws random numbers, as dropout does."""
    before, training = torch.get_rng_state(), model.training
    model.train()
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros((1, 2), dtype=torch.long), use_cache=False)
        return not torch.equal(before, torch.get_rng_state())
    finally:
        torch.set_rng_state(before)
        model.train(training)


def parts_of(batch: Mapping[str, Tensor], tokens: int) -> list[dict[str, Tensor]]:
    """A batch's rows, longest first, in parts of at most ``tokens`` tokens (or one row), padding cut off."""
    lengths = batch["attention_mask"].sum(1)
    parts: list[list[int]] = []
    for row in lengths.argsort(descending=True, stable=True).tolist():
        if parts and (len(parts[-1]) + 1) * int(lengths[parts[-1][0]]) <= tokens:
            parts[-1].append(row)
        else:
            parts.append([row])
    return [_rows(batch, rows, int(lengths[rows[0]])) for rows in parts]


def _rows(batch: Mapping[str, Tensor], rows: list[int], length: int) -> dict[str, Tensor]:
    chosen = {name: tensor[rows] for name, tensor in batch.items()}
    return {name: tensor[:, :length] if tensor.dim() > 1 else tensor for name, tensor in chosen.items()}


class _Report(TrainerCallback):
    """Keeps each step's figures in the trainer's state, which survives a restart, and shows them."""

    def __init__(self, trainer: AdapterTrainer, progress: Progress) -> None:
        self._trainer = trainer
        self._progress = progress
        self._began = 0.0
        self._first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin to count time."""
        self._began, self._first = time.monotonic(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report one optimiser step."""
        loss, from_old = self._trainer.take_sums()
        state.log_history.append({"step": state.global_step, "loss": loss, "from_old": from_old})
        if state.is_world_process_zero:
            rate = (time.monotonic() - self._began) / (state.global_step - self._first)
            left = rate * (state.max_steps - state.global_step)
            self._progress(Step(state.global_step, state.max_steps, loss, from_old, left))


class _Completed(TrainerCallback):
    """Marks a checkpoint once all of it is written: a killed run leaves half ones behind."""

    def __init__(self, trainer: AdapterTrainer) -> None:
        self._trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called when a checkpoint has been written."""
        self._trainer.accelerator.wait_for_everyone()
        if args.should_save:
            (_checkpoint(Path(args.output_dir), state.global_step) / _COMPLETE).touch()


class AfterEpoch(TrainerCallback):
    """Calls a function with the epoch's number after each epoch, and asks for a checkpoint."""

    def __init__(self, function: Callable[[int], None]) -> None:
        self._function = function

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called by the trainer."""
        self._function(round(state.epoch))
        control.should_save = True


def training_arguments(
    config: TrainingConfig, folder: Path, device: torch.device, max_steps: int = -1, checkpoints: bool = True
) -> TrainingArguments:
    """The Trainer's settings; progress bars, trackers and logs are off."""
    cpu = device.type == "cpu"
    with quiet():
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation,
            num_train_epochs=config.epochs,
            max_steps=max_steps,
            learning_rate=config.learning_rate,
            lr_scheduler_type=_SCHEDULES[config.schedule],
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            seed=config.seed,
            data_seed=config.seed,
            save_strategy="steps" if checkpoints else "no",
            save_steps=config.save_steps,
            save_total_limit=2,
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
            dataloader_pin_memory=not cpu,
            use_cpu=cpu,
            ddp_find_unused_parameters=False,
        )
        # One process trains on one device; more devices mean more processes (accelerate launch).
        arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def last_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint in a folder; half ones are removed."""
    whole: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        if (path / _COMPLETE).is_file():
            whole[int(path.name.rpartition("-")[2])] = path
        else:
            shutil.rmtree(path)
    return whole[max(whole)] if whole else None


def _checkpoint(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step}"
