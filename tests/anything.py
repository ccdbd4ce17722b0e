"""What may stand in a file: any text, any JSON, and well-formed things with something in them changed."""

from copy import deepcopy

from hypothesis import strategies as st

from pytest_muscle.errors import MuscleError

HOSTILE = (
    "../../etc/passwd",
    "C:\\..\\nul",
    "~/.ssh/id_rsa",
    "a::b::c",
    "[x]-[y]",
    "line\nbreak\r\n::error::forged",
    "\x1b[31m\x1b]8;;http://evil.example\x07",
    "\u202egnorw\u2066",
    "\u2028\u2029\x85\x00",
    "\ud800",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "</script><!--",
    "{{ 7 * 7 }}${7*7}",
    "[bold red]x[/]",
    "| a | `b` **c**",
    "-k --muscle-old=python:os:getcwd",
    "x" * 10_000,
    "",
    " ",
)
TEXT = st.text(max_size=20) | st.sampled_from(HOSTILE)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def attempt(action):
    """What an action gives, or the error of ours that it raises; no other may come of it."""
    try:
        return action()
    except MuscleError as error:
        return error


@st.composite
def changed(draw, thing, changes=3):
    """Well-formed JSON in which up to so many values are replaced, moved about or left out."""
    thing = deepcopy(thing)
    for _ in range(draw(st.integers(0, changes))):
        places = [(container, key) for container, key in _places(thing)]
        container, key = draw(st.sampled_from(places))
        if draw(st.integers(0, 3)) == 0:
            del container[key]
        else:
            other, its = draw(st.sampled_from(places))
            container[key] = draw(
                JSON | st.just(deepcopy(other.get(its)) if isinstance(other, dict) else None)
            )
        if not thing:
            break
    return thing


def _places(thing):
    pairs = thing.items() if isinstance(thing, dict) else enumerate(thing)
    for key, value in list(pairs):
        yield thing, key
        if isinstance(value, dict | list):
            yield from _places(value)
