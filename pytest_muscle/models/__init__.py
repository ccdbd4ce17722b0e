"""Where responses come from: one module per kind of model, one protocol, ``open_model(spec)``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import GoldenCase, Record


@dataclass(frozen=True, slots=True)
class Response:
    """What one model said to one golden case.

    A multiple choice is answered by ``loglikelihoods`` (one per choice, in nats, summed over the
    choice's tokens) or, where a recording has none, by ``choice``, the index itself. Everything
    else is answered by ``text``. ``error`` says why there is no answer: the case can then not be
    judged, which is not the same as being wrong. ``method`` says how a server was made to choose:
    ``prompt_logprobs`` or ``echo`` where it scored the choices, ``letter`` where the model was asked to
    name one; ``text`` is then what it said, and ``choice`` None where that names none.
    """

    text: str | None = None
    choice: int | None = None
    loglikelihoods: tuple[float, ...] = ()
    error: str | None = None
    method: str | None = None

    @property
    def choice_method(self) -> ChoiceMethod | None:
        """What a choice rests on; None where nobody said, or where nothing was chosen."""
        if self.loglikelihoods:
            return "log-likelihood"
        return "letter" if self.method == "letter" else None


ChoiceMethod = Literal["log-likelihood", "letter"]


Batch = Sequence[tuple[GoldenCase, Response]]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How a model is run; all but ``run_id`` may stand in ``[tool.pytest-muscle.models.NAME]``.

    ``run_id`` names the run: a model whose content cannot be told apart by looking at it is asked
    afresh in every run, unless its ``revision`` says what it is. ``temperature`` 0 is greedy; above,
    ``seed`` and a case's ``draw`` fix what is drawn where the model allows it. Each case will be asked
    ``samples`` times.

    The rest is for servers. ``base_url`` is where one listens and ``api_key_env`` names the environment
    variable that holds its key. ``api`` says what prompts are sent to and ``choices`` how a choice is
    made (None: by what the server can do). At most ``concurrency`` requests are under way at a time. One
    is given up after ``timeout`` seconds and asked again up to ``retries`` times; ``time_budget`` seconds
    bound the whole. ``extra_body`` goes with each request. ``answers_as`` is the name in the server's
    answers where it is not the one that was asked for.
    """

    device: str = "auto"
    dtype: str = "auto"
    batch_tokens: int | None = None
    system_prompt: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    revision: str | None = None
    temperature: float = 0.0
    seed: int = 0
    samples: int = 1
    run_id: str = ""
    base_url: str | None = None
    api_key_env: str | None = None
    api: Literal["chat", "completions"] | None = None
    choices: ChoiceMethod | None = None
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 8
    time_budget: float | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    answers_as: str | None = None


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

    notices: list[str]
    """What the user should hear about this model's responses, filled in by ``respond``."""

    def request_digest(self, case: GoldenCase) -> str:
        """Return a digest of all that this model sees of a case: equal requests may share a response."""
        ...

    def respond(self, cases: Sequence[GoldenCase]) -> Iterator[Batch]:
        """Answer the cases in the model's own order, batch by batch, each case exactly once.

        A model that is asked several times gets the same cases again with another ``draw``.
        """
        ...

    def close(self) -> None:
        """Free the weights, so that the other model can be loaded."""
        ...


_KINDS = {
    "recorded": "pytest_muscle.models.recorded:RecordedModel",
    "lm-eval": "pytest_muscle.models.lm_eval:LmEvalModel",
    "inspect": "pytest_muscle.models.inspect_log:InspectModel",
    "promptfoo": "pytest_muscle.models.promptfoo:PromptfooModel",
    "python": "pytest_muscle.models.python:PythonModel",
    "openai": "pytest_muscle.models.openai:OpenAIModel",
}
_LOCAL = "pytest_muscle.models.local:LocalModel"
LOGS = {
    "lm-eval": "pytest_muscle.models.lm_eval",
    "inspect": "pytest_muscle.models.inspect_log",
    "promptfoo": "pytest_muscle.models.promptfoo",
}
"""Kinds of models whose files also hold what was asked and what is right: golden datasets."""
_FILES = ("recorded", *LOGS)


def open_model(spec: str, options: ModelOptions | None = None) -> Model:
    """Return the model that a spec names, without loading it.

    Raises MuscleError where the spec is of no known kind or what it names does not exist.
    """
    kind, colon, target = spec.partition(":")
    if colon and not target:
        raise MuscleError(f"model '{spec}': nothing stands after the colon")
    place = _KINDS.get(kind) if colon else None
    if colon and place is None and not Path(spec).exists() and len(kind) > 1:
        kinds = ", ".join(f"{name}:" for name in _KINDS)
        raise MuscleError(f"model '{spec}': unknown kind '{kind}:'; the kinds are {kinds} a path or a hub id")
    module, _, name = (place or _LOCAL).partition(":")
    model: Model = getattr(import_module(module), name)(spec, options or ModelOptions())
    return model


def golden_reader(kind: str) -> Callable[[Path], Iterator[tuple[int, Record]]]:
    """Return what makes golden records of a log of this kind."""
    return import_module(LOGS[kind]).golden_records  # type: ignore[no-any-return]


def golden_logs(kind: str, folder: Path) -> list[Path]:
    """Return the logs of this kind in a folder."""
    return import_module(LOGS[kind]).logs_in(folder)  # type: ignore[no-any-return]


def absolute_spec(spec: str, folder: Path) -> str:
    """Return the spec with the path in it, if it has one, starting from ``folder``."""
    kind, colon, target = spec.partition(":")
    if colon and target and kind in _FILES:
        # What stands after the file's name is no part of its path.
        file, mark, part = target.partition("#")
        return f"{kind}:{folder / Path(file).expanduser()}{mark}{part}"
    path = folder / Path(spec).expanduser()
    is_path = spec.startswith((".", "/", "~")) or path.exists()
    return str(path) if is_path and not (colon and kind in _KINDS) else spec
