"""The one exception that pytest-muscle raises for anything a user can mend."""

from __future__ import annotations

from collections.abc import Iterable


class MuscleError(Exception):
    """Bad input or an impossible request.

    The message names the file, the line or key, what is wrong and the remedy; it is shown as it
    stands, without a traceback.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean '...'?"`` for the known name nearest to ``name``, else nothing."""
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), n=1, cutoff=0.75)
    return f"; did you mean '{near[0]}'?" if near else ""
