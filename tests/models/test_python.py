"""``python:module:callable``: the user's own system."""

import sys
from pathlib import Path

import pytest

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import GoldenCase
from pytest_muscle.models import ModelOptions, Response, open_model
from pytest_muscle.models.python import load_callable

SYSTEM = """
import numpy
from pytest_muscle import Response

answers = {}

def answer(case):
    value = answers[case.id]
    if isinstance(value, Exception):
        raise value
    return value

not_callable = 3
"""
TEXT = GoldenCase("text", "d.jsonl", "exact_match", ("4",), prompt="2 + 2 =")
CHOICE = GoldenCase("choice", "d.jsonl", "multiple_choice", (0,), prompt="Q?", choices=("yes", " no"))


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A module of the user's in the current folder; yields its module object."""
    (tmp_path / "my_system.py").write_text(SYSTEM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    load_callable("my_system:answer")
    yield sys.modules["my_system"]
    del sys.modules["my_system"]


def ask(system, case: GoldenCase, value: object) -> Response:
    system.answers[case.id] = value
    ((pair,),) = open_model("python:my_system:answer").respond([case])
    assert pair[0] is case
    return pair[1]


def test_texts_and_choices(system):
    import numpy

    assert ask(system, TEXT, "It is 4.") == Response(text="It is 4.")
    assert ask(system, TEXT, "") == Response(text="")
    assert ask(system, TEXT, 4) == Response(text="4")
    assert ask(system, CHOICE, 1) == Response(choice=1)
    assert ask(system, CHOICE, "no ") == Response(choice=1)
    chosen = ask(system, CHOICE, numpy.int64(1))
    assert chosen == Response(choice=1)
    assert type(chosen.choice) is int


def test_whole_responses_are_made_plain(system):
    import numpy

    given = Response(loglikelihoods=numpy.array([-1.5, -2.0], dtype="float32"), choice=numpy.int64(0))
    response = ask(system, CHOICE, given)
    assert response == Response(choice=0, loglikelihoods=(-1.5, -2.0))
    assert type(response.loglikelihoods[0]) is float
    assert ask(system, TEXT, Response(text="4", error="late")) == Response(text="4", error="late")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "returned None, neither a text nor a choice"),
        (True, "returned True, neither a text nor a choice"),
        (0.5, "returned 0.5, neither a text nor a choice"),
        ("\x1b[2J" * 1000, "returned '\\x1b[2J"),
        ("maybe", "returned 'maybe', which is none of the choices"),
        (Response(text=4), "returned a Response that cannot be used"),  # type: ignore[arg-type]
        (Response(choice="yes"), "returned a Response that cannot be used"),  # type: ignore[arg-type]
        (Response(loglikelihoods=("a",)), "returned a Response that cannot be used"),  # type: ignore[arg-type]
        (ValueError("no luck"), "raised ValueError: no luck"),
    ],
)
def test_what_cannot_be_used_makes_the_case_unjudgeable(system, value, message):
    response = ask(system, CHOICE, value)
    assert response.error
    assert response.error.startswith(f"python:my_system:answer {message}")
    assert len(response.error) < 150
    assert response.text is response.choice is None


def test_an_interrupt_is_not_an_answer(system):
    def interrupt(case):
        raise KeyboardInterrupt

    system.answer = interrupt
    with pytest.raises(KeyboardInterrupt):
        list(open_model("python:my_system:answer").respond([TEXT]))


def test_each_case_is_a_batch_so_that_each_answer_is_stored(system):
    system.answers.update(text="4", choice=1)
    batches = list(open_model("python:my_system:answer").respond([TEXT, CHOICE]))
    assert [len(batch) for batch in batches] == [1, 1]


def test_the_fingerprint_is_of_one_run_unless_a_revision_is_given(system):
    def fingerprint(**options: str) -> str:
        return open_model("python:my_system:answer", ModelOptions(**options)).fingerprint

    assert fingerprint(run_id="one") == fingerprint(run_id="one") != fingerprint(run_id="two")
    assert fingerprint(run_id="one", revision="v1") == fingerprint(run_id="two", revision="v1")
    assert fingerprint(revision="v1") != fingerprint(revision="v2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:f", "module 'no_such_module' cannot be imported: ModuleNotFoundError"),
        ("my_system", "module 'my_system' has no callable ''; write module:callable"),
        ("my_system:absent", "module 'my_system' has no callable 'absent'"),
        ("my_system:not_callable", "module 'my_system' has no callable 'not_callable'"),
        (":f", "module '' cannot be imported: ValueError"),
        (".relative:f", "module '.relative' cannot be imported: TypeError"),
        ("broken:f", "module 'broken' cannot be imported: SyntaxError"),
        ("failing:f", "module 'failing' cannot be imported: RuntimeError: no key"),
    ],
)
def test_what_is_not_there(system, name, message):
    Path("broken.py").write_text("def f(:\n")
    Path("failing.py").write_text("raise RuntimeError('no key')\n")
    with pytest.raises(MuscleError) as caught:
        load_callable(name)
    assert str(caught.value).startswith(f"{name}: {message}")
    with pytest.raises(MuscleError):
        open_model(f"python:{name}")
