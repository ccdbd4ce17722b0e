"""Which records the old model may teach, and where it is too weak."""

from __future__ import annotations

import pytest
import torch

from pytest_muscle.adapter.standing import standing, too_weak
from pytest_muscle.golden import parse_case
from pytest_muscle.grading import Grade

RIGHT, WRONG = Grade(True, "a", 1.0), Grade(False, "b", 0.0)


def case(number, **fields):
    record = {"prompt": f"question {number}", "answer": "a", **fields}
    return parse_case(record, "records", number, {})


def records(groups):
    """Cases and both models' grades from {group: (records, old right, new right)}."""
    cases, old, new = [], [], []
    for name, (count, by_old, by_new) in groups.items():
        for number in range(count):
            cases.append(case(f"{name}-{number}", tags={"lang": name}))
            old.append(RIGHT if number < by_old else WRONG)
            new.append(RIGHT if number < by_new else WRONG)
    return cases, old, new


def test_old_may_teach_what_it_answers_right():
    cases = [case(number) for number in range(4)]
    summary = case(9, metric="rouge1")
    old = [RIGHT, RIGHT, WRONG, WRONG, Grade(None, "", 0.4)]
    new = [RIGHT, WRONG, RIGHT, WRONG, Grade(None, "", 0.5)]
    found = standing([*cases, summary], old, new, torch.device("cpu"))
    numbers = torch.tensor([4, 0, 1, 2, 3])
    assert found.trusted("none", numbers) is None
    assert found.trusted("right", numbers).tolist() == [False, True, True, False, False]
    assert found.trusted("flips", numbers).tolist() == [False, False, True, False, False]


def test_a_text_that_became_worse_is_a_flip():
    old, new = Grade(None, "", 0.5), Grade(None, "", 0.4)
    found = standing([case(0, metric="rouge1")] * 2, [old, new], [new, new], torch.device("cpu"))
    assert found.trusted("flips", torch.arange(2)).tolist() == [True, False]
    assert found.trusted("right", torch.arange(2)).tolist() == [True, True]


def test_the_group_guard_takes_out_the_groups_in_which_old_is_clearly_worse():
    cases, old, new = records({"de": (100, 50, 90), "en": (100, 80, 82)})
    found = standing(cases, old, new, torch.device("cpu"))
    assert found.trusted("groups", torch.arange(200)).tolist() == [False] * 100 + [True] * 100


def test_groups_are_the_group_field_where_there_is_one():
    cases = [case(n, tags={"lang": "de"}, group="x" if n % 2 else "y") for n in range(100)]
    old = [RIGHT if n % 2 else WRONG for n in range(100)]
    found = standing(cases, old, [RIGHT] * 100, torch.device("cpu"))
    assert found.trusted("groups", torch.arange(4)).tolist() == [False, True, False, True]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({"de": (100, 50, 90), "en": (100, 80, 82)}, "on lang=en it is not clearly worse"),
        ({"de": (100, 50, 90), "en": (100, 50, 90)}, "it is so on every slice"),
        ({"de": (100, 80, 90), "en": (100, 80, 90)}, None),
        ({"de": (8, 4, 6)}, None),
    ],
)
def test_an_old_model_that_is_much_worse_is_named_too_weak(groups, expected):
    found = too_weak(*records(groups))
    assert (found is None) is (expected is None)
    if expected:
        assert "points less accurate" in found
        assert found.endswith(expected)
