"""The training texts as the old model reads them, aligned with the student's."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from pytest_muscle.adapter.data import as_choices, encode_cases
from pytest_muscle.adapter.vocabulary.alignment import Reading, align, read, shared_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pytest_muscle.adapter.config import TrainingConfig
    from pytest_muscle.adapter.data import Example
    from pytest_muscle.adapter.vocabulary.tokens import Vocabulary
    from pytest_muscle.golden import GoldenCase
    from pytest_muscle.models.local.encoding import Encoder


@dataclass(frozen=True, slots=True)
class Places:
    """Where the old model stands before each counted token of a text, three times [tokens].

    ``rows`` are its positions among its own counted ones (-1: none), ``steps`` over how many of its tokens
    the student's token goes, ``prefixes`` the numbers of the prefixes.
    """

    rows: Tensor
    steps: Tensor
    prefixes: Tensor


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of the counted tokens the old model speaks of.

    ``aligned`` of ``tokens`` are, ``inside`` of these begin inside an old token. ``rest`` is the mean
    probability, on a sample of the aligned ones, that has no counterpart in the new vocabulary.
    """

    tokens: int
    aligned: int
    inside: int
    rest: float | None = None

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return asdict(self)

    def __str__(self) -> str:
        text = (
            f"the models have different tokenizers: {self.aligned / self.tokens:.1%} of {self.tokens} tokens "
            f"are aligned with the old model's ({self.inside / max(1, self.aligned):.1%} of them inside one "
            f"of its tokens), the others learn nothing from it"
        )
        if self.rest is not None:
            text += f"; {self.rest:.2%} of its probability has no counterpart in the new vocabulary"
        return text


@dataclass(frozen=True, slots=True)
class AlignedTexts:
    """The old model's texts by the number of the student's, where they belong, and the prefixes by number.

    ``vocabularies`` are the old and the new model's.
    """

    old: Sequence[Example]
    places: Sequence[Places]
    prefixes: Sequence[bytes]
    vocabularies: tuple[Vocabulary, Vocabulary]

    def coverage(self) -> Coverage:
        """How many of the counted tokens are aligned."""
        rows = torch.cat([place.rows for place in self.places])
        prefixes = torch.cat([place.prefixes for place in self.places])
        return Coverage(len(rows), int((rows >= 0).sum()), int((prefixes[rows >= 0] > 0).sum()))


@dataclass(frozen=True, slots=True)
class Reader:
    """A model's way to read cases: its encoder, and what its tokens stand for."""

    encoder: Encoder
    vocabulary: Vocabulary

    def read(self, case: GoldenCase, example: Example) -> Reading:
        """The text of an example, with the place of each of its tokens."""
        text, ends = self.encoder.spans(case, example.choice)
        before = ends[example.cut - 1] if example.cut else 0
        ends = [*ends, len(text)][example.cut : example.cut + len(example.tokens)]
        return read(self.vocabulary, example.tokens, text, ends, before)


def align_texts(
    cases: Sequence[GoldenCase],
    texts: Sequence[Example],
    old: Reader,
    new: Reader,
    config: TrainingConfig,
    max_length: int,
) -> AlignedTexts:
    """Encode the student's ``texts`` of the cases for the old model, and align them.

    What is longer than the old model's ``max_length`` tokens is truncated, as the student's are.
    """
    truncating = replace(config, overlong="truncate")
    encoded = encode_cases(cases, old.encoder, truncating, max_length).texts
    by_text = {(example.case, example.choice): example for example in encoded}
    numbers: dict[bytes, int] = {b"": 0}
    told, places = [], []
    for text in texts:
        own = replace(by_text[text.case, text.choice], index=text.index)
        told.append(own)
        places.append(_places(as_choices(cases[text.case]), own, text, old, new, config, numbers))
    return AlignedTexts(told, places, list(numbers), (old.vocabulary, new.vocabulary))


def _places(
    case: GoldenCase,
    told: Example,
    text: Example,
    old: Reader,
    new: Reader,
    config: TrainingConfig,
    numbers: dict[bytes, int],
) -> Places:
    answer_only = config.tokens == "answer"
    readings = old.read(case, told), new.read(case, text)
    parts = shared_parts(case, old.encoder, new.encoder, len(readings[1].text))
    ends = old.vocabulary.end, new.vocabulary.end
    first = told.counted(answer_only).start
    found = [
        place if place and place.token >= first else None
        for place in align(*readings, parts, text.counted(answer_only), ends)
    ]
    columns = [
        (place.token - first, place.last - place.token + 1, numbers.setdefault(place.prefix, len(numbers)))
        if place
        else (-1, 1, 0)
        for place in found
    ]
    return Places(*torch.tensor(columns).view(-1, 3).unbind(1))
