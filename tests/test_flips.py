"""Two grades make one flip, whatever they are."""

import pytest
from cases import OTHER, RIGHT, WRONG, result, scored
from hypothesis import given
from hypothesis import strategies as st

from pytest_muscle.flips import Flip, judge
from pytest_muscle.golden import GoldenCase
from pytest_muscle.grading import Grade

ANSWERED = set(Flip) - {Flip.UNCHANGED}


@pytest.mark.parametrize(
    ("old", "new", "flip", "delta"),
    [
        (RIGHT, RIGHT, Flip.BOTH_CORRECT, 0.0),
        (RIGHT, WRONG, Flip.NEGATIVE, -1.0),
        (WRONG, RIGHT, Flip.POSITIVE, 1.0),
        (WRONG, WRONG, Flip.BOTH_WRONG, 0.0),
        (WRONG, OTHER, Flip.INCONSISTENCY, 0.0),
        (RIGHT, "", Flip.NEGATIVE, -1.0),
        ("", RIGHT, Flip.POSITIVE, 1.0),
        ("", " ", Flip.BOTH_WRONG, 0.0),
        ("", WRONG, Flip.INCONSISTENCY, 0.0),
        ("$1.00", "1", Flip.BOTH_CORRECT, 0.0),
        ("2.0", "$2", Flip.BOTH_WRONG, 0.0),
    ],
)
def test_exact_matches(old, new, flip, delta):
    judged = result(old, new)
    assert (judged.flip, judged.delta, judged.error) == (flip, delta, None)


@pytest.mark.parametrize(
    ("old", "new", "flip"),
    [
        (0, 0, Flip.BOTH_CORRECT),
        (0, 1, Flip.BOTH_CORRECT_CHANGED),
        (1, 2, Flip.NEGATIVE),
        (2, 1, Flip.POSITIVE),
        (2, 2, Flip.BOTH_WRONG),
        (2, 3, Flip.INCONSISTENCY),
    ],
)
def test_choices_of_which_two_are_right(old, new, flip):
    case = GoldenCase("id", "d", "multiple_choice", (0, 1), choices=("a", "b", "c", "d"))
    grades = [Grade(each in case.answer, each, float(each in case.answer)) for each in (old, new)]
    assert judge(case, None, None, *grades).flip is flip


def test_an_unjudged_side_is_no_flip_and_named():
    for old, new, error in (
        (None, RIGHT, "old model: it timed out"),
        (RIGHT, None, "new model: it timed out"),
        (None, None, "old model: it timed out"),
    ):
        judged = result(old, new)
        assert (judged.flip, judged.delta, judged.error) == (None, None, error)


@pytest.mark.parametrize(
    ("new", "tolerance", "flip"),
    [
        (0.5, 0.0, Flip.UNCHANGED),
        (0.5000001, 0.0, Flip.POSITIVE),
        (0.4999999, 0.0, Flip.NEGATIVE),
        (0.625, 0.125, Flip.UNCHANGED),
        (0.375, 0.125, Flip.UNCHANGED),
        (0.75, 0.125, Flip.POSITIVE),
        (0.25, 0.125, Flip.NEGATIVE),
    ],
)
def test_generations_and_their_tolerance(new, tolerance, flip):
    each = scored(0.5, new)
    judged = judge(each.case, each.old, each.new, each.old_grade, each.new_grade, tolerance)
    assert judged.flip is flip
    assert judged.delta == new - 0.5


GRADES = st.builds(
    lambda correct, answer: Grade(correct, answer, float(correct)),
    st.booleans(),
    st.sampled_from(["a", "b", None]),
).filter(lambda grade: not (grade.correct and grade.answer is None))


@given(GRADES, GRADES)
def test_flips_part_the_pairs_of_grades(old, new):
    case = GoldenCase("id", "d", "exact_match", ("a",))
    same, flip = old.answer == new.answer, judge(case, None, None, old, new).flip
    holds = {
        Flip.BOTH_CORRECT: old.correct and new.correct and same,
        Flip.BOTH_CORRECT_CHANGED: old.correct and new.correct and not same,
        Flip.NEGATIVE: old.correct and not new.correct,
        Flip.POSITIVE: not old.correct and new.correct,
        Flip.BOTH_WRONG: not old.correct and not new.correct and same,
        Flip.INCONSISTENCY: not old.correct and not new.correct and not same,
    }
    assert holds.keys() == ANSWERED
    assert [each for each, does in holds.items() if does] == [flip]


@given(GRADES, GRADES)
def test_turning_the_models_round_turns_the_flip_round(old, new):
    case = GoldenCase("id", "d", "exact_match", ("a",))
    forth, back = judge(case, None, None, old, new), judge(case, None, None, new, old)
    turned = {Flip.NEGATIVE: Flip.POSITIVE, Flip.POSITIVE: Flip.NEGATIVE}
    assert forth.flip is not None
    assert back.flip is turned.get(forth.flip, forth.flip)
    assert forth.delta == -(back.delta or 0.0)


def test_words_and_regressions():
    assert [flip for flip in Flip if flip.is_regression] == [Flip.INCONSISTENCY, Flip.NEGATIVE]
    assert Flip.BOTH_CORRECT_CHANGED.words == "both correct changed"
    assert str(Flip.NEGATIVE) == "negative_flip"
