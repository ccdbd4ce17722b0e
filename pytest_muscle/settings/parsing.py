"""How a setting's value is read: each function returns it or raises ValueError, saying what it must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def text(value: Any) -> str:
    """Read a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError("must be a text")
    return value


def texts(value: Any) -> tuple[str, ...]:
    """Read one text or several."""
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values or not all(isinstance(v, str) and v for v in values):
        raise ValueError("must be a text or a list of texts")
    return tuple(values)


def count(value: Any) -> int:
    """Read a whole number above 0, which the command line gives as a text."""
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError("must be a whole number of at least 1")
    return number


def whole(value: Any) -> int:
    """Read a whole number, 0 included."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError("must be a whole number of at least 0")
    return value


def positive(value: Any) -> float:
    """Read a number, 0 included."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError("must be a number of at least 0")
    return float(value)


def seconds(value: Any) -> float:
    """Read a time in seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError("must be a number of seconds above 0")
    return float(value)


def table(value: Any) -> Mapping[str, Any]:
    """Read a table that can be written as JSON."""
    try:
        if isinstance(value, dict):
            import json

            json.dumps(value, allow_nan=False)
            return value
    except (TypeError, ValueError):
        pass
    raise ValueError("must be a table of what JSON knows")


def flag(value: Any) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def fraction(value: Any) -> float:
    """Read a number between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError("must be a number between 0 and 1")
    return float(value)


def one_of(*words: str) -> Callable[[Any], str]:
    """Return what reads one of these words."""

    def parse(value: Any) -> str:
        if value not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return str(value)

    return parse
