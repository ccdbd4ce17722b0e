"""Models x golden cases -> responses: what the store lacks is asked, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import accumulate

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import GoldenCase
from pytest_muscle.models import ChoiceMethod, Model, Response
from pytest_muscle.store import Store

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""``progress(title, total)`` opens a display; what it gives is called with each count of cases done."""

Key = tuple[str, str]


@contextmanager
def silent(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show no progress."""
    yield lambda count: None


def held(model: Model, cases: Sequence[GoldenCase], store: Store) -> dict[Key, Response]:
    """Return the responses that are there without asking the model anything."""
    if model.stored:
        return {case.key: response for batch in model.respond(cases) for case, response in batch}
    digests = {case.key: model.request_digest(case) for case in cases}
    found = store.get(model.fingerprint, list(set(digests.values())))
    return {key: found[digest] for key, digest in digests.items() if digest in found}


def ask(
    model: Model,
    cases: Sequence[GoldenCase],
    store: Store,
    progress: Progress,
    title: str,
    again: bool = False,
    workers: int = 1,
) -> dict[Key, Response]:
    """Return a response to every case, asking the model only for those that the store lacks.

    Each batch is stored before the next is asked, so that a killed run goes on where it was. Several
    ``workers`` of a run call this with the same cases and divide them: each claims a share that is free,
    until none is left, and then waits for the others. What a worker that died has not answered is asked by
    the next. A response with an error is kept for this run only. The model is closed unless it is to be
    asked ``again``.
    """
    from filelock import Timeout

    responses = held(model, cases, store)
    if len(responses) < len(cases):
        shares = divide(cases, workers)
        for wait in (False, True):
            for number, share in enumerate(shares):
                if all(case.key in responses for case in share):
                    continue
                name = f"{model.fingerprint} {number} of {len(shares)}"
                with suppress(Timeout), store.lock(name).acquire(blocking=wait):
                    responses.update(_answer(model, share, store, progress, title))
    if not again:
        model.close()
    return responses


def _answer(
    model: Model, cases: Sequence[GoldenCase], store: Store, progress: Progress, title: str
) -> dict[Key, Response]:
    responses = held(model, cases, store)
    missing = [case for case in cases if case.key not in responses]
    if missing:
        with progress(title, len(missing)) as advance:
            for batch in model.respond(missing):
                responses.update((case.key, response) for case, response in batch)
                store.put(model.fingerprint, [(model.request_digest(case), r) for case, r in batch])
                advance(len(batch))
    return responses


_PARTS = (4, 2, 1, 1)
"""Sizes of the shares that each worker would take in turn, if all were equally fast."""


def divide(cases: Sequence[GoldenCase], workers: int) -> list[list[GoldenCase]]:
    """Divide the cases into shares for so many workers: large ones first, small ones to even out the end.

    A share holds cases that begin alike, so that a model reads what they have in common for few shares.
    Every worker divides the same cases alike.
    """
    if workers == 1:
        return [list(cases)]
    ordered = sorted(cases, key=_beginning)
    done = list(accumulate(map(_length, ordered)))
    ends = list(accumulate(part for part in _PARTS for _ in range(workers)))
    shares: list[list[GoldenCase]] = [[] for _ in ends]
    number = 0
    for case, length in zip(ordered, done, strict=True):
        shares[number].append(case)
        while number + 1 < len(ends) and length * ends[-1] >= done[-1] * ends[number]:
            number += 1
    return [share for share in shares if share]


def _beginning(case: GoldenCase) -> tuple[bool, tuple[str, ...]]:
    """What a model reads of a case, after how it answers: choices and texts are asked apart."""
    return bool(case.choices), (*(message["content"] for message in case.messages), case.prompt)


def _length(case: GoldenCase) -> int:
    """About how much there is to read and to write, in characters."""
    read = len(case.prompt) + sum(len(message["content"]) for message in case.messages)
    return 1 + read + (sum(map(len, case.choices)) if case.choices else 4 * case.max_new_tokens)


Methods = Mapping[Key, ChoiceMethod]


def choice_methods(draws: Sequence[Mapping[Key, Response]]) -> Methods:
    """Return what a model's choices rest on, by case; a case of which nobody said is left out."""
    return {
        key: response.choice_method
        for responses in draws
        for key, response in responses.items()
        if response.choice_method is not None
    }


def check_methods(old: Methods, new: Methods) -> None:
    """Raise MuscleError where the two models chose in different ways."""
    for key, method in old.items():
        if new.get(key, method) != method:
            raise MuscleError(
                f"the old model's choices were made by {method}, the new one's by {new[key]} "
                f"({key[1]!a} of {key[0]}): a flip could then be the method's; serve both models where "
                "log-probabilities of a prompt can be had, or set choices = 'letter' in the tables of two "
                "openai: models"
            )
