"""Finding a golden case among what another tool logged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Generic, TypeVar

from pytest_muscle.golden import GoldenCase

T = TypeVar("T")

Messages = tuple[tuple[str, str], ...]
"""A chat's roles and texts."""

Request = tuple[str | Messages, tuple[str, ...]]
"""What was asked: the prompt or the chat and, for multiple choice, the choices without space around."""


class NotFoundError(LookupError):
    """No entry, or no single one, belongs to a case; the text says why."""


class Index(Generic[T]):
    """Entries of a log, found by what the model was given or else by the case's id.

    Where a tool put its own text around the prompt, the id serves if it names one sample only, and the
    choices must still be the same. Of samples that were given the same, the one with the case's id counts,
    else the first. A sample that was logged several times has several entries.
    """

    def __init__(self, tool: str) -> None:
        self.tool = tool
        self._entries: dict[object, list[T]] = defaultdict(list)
        self._by_request: dict[Request, list[object]] = defaultdict(list)
        self._by_name: dict[str, dict[object, tuple[str, ...]]] = defaultdict(dict)

    def add(self, sample: object, name: str, requests: Sequence[Request], entry: T) -> None:
        """Add an entry of a sample, which was given any of ``requests``."""
        if sample not in self._entries:
            for request in requests:
                self._by_request[request].append(sample)
            self._by_name[name][sample] = requests[0][1]
        self._entries[sample].append(entry)

    def find(self, case: GoldenCase) -> list[T]:
        """Return the entries of the case's sample; raises NotFoundError."""
        given = tuple((message["role"], message["content"]) for message in case.messages) or case.prompt
        choices = stripped(case.choices)
        asked = self._by_request.get((given, choices))
        if not asked:
            return self._entries[self._named(case, choices)]
        named = self._by_name.get(case.id, {})
        return self._entries[next((sample for sample in asked if sample in named), asked[0])]

    def _named(self, case: GoldenCase, choices: tuple[str, ...]) -> object:
        named = self._by_name.get(case.id, {})
        if len(named) > 1:
            raise NotFoundError(f"{len(named)} of {self.tool}'s samples have the id {case.id!a}")
        if not named:
            raise NotFoundError(f"{self.tool} logged no sample with this prompt or id")
        ((sample, its_choices),) = named.items()
        if its_choices != choices:
            raise NotFoundError(f"{self.tool}'s sample with the id {case.id!a} has other choices")
        return sample


def stripped(choices: Sequence[str]) -> tuple[str, ...]:
    """The choices without space around them."""
    return tuple(choice.strip() for choice in choices)
