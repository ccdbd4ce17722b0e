"""Accuracy and negative flips of a model in memory, on the validation records."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pytest_muscle.flips import Flip, judge
from pytest_muscle.grading import Grade, grade
from pytest_muscle.models import Response
from pytest_muscle.models.local.batching import generation_budget, scoring_budget
from pytest_muscle.models.local.choosing import score
from pytest_muscle.models.local.encoding import UnaskableError
from pytest_muscle.models.local.generation import generate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_muscle.golden import GoldenCase
    from pytest_muscle.grading import Similarity
    from pytest_muscle.models.local.encoding import Encoder


@dataclass(frozen=True, slots=True)
class Answers:
    """One model's graded answers to records, in their order."""

    responses: tuple[Response, ...]
    grades: tuple[Grade, ...]

    @property
    def accuracy(self) -> float:
        """The mean score: the share of right answers, for generation the mean similarity."""
        return sum(grade.score or 0.0 for grade in self.grades) / len(self.grades)

    def standard_error(self) -> float:
        """The standard error of ``accuracy``."""
        n, mean = len(self.grades), self.accuracy
        squares = sum(((grade.score or 0.0) - mean) ** 2 for grade in self.grades)
        return float((squares / n / n) ** 0.5)

    def negative_flips(self, old: Answers, cases: Sequence[GoldenCase]) -> float:
        """The share of records that the old model answers better."""
        rows = zip(cases, old.responses, self.responses, old.grades, self.grades, strict=True)
        return sum(judge(*row).flip is Flip.NEGATIVE for row in rows) / len(cases)

    def last(self, count: int) -> Answers:
        """Those to the last ``count`` records."""
        first = len(self.grades) - count
        return Answers(self.responses[first:], self.grades[first:])

    def to_json(self) -> list[Any]:
        """The responses, as ``restore`` takes them."""
        return [asdict(response) for response in self.responses]


def restore(
    saved: Sequence[Mapping[str, Any]], cases: Sequence[GoldenCase], similarity: Similarity
) -> Answers:
    """Answers from ``to_json``, graded again."""
    responses = [
        Response(**{**fields, "loglikelihoods": tuple(fields["loglikelihoods"])}) for fields in saved
    ]
    return Answers(tuple(responses), tuple(grade(cases, responses, similarity)))


def ask_loaded(
    model: Any, encoder: Encoder, cases: Sequence[GoldenCase], batch_tokens: int | None = None
) -> list[Response]:
    """What a model in memory says: log-likelihoods of choices, else greedily generated text."""
    responses: dict[int, Response] = {}
    asked: dict[bool, list[tuple[int, Any]]] = {True: [], False: []}
    for index, case in enumerate(cases):
        chooses = case.task == "multiple_choice"
        try:
            request = encoder.choices(case) if chooses else encoder.prompt(case)
        except UnaskableError as error:
            responses[index] = Response(error=str(error))
        else:
            asked[chooses].append((index, request))
    training = model.training
    model.eval()
    try:
        if asked[True]:
            requests = [request for _, request in asked[True]]
            for batch in score(model, requests, scoring_budget(model, batch_tokens)):
                for item, scores in batch:
                    responses[asked[True][item][0]] = _response(loglikelihoods=scores)
        if asked[False]:
            prompts = [prompt for _, prompt in asked[False]]
            budget = generation_budget(model, batch_tokens)
            for written in generate(model, encoder.tokenizer, prompts, budget):
                for item, text in written:
                    responses[asked[False][item][0]] = _response(text=text)
    finally:
        model.train(training)
    return [responses[index] for index in range(len(cases))]


def _response(**given: Any) -> Response:
    if None in given.values():
        return Response(error="the device ran out of memory")
    return Response(**given)
