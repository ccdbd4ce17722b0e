"""Compatibility adapters: an update that breaks too much is mended by training (MUSCLE).

``train_compatibility_adapter`` trains a LoRA adapter on the new model that keeps what the old one answers
right, ``train_task_adapter`` a plain task adapter for those who have only base models. On the command line
both are ``python -m pytest_muscle.adapter``, also under ``accelerate launch -m``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_muscle.adapter.config import CompatibilityConfig as CompatibilityConfig
    from pytest_muscle.adapter.config import Recipe as Recipe
    from pytest_muscle.adapter.config import TaskConfig as TaskConfig
    from pytest_muscle.adapter.report import AdapterResult as AdapterResult
    from pytest_muscle.adapter.report import record_judgement as record_judgement
    from pytest_muscle.adapter.training import train_compatibility_adapter as train_compatibility_adapter
    from pytest_muscle.adapter.training import train_task_adapter as train_task_adapter

_HOMES = {
    "AdapterResult": "report",
    "CompatibilityConfig": "config",
    "Recipe": "config",
    "TaskConfig": "config",
    "record_judgement": "report",
    "train_compatibility_adapter": "training",
    "train_task_adapter": "training",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pytest_muscle.adapter' has no attribute {name!r}")
    return getattr(import_module(f"pytest_muscle.adapter.{_HOMES[name]}"), name)
