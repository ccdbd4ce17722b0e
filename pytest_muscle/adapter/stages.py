"""The stages of a training: old model, new model, pilots, epochs, output."""

from __future__ import annotations

import json
import math
import shutil
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from pytest_muscle.adapter.answers import Answers, ask_loaded, restore
from pytest_muscle.adapter.config import CompatibilityConfig, Recipe, TaskConfig
from pytest_muscle.adapter.data import Collator, Examples, encode_cases, split_cases
from pytest_muscle.adapter.folder import REPORT, RunFolder
from pytest_muscle.adapter.processes import Processes
from pytest_muscle.adapter.progress import Event, Note, Progress, Stage, Validated, silent
from pytest_muscle.adapter.report import (
    AdapterResult,
    peak_memory,
    result_from_report,
    versions,
    write_report,
)
from pytest_muscle.adapter.selection import Validation, select_epoch, select_recipe
from pytest_muscle.adapter.sides import Side, read_alike, vocabulary_size
from pytest_muscle.adapter.sources import Source, Sources, Told
from pytest_muscle.adapter.standing import Standing, standing, too_weak
from pytest_muscle.adapter.student import Student, build_student, shares_base
from pytest_muscle.adapter.trainer import (
    AdapterTrainer,
    AfterEpoch,
    Lesson,
    last_checkpoint,
    training_arguments,
)
from pytest_muscle.adapter.vocabulary.mapping import VocabularyMap
from pytest_muscle.adapter.vocabulary.teacher import MappedTeacher
from pytest_muscle.adapter.vocabulary.texts import align_texts
from pytest_muscle.errors import MuscleError
from pytest_muscle.grading import grade
from pytest_muscle.models.local.encoding import Encoder
from pytest_muscle.models.local.output import find_output_layer
from pytest_muscle.models.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_muscle.adapter.data import Example
    from pytest_muscle.adapter.vocabulary.texts import AlignedTexts, Coverage
    from pytest_muscle.golden import GoldenCase
    from pytest_muscle.grading import Similarity
    from pytest_muscle.models import ModelOptions, Response

_CROSS_ENTROPY = Recipe(cross_entropy_weight=1.0)
_NO_LIMIT = 10**9
_SAMPLED_TEXTS = 16
_LEAST_ALIGNED = 0.1


