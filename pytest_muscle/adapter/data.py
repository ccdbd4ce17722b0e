"""Training records -> tokenised texts, in which the tokens that count are marked."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pytest_muscle.adapter.loss import IGNORED
from pytest_muscle.adapter.overlap import where
from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import GoldenCase, parse_case, read_golden

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from pytest_muscle.adapter.config import TrainingConfig
    from pytest_muscle.models.local.encoding import Continuation, Encoder


@dataclass(frozen=True, slots=True)
class Example:
    """One text to learn from: its case's number, tokens, where the answer begins, whether that is right.

    ``choice`` is the number of the choice that is its answer, ``cut`` counts the tokens lost at its head.
    """

    index: int
    case: int
    where: str
    tokens: tuple[int, ...]
    answer_start: int
    truthful: bool
    choice: int = 0
    cut: int = 0

    def counted(self, answer_only: bool) -> range:
        """The positions of the tokens that are predicted and count."""
        return range(max(1, self.answer_start) if answer_only else 1, len(self.tokens))


@dataclass(frozen=True, slots=True)
class Examples:
    """The texts of the records; ``truncated`` and ``dropped`` count those longer than the context."""

    texts: list[Example] = field(default_factory=list)
    truncated: int = 0
    dropped: int = 0


def read_cases(train: str | Path | Sequence[GoldenCase | Mapping[str, Any]]) -> list[GoldenCase]:
    """Training records, which have the format of golden records: a file, or a sequence of them.

    Raises ``MuscleError`` naming file, line and field, or if there is none.
    """
    if isinstance(train, str | Path):
        return read_golden(Path(train))
    cases = []
    for number, record in enumerate(train, 1):
        try:
            cases.append(
                record
                if isinstance(record, GoldenCase)
                else parse_case(dict(record), "training record", number, {})
            )
        except MuscleError as error:
            raise MuscleError(f"training record {number}: {error}") from None
    if not cases:
        raise MuscleError("there are no training records; give at least one")
    return cases


def split_cases(
    cases: Sequence[GoldenCase], share: float, seed: int
) -> tuple[list[GoldenCase], list[GoldenCase]]:
    """Records to train on and records to validate with, both in their old order; the draw is seeded."""
    held_out = round(share * len(cases))
    if share and not 0 < held_out < len(cases):
        raise MuscleError(
            f"{len(cases)} training records cannot be split for validation_share {share:g}: "
            "give more records, or validation_share 0 to keep the last epoch unseen"
        )
    drawn = set(random.Random(seed).sample(range(len(cases)), held_out))
    train = [case for index, case in enumerate(cases) if index not in drawn]
    return train, [cases[index] for index in sorted(drawn)]


def encode_cases(
    cases: Sequence[GoldenCase], encoder: Encoder, config: TrainingConfig, max_length: int
) -> Examples:
    """Tokenise prompt, delimiter, answer and end-of-text of each record, as the answers are judged.

    Text longer than ``max_length`` tokens loses the beginning of its prompt, then the end of its answer,
    or is left out, as ``config.overlong`` says.
    """
    texts: list[Example] = []
    truncated = dropped = 0
    for number, case in enumerate(cases):
        for choice, text in _texts(case, encoder, config.texts == "choices"):
            truthful = not case.choices or choice in case.answer
            tokens, start = list(text.tokens), len(text.tokens) - text.scored
            end = encoder.tokenizer.eos_token_id
            if isinstance(end, int) and tokens[-1] != end:
                tokens.append(end)
            if len(tokens) > max_length and config.overlong == "drop":
                dropped += 1
                continue
            truncated += len(tokens) > max_length
            # The last prompt token is kept: it predicts the answer's first one.
            cut = max(0, min(len(tokens) - max_length, start - 1))
            kept = tuple(tokens[cut : cut + max_length])
            texts.append(Example(len(texts), number, where(case), kept, start - cut, truthful, choice, cut))
    if not texts:
        raise MuscleError(
            f"none of the {len(cases)} training records fits into {max_length} tokens; "
            "raise max_length or set overlong to truncate"
        )
    return Examples(texts, truncated, dropped)


def as_choices(case: GoldenCase) -> GoldenCase:
    """The case, a text answer as a choice of one; no space is doubled between it and the prompt."""
    if case.choices:
        return case
    spaced = case.prompt[-1:].isspace() or bool(case.messages)
    return replace(case, choices=(str(case.answer[0]),), delimiter="" if spaced else case.delimiter)


def _texts(case: GoldenCase, encoder: Encoder, all_choices: bool) -> Iterator[tuple[int, Continuation]]:
    from pytest_muscle.models.local.encoding import UnaskableError

    right = case.answer[0] if case.choices else 0
    try:
        for index, choice in enumerate(encoder.choices(as_choices(case))):
            if all_choices or index == right:
                yield index, choice
    except UnaskableError as error:
        raise MuscleError(f"{where(case)}: cannot be trained on: {error}") from None


@dataclass(frozen=True, slots=True)
class Collator:
    """Examples -> padded tensors.

    ``labels`` are the tokens that count (-100 elsewhere), not shifted; ``example`` the examples' indices,
    ``case`` their records' numbers and ``truthful`` whether their text may enter the cross-entropy.
    """

    pad: int
    answer_only: bool

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Pad on the right to the longest text."""
        length = max(len(example.tokens) for example in examples)
        shape = len(examples), length
        tokens = torch.full(shape, self.pad)
        labels = torch.full(shape, IGNORED)
        attention = torch.zeros(shape, dtype=torch.long)
        for row, example in enumerate(examples):
            text = torch.tensor(example.tokens)
            tokens[row, : len(text)] = text
            attention[row, : len(text)] = 1
            counted = example.counted(self.answer_only)
            labels[row, counted.start : counted.stop] = text[counted.start : counted.stop]
        return {
            "input_ids": tokens,
            "attention_mask": attention,
            "labels": labels,
            "example": torch.tensor([example.index for example in examples]),
            "case": torch.tensor([example.case for example in examples]),
            "truthful": torch.tensor([example.truthful for example in examples]),
        }


class LengthGroupedSampler(torch.utils.data.Sampler[int]):
    """Every example once an epoch, in batches of similar length and in random order.

    The order depends on seed and epoch alone, so that a resumed run sees what an unbroken one does.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self._lengths = lengths
        self._batch = batch
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer before each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        draw = random.Random(f"{self._seed}/{self._epoch}")
        order = list(range(len(self._lengths)))
        draw.shuffle(order)
        window = 16 * self._batch
        batches: list[list[int]] = []
        for start in range(0, len(order), window):
            near = sorted(order[start : start + window], key=lambda index: -self._lengths[index])
            batches += [near[i : i + self._batch] for i in range(0, len(near), self._batch)]
        # The one batch that may be short stays last: the loader cuts batches by count.
        last = batches.pop() if len(batches[-1]) < self._batch else []
        draw.shuffle(batches)
        return iter([index for batch in [*batches, last] for index in batch])
