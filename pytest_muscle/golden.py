"""Golden cases: what they are and how golden datasets are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Task = Literal["multiple_choice", "exact_match", "generation"]


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """One record of a golden dataset.

    ``prompt`` or ``messages`` is what the model is given. ``answer`` holds the indices of the right
    choices, or the accepted texts.
    """

    id: str
    dataset: str
    task: Task
    answer: tuple[int, ...] | tuple[str, ...]
    prompt: str = ""
    messages: tuple[Mapping[str, str], ...] = ()
    choices: tuple[str, ...] = ()
    delimiter: str = " "
    metric: str = ""
    extract: str = ""
    ignore_case: bool = False
    ignore_space: bool = False
    choice_rule: Literal["acc", "acc_norm"] = "acc"
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 256
    tags: Mapping[str, str] = field(default_factory=dict)
    line: int = 0
