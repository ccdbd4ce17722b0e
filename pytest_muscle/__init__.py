"""Regression testing for LLM releases: find the answers that a new model version breaks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_muscle.comparison import Comparison as Comparison
    from pytest_muscle.errors import MuscleError as MuscleError
    from pytest_muscle.flips import CaseResult as CaseResult
    from pytest_muscle.flips import Flip as Flip
    from pytest_muscle.golden import GoldenCase as GoldenCase
    from pytest_muscle.models import Response as Response
    from pytest_muscle.session import compare as compare

_HOMES = {
    "CaseResult": "flips",
    "Comparison": "comparison",
    "Flip": "flips",
    "GoldenCase": "golden",
    "MuscleError": "errors",
    "Response": "models",
    "compare": "session",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pytest_muscle' has no attribute {name!r}")
    return getattr(import_module(f"pytest_muscle.{_HOMES[name]}"), name)
