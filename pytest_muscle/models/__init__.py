"""Where responses come from: one module per kind of model, one protocol, ``open_model(spec)``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pytest_muscle.golden import GoldenCase


@dataclass(frozen=True, slots=True)
class Response:
    """What one model said to one golden case.

    A multiple choice is answered by ``loglikelihoods`` (one per choice, in nats, summed over the
    choice's tokens) or, where a recording has none, by ``choice``, the index itself. Everything
    else is answered by ``text``. ``error`` says why there is no answer: the case can then not be
    judged, which is not the same as being wrong.
    """

    text: str | None = None
    choice: int | None = None
    loglikelihoods: tuple[float, ...] = ()
    error: str | None = None


Batch = Sequence[tuple[GoldenCase, Response]]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How a model is run; every field may stand in ``[tool.pytest-muscle.models.NAME]``."""

    device: str = "auto"
    dtype: str = "auto"
    batch_tokens: int | None = None
    system_prompt: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    revision: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


class Model(Protocol):
    """Everything the rest of the package knows about a model.

    Opening a model is light: no weights are read and no heavy library is imported before
    ``respond`` is called.
    """

    spec: str
    """The model as the user named it."""

    fingerprint: str
    """A digest of the model's content and of the options that can change a response."""

    stored: bool
    """Whether the responses are already on disk, so that the store need not keep them."""

    def respond(self, cases: Sequence[GoldenCase]) -> Iterator[Batch]:
        """Answer the cases in the model's own order, batch by batch, each case exactly once."""
        ...

    def close(self) -> None:
        """Free the weights, so that the other model can be loaded."""
        ...
