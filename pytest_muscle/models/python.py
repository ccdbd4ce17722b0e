"""``python:module:callable``: the user's own system."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from numbers import Integral
from operator import index
from pathlib import Path
from typing import Any

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import GoldenCase
from pytest_muscle.models import Batch, ModelOptions, Response


class PythonModel:
    """A function called with each GoldenCase.

    It returns a text, the index of a choice, the text of a choice, or a Response. An exception it
    raises makes that case unjudgeable and nothing else.
    """

    stored = False

    def __init__(self, spec: str, options: ModelOptions) -> None:
        """Import the function; raises MuscleError where there is none."""
        self.spec = spec
        self.notices: list[str] = []
        self._function = load_callable(spec.partition(":")[2])
        identity = options.revision or options.run_id
        self.fingerprint = hashlib.sha256(f"{spec}\0{identity}".encode()).hexdigest()

    def request_digest(self, case: GoldenCase) -> str:
        """Return the digest of the whole case: the function may look at its id, tags or anything else."""
        seen = {name: getattr(case, name) for name in GoldenCase.__dataclass_fields__ if name != "line"}
        return hashlib.sha256(json.dumps(seen, sort_keys=True, default=dict).encode()).hexdigest()

    def respond(self, cases: Sequence[GoldenCase]) -> Iterator[Batch]:
        """Call the function case by case; each is a batch of its own."""
        for case in cases:
            yield [(case, self._respond(case))]

    def _respond(self, case: GoldenCase) -> Response:
        try:
            value = self._function(case)
        except Exception as error:
            return Response(error=f"{self.spec} raised {type(error).__name__}: {error}")
        if isinstance(value, Response):
            return self._checked(value)
        if isinstance(value, bool) or not isinstance(value, str | Integral):
            return Response(error=f"{self.spec} returned {ascii(value)[:60]}, neither a text nor a choice")
        if case.task != "multiple_choice":
            return Response(text=str(value))
        if isinstance(value, str):
            choices = [choice.strip() for choice in case.choices]
            if value.strip() not in choices:
                return Response(
                    error=f"{self.spec} returned {ascii(value)[:60]}, which is none of the choices"
                )
            value = choices.index(value.strip())
        return Response(choice=int(value))

    def _checked(self, response: Response) -> Response:
        try:
            loglikelihoods = tuple(map(float, response.loglikelihoods))
            choice = None if response.choice is None else index(response.choice)
            if not all(isinstance(each, str | None) for each in (response.text, response.error)):
                raise TypeError("'text' and 'error' must be texts")
        except (TypeError, ValueError, OverflowError) as error:
            return Response(error=f"{self.spec} returned a Response that cannot be used: {error}")
        return Response(response.text, choice, loglikelihoods, response.error)

    def close(self) -> None:
        """Nothing is held."""


def load_callable(name: str) -> Callable[..., Any]:
    """Return ``module:callable``, looking in the current folder too; raises MuscleError without one."""
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        module = import_module(module_name)
    except Exception as error:
        raise MuscleError(
            f"{name}: module '{module_name}' cannot be imported: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, attribute, None) if attribute else None
    if not callable(function):
        raise MuscleError(
            f"{name}: module '{module_name}' has no callable '{attribute}'; write module:callable"
        )
    return function  # type: ignore[no-any-return]