class Training:
    """One training. A resumed run finds each stage done, in the run's folder, or does it again."""

    def __init__(
        self,
        sides: Mapping[str, Side],
        cases: Sequence[GoldenCase],
        config: CompatibilityConfig | TaskConfig,
        options: ModelOptions,
        folder: RunFolder,
        processes: Processes,
        similarity: Similarity,
        progress: Progress,
    ) -> None:
        self.sides = sides
        self.config = config
        self.options = options
        self.folder = folder
        self.processes = processes
        self.progress = progress if processes.first else silent
        self.similarity = similarity
        self.notes: list[str] = []
        self.began = time.monotonic()
        self.train_cases, self.cases = split_cases(cases, config.validation_share, config.seed)
        self.alike = "old" not in sides or read_alike(sides["old"], sides["student"], cases)
        self.examples = self._encode()
        self.aligned = self._align()
        self.coverage: Coverage | None = None
        self.old: Answers | None = None
        # A guard needs answers to the training records, too.
        guarded = any(recipe.guard != "none" for recipe in self._recipes())
        self.asked = [*self.train_cases, *self.cases] if guarded else self.cases
        self.standing: Standing | None = None
        self.sources = self._sources()
        self.new: Validation | None = None
        self.epochs: list[Validation] = []

    def run(self, about: Mapping[str, Any]) -> AdapterResult:
        """Train, choose the epoch, write the adapter."""
        old, new = self.sides.get("old"), self.sides["student"]
        student, acts = None, False
        if old and shares_base(old.checkpoint, new.checkpoint):
            student = self._student()
            with quiet():
                acts = student.keep_old(old.checkpoint.adapter, self.processes.device)
        old_teacher = self._learn_old(student if acts else None)
        student = student or self._student()
        self.new = self._validate_new(student)
        lesson = self._lesson(student, old_teacher)
        pilots = self._pilots(student, lesson)
        if pilots and self.new:
            chosen = select_recipe([validation for _, validation in pilots], self.new)
            lesson = replace(lesson, recipe=pilots[chosen][0])
        trainer = self._train(student, lesson)
        kept = self._kept()
        report = {**about, **self._report(student, lesson, pilots, trainer, kept)}
        report = json.loads(json.dumps(report, allow_nan=False))
        if self.processes.first:
            self._finish(kept, report)
        self.processes.wait()
        return result_from_report(report, self.folder.output)

    def _student(self) -> Student:
        student = build_student(self.sides["student"].load(self.processes.device), self.config)
        for note in student.notes:
            self._note(note)
        return student

    # Texts and answers ----------------------------------------------------------------------------

    def _encode(self) -> Examples:
        sides = self.sides.values() if self.alike else [self.sides["student"]]
        limit = min(side.encoder.max_length for side in sides)
        limit = min(limit, self.config.max_length or limit)
        # The encoder's own limit is for prompts; texts are cut here, and that is said.
        encoder = self._unlimited("student")
        examples = encode_cases([*self.train_cases, *self.cases], encoder, self.config, limit)
        for count, what in ((examples.truncated, "truncated"), (examples.dropped, "dropped")):
            if count:
                self._note(f"{count} training texts longer than {limit} tokens were {what}")
        return examples

    def _unlimited(self, side: str) -> Encoder:
        return Encoder(self.sides[side].encoder.tokenizer, _NO_LIMIT, self.options.system_prompt)

    def _align(self) -> AlignedTexts | None:
        """The texts as an old model with another tokenizer reads them."""
        if self.alike or not self._needs_old():
            return None
        old, new = (
            replace(self.sides[side].reader(), encoder=self._unlimited(side)) for side in ("old", "student")
        )
        cases, limit = [*self.train_cases, *self.cases], self.sides["old"].encoder.max_length
        aligned = align_texts(cases, self.examples.texts, old, new, self.config, limit)
        found = aligned.coverage()
        if found.aligned < _LEAST_ALIGNED * found.tokens:
            names = [repr(self.sides[side].checkpoint.spec) for side in ("old", "student")]
            raise MuscleError(
                f"only {found.aligned} of {found.tokens} tokens of the training texts can be aligned between "
                f"the tokenizers of the old model {names[0]} and of the new model {names[1]}: they read the "
                "texts too differently; take models whose tokenizers keep a text as it is (no lower-casing, "
                "no dropped characters) or train on records that both read literally"
            )
        return aligned

    def _texts(self, *, validation: bool) -> list[Example]:
        first = len(self.train_cases)
        return [text for text in self.examples.texts if (text.case >= first) is validation]

    def _collator(self, side: str = "student") -> Collator:
        tokenizer: Any = self.sides[side].encoder.tokenizer
        return Collator(int(tokenizer.pad_token_id), self.config.tokens == "answer")

    def _sources(self) -> Sources:
        old = self.aligned.old if self.aligned else self.examples.texts
        told = {"student": Told(self.examples.texts, self._collator())}
        if "old" in self.sides:
            told["old"] = Told(old, self._collator("old"))
        return Sources(
            self.folder.path,
            self.config,
            self._recipes(),
            told,
            self.processes,
            self.options.batch_tokens,
            self._say,
        )

    def _answers(
        self, side: str, model: Any, cases: Sequence[GoldenCase], *, together: bool = False
    ) -> Answers:
        """A model's graded answers to records.

        The processes share the work, unless they must run the model ``together``.
        """
        encoder, tokens = self.sides[side].encoder, self.options.batch_tokens

        def ask(mine: Sequence[GoldenCase]) -> list[Response]:
            return ask_loaded(model, encoder, mine, tokens)

        responses = ask(cases) if together else self.processes.share_out(cases, ask)
        return Answers(tuple(responses), tuple(grade(cases, responses, self.similarity)))

    def _judged(self, answers: Answers, epoch: int = 0, loss: float | None = None) -> Validation:
        nfr = answers.negative_flips(self.old.last(len(self.cases)), self.cases) if self.old else None
        return Validation(answers.accuracy, answers.standard_error(), nfr, loss, epoch)

    def _validate(self, student: Student, trainer: AdapterTrainer, epoch: int) -> Validation:
        if not self.cases:
            return Validation(epoch=epoch)
        base: Any = student.model.get_base_model()
        with trainer.gathered():
            answers = self._answers("student", base, self.cases, together=trainer.sharded)
        loss = trainer.mean_loss(self._texts(validation=True))
        validation = self._judged(answers, epoch, loss)
        self._say(Validated(str(trainer.lesson.recipe), validation))
        return validation

    # Old and new model ----------------------------------------------------------------------------

    def _recipes(self) -> tuple[Recipe, ...]:
        if not isinstance(self.config, CompatibilityConfig):
            return (_CROSS_ENTROPY,)
        if isinstance(self.config.recipe, Recipe):
            return (self.config.recipe,)
        return self.config.candidates

    def _needs_old(self) -> bool:
        return any(recipe.uses_old for recipe in self._recipes())

    def _learn_old(self, student: Student | None) -> Source | None:
        """What the old model answers, and what it says of every token; the ``student`` may act as it."""
        if "old" not in self.sides:
            return None
        needed = self._needs_old()
        saved = self.folder.read("old_answers.json") if self.asked else []
        if saved is not None:
            self.old = restore(saved, self.asked, self.similarity) if self.asked else None
            found = self.sources.found_old()
            if found or not needed:
                return found
        self._say(Stage("old model: answers and probabilities"))
        with self._old_model(student) as model:
            if self.aligned:
                _require_known(self.aligned.old, vocabulary_size(model))
            if self.asked and saved is None:
                plain = model if not hasattr(model, "get_base_model") else model.get_base_model()
                self.old = self._answers("old", plain, self.asked)
                self._remember("old_answers.json", self.old.to_json())
            return self.sources.old(model, find_output_layer(model), student) if needed else None

    @contextmanager
    def _old_model(self, student: Student | None) -> Iterator[Any]:
        if student is None:
            yield self.sides["old"].load(self.processes.device)
        else:
            with student.acting_as("old"):
                yield student.model

    def _validate_new(self, student: Student) -> Validation | None:
        if not self.asked:
            return None
        saved = self.folder.read("new_answers.json")
        if saved is None:
            self._say(Stage("new model: answers"))
            answers = self._answers("student", student.model.get_base_model(), self.asked)
            self._remember("new_answers.json", answers.to_json())
        else:
            answers = restore(saved, self.asked, self.similarity)
        if self.old:
            self._compare_teachers(self.old, answers)
        if not self.cases:
            return None
        validation = self._judged(answers.last(len(self.cases)))
        self._say(Validated("before training", validation))
        return validation

    def _compare_teachers(self, old: Answers, new: Answers) -> None:
        """Say where the old model is too weak, and keep what guards need to know."""
        if weak := too_weak(self.asked, old.grades, new.grades):
            self._note(weak)
        if len(self.asked) > len(self.cases):
            self.standing = standing(self.asked, old.grades, new.grades, self.processes.device)

    def _lesson(self, student: Student, old: Source | None) -> Lesson:
        vocabulary = vocabulary_size(student.model)
        teacher: Any = old.teacher if old else None
        if old and self.aligned:
            teacher = self._mapped(old, self.aligned, vocabulary)
        elif old:
            vocabulary = min(vocabulary, old.vocabulary)
        _require_known(self.examples.texts, vocabulary)
        lesson = Lesson(
            self.examples.texts,
            self._collator(),
            self._recipes()[0],
            teacher,
            None,
            vocabulary,
            self.standing,
        )
        if mixed := self.sources.mixture(student, lesson):
            return mixed
        if any(recipe.uses_new for recipe in self._recipes()):
            lesson = replace(lesson, new=self.sources.new(student))
        return self.sources.condensed(student, lesson)

    def _mapped(self, old: Source, aligned: AlignedTexts, vocabulary: int) -> MappedTeacher:
        """The old model, told in the student's vocabulary; how much of it can be is noted."""
        sizes = old.vocabulary, vocabulary
        between = VocabularyMap(*aligned.vocabularies, sizes, self.processes.device)
        teacher = MappedTeacher(old.teacher, aligned, self._collator("old"), between)
        sample = self._texts(validation=False)[:_SAMPLED_TEXTS]
        batches = (
            {name: tensor.to(self.processes.device) for name, tensor in self._collator()([text]).items()}
            for text in sample
        )
        self.coverage = replace(aligned.coverage(), rest=teacher.rest(batches))
        self._note(str(self.coverage))
        return teacher

    # Training -------------------------------------------------------------------------------------

    def _pilots(self, student: Student, lesson: Lesson) -> list[tuple[Recipe, Validation]]:
        """A short run of each candidate, where there are several."""
        recipes = self._recipes()
        if len(recipes) == 1:
            return []
        assert isinstance(self.config, CompatibilityConfig)
        texts = self._texts(validation=False)
        arguments = training_arguments(
            self.config,
            self.folder.path / "pilots",
            self.processes.device,
            max_steps=max(1, round(self.config.pilot_share * self._steps())),
            checkpoints=False,
        )
        done = [Validation(**fields) for fields in self.folder.read("pilots.json") or ()]
        for recipe in recipes[len(done) :]:
            self._say(Stage(f"pilot, {recipe}"))
            student.reset()
            trainer = AdapterTrainer(student, replace(lesson, recipe=recipe), texts, arguments, self.progress)
            trainer.train()
            done.append(self._validate(student, trainer, 0))
            self._remember("pilots.json", [asdict(validation) for validation in done])
        return list(zip(recipes, done, strict=True))

    def _steps(self) -> int:
        per_step = self.config.batch_size * self.config.gradient_accumulation * self.processes.count
        return self.config.epochs * math.ceil(len(self._texts(validation=False)) / per_step)

    def _train(self, student: Student, lesson: Lesson) -> AdapterTrainer:
        self._say(Stage(f"training, {lesson.recipe}"))
        student.reset()
        steps = self.folder.path / "steps"
        self.epochs = [Validation(**fields) for fields in self.folder.read("epochs.json") or ()]
        after = AfterEpoch(lambda epoch: self._after_epoch(student, trainer, epoch))
        arguments = training_arguments(self.config, steps, self.processes.device)
        total = self._steps()
        if arguments.get_warmup_steps(total) >= total:
            self._note(
                f"all {total} steps are warm-up (warmup_steps = {self.config.warmup_steps:g}), which "
                f"begins at a learning rate of 0 and here never reaches {self.config.learning_rate:g}; "
                "train longer, or lower warmup_steps"
            )
        trainer = AdapterTrainer(
            student, lesson, self._texts(validation=False), arguments, self.progress, [after]
        )
        checkpoint = self.processes.from_first(lambda: last_checkpoint(steps))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return trainer

    def _after_epoch(self, student: Student, trainer: AdapterTrainer, epoch: int) -> None:
        validation = self._validate(student, trainer, epoch)
        # An epoch that is trained again after a crash takes its old place.
        self.epochs = [earlier for earlier in self.epochs if earlier.epoch < epoch] + [validation]
        kept = self._kept()
        if kept is validation:
            trainer.save_model(str(self.folder.path / f"epoch-{epoch}"))
        self._remember("epochs.json", [asdict(each) for each in self.epochs])
        if self.processes.first:
            for path in self.folder.path.glob("epoch-*"):
                if kept is None or path.name != f"epoch-{kept.epoch}":
                    shutil.rmtree(path)

    def _kept(self) -> Validation | None:
        if not self.cases:
            return self.epochs[-1]
        return select_epoch(self.epochs, self.new, self.config.selection)

    def _report(
        self,
        student: Student,
        lesson: Lesson,
        pilots: Sequence[tuple[Recipe, Validation]],
        trainer: AdapterTrainer,
        kept: Validation | None,
    ) -> dict[str, Any]:
        base: Any = student.model.get_base_model()
        return {
            "base": base.name_or_path,
            "texts": len(self.examples.texts),
            "truncated": self.examples.truncated,
            "dropped": self.examples.dropped,
            "validation_records": len(self.cases),
            "config": asdict(self.config),
            "recipe": str(lesson.recipe),
            "rank": student.rank,
            "validation": {
                "old": asdict(self._judged(self.old.last(len(self.cases))))
                if self.old and self.cases
                else None,
                "new": asdict(self.new) if self.new else None,
            },
            "pilots": [{"recipe": str(recipe), "validation": asdict(v)} for recipe, v in pilots],
            "epochs": [asdict(validation) for validation in self.epochs],
            "kept": asdict(kept) if kept else None,
            "tokenizers": self.coverage.to_json() if self.coverage else None,
            "notes": self.notes,
            "steps": [entry for entry in trainer.state.log_history if "from_old" in entry],
            "seconds": round(time.monotonic() - self.began, 2),
            "peak_memory": peak_memory(),
            "versions": versions(),
        }

    def _finish(self, kept: Validation | None, report: Mapping[str, Any]) -> None:
        if kept is None:
            self.folder.write(REPORT, report)
            self.folder.keep_only(REPORT)
        else:
            result = self.folder.path / f"epoch-{kept.epoch}"
            write_report(result, report)
            self.folder.publish(result)

    def _remember(self, name: str, content: Any) -> None:
        if self.processes.first:
            self.folder.write(name, content)
        self.processes.wait()

    def _note(self, text: str) -> None:
        self._say(Note(text))

    def _say(self, event: Event) -> None:
        if isinstance(event, Note):
            self.notes.append(event.text)
        self.progress(event)


def _require_known(texts: Sequence[Example], vocabulary: int) -> None:
    highest = max(max(example.tokens) for example in texts)
    if highest >= vocabulary:
        raise MuscleError(
            f"the training texts use token {highest}, but the models have only {vocabulary} in common; "
            "is the tokenizer that of the models?"
        )
