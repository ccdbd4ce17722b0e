"""Accepted flips: what they accept, when they stop, and the file they live in."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from anything import attempt
from hypothesis import given
from hypothesis import strategies as st

from pytest_muscle.accepted import AcceptedFlip, AcceptedFlips, answer_digest, read_accepted, to_toml
from pytest_muscle.errors import MuscleError
from pytest_muscle.flips import CaseResult, Flip, judge
from pytest_muscle.golden import GoldenCase
from pytest_muscle.grading import grade, make_similarity
from pytest_muscle.models import Response

TODAY = date(2030, 5, 17)


def result(case_id: str, old: str, new: str, answer: str = "yes") -> CaseResult:
    case = GoldenCase(case_id, "golden/qa.jsonl", "exact_match", (answer,), prompt="?")
    return _judged(case, Response(old), Response(new))


def _judged(case: GoldenCase, old: Response, new: Response) -> CaseResult:
    before, after = (grade([case], [response], make_similarity())[0] for response in (old, new))
    return judge(case, old, new, before, after)


NEGATIVE = result("a", "yes", "no")
INCONSISTENT = result("b", "maybe", "no")
RIGHT = result("c", "yes", "yes")


def accepting(*results: CaseResult) -> AcceptedFlips:
    return AcceptedFlips(today=TODAY).renewed(results)


def with_entry(accepted: AcceptedFlips, **changes: Any) -> AcceptedFlips:
    return replace(accepted, flips={key: replace(flip, **changes) for key, flip in accepted.flips.items()})


def test_accepts_regressions_and_nothing_else() -> None:
    accepted = accepting(NEGATIVE, INCONSISTENT, RIGHT)
    assert [(each.id, each.flip, each.date) for each in accepted.flips.values()] == [
        ("a", Flip.NEGATIVE, TODAY),
        ("b", Flip.INCONSISTENCY, TODAY),
    ]
    assert accepted.find(NEGATIVE) is accepted.flips[NEGATIVE.case.key]
    assert accepted.find(RIGHT) is None
    assert accepted.stale([NEGATIVE, INCONSISTENT, RIGHT]) == []


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (result("a", "yes", "never"), "the new answer has changed"),
        (result("a", "maybe", "no"), "the negative flip has become: inconsistency flip"),
        (result("a", "yes", "yes"), "the case flips no more"),
    ],
)
def test_stops_when_the_case_changes(now: CaseResult, why: str) -> None:
    accepted = accepting(NEGATIVE)
    assert accepted.find(now) is None
    assert [(stale.accepted.id, stale.why) for stale in accepted.stale([now])] == [("a", why)]


def test_holds_through_its_last_day() -> None:
    accepted = with_entry(accepting(NEGATIVE), expires=date(2030, 6, 1))
    assert replace(accepted, today=date(2030, 6, 1)).find(NEGATIVE) is not None
    expired = replace(accepted, today=date(2030, 6, 2))
    assert expired.find(NEGATIVE) is None
    assert [stale.sentence() for stale in expired.stale([NEGATIVE])] == [
        "muscle-accepted.toml: the line of golden/qa.jsonl::a can go: it expired after 2030-06-01"
    ]


def test_case_that_is_gone_is_stale_and_unanswered_one_is_not() -> None:
    accepted = accepting(NEGATIVE)
    assert [stale.why for stale in accepted.stale([], gone=[NEGATIVE.case.key])] == ["there is no such case"]
    unanswered = _judged(NEGATIVE.case, Response("yes"), Response(error="timeout"))
    assert accepted.find(unanswered) is None
    assert accepted.stale([unanswered]) == []
    assert accepted.renewed([unanswered]).flips == accepted.flips


def test_renewing_keeps_what_holds_and_drops_what_can_go() -> None:
    accepted = with_entry(accepting(NEGATIVE, INCONSISTENT), reason="wrong truth", date=date(2029, 1, 1))
    healed = result("a", "yes", "yes")
    later = replace(accepted, today=date(2031, 1, 1)).renewed(
        [healed, INCONSISTENT, result("d", "yes", "no")]
    )
    assert [(each.id, each.date.year, each.reason) for each in later.flips.values()] == [
        ("b", 2029, "wrong truth"),
        ("d", 2031, ""),
    ]
    assert [each.id for each in later.unexplained()] == ["d"]
    assert accepted.renewed([], gone=[NEGATIVE.case.key]).flips.keys() == {INCONSISTENT.case.key}


def test_renewing_an_expired_flip_keeps_its_reason_but_a_new_answer_needs_a_new_one() -> None:
    old = with_entry(accepting(NEGATIVE), reason="known", expires=date(2030, 1, 1))
    (renewed,) = old.renewed([NEGATIVE]).flips.values()
    assert (renewed.reason, renewed.date, renewed.expires) == ("known", TODAY, None)
    (changed,) = old.renewed([result("a", "yes", "never")]).flips.values()
    assert changed.reason == ""


def test_choice_is_known_by_its_text() -> None:
    case = GoldenCase("a", "d", "multiple_choice", (0,), prompt="?", choices=("x", "y", "z"))
    flipped = _judged(case, Response(choice=0), Response(choice=1))
    reordered = replace(case, choices=("x", "z", "y"))
    assert answer_digest(flipped) == answer_digest(_judged(reordered, Response(choice=0), Response(choice=2)))
    assert answer_digest(flipped) != answer_digest(_judged(case, Response(choice=0), Response(choice=2)))


TEXTS = st.text(max_size=20) | st.sampled_from(
    ['"""', "\\", "\ud800", "\x00\x1b[31m\r\n", "\u202e", "[[accepted]]"]
)


@given(case_id=TEXTS, reason=TEXTS, expires=st.none() | st.dates())
def test_file_reads_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, case_id: str, reason: str, expires: date | None
) -> None:
    flipped = result(case_id, "yes", "no")
    accepted = with_entry(
        accepting(flipped, INCONSISTENT), reason=reason.replace("\ud800", ""), expires=expires
    )
    path = tmp_path_factory.mktemp("toml") / "muscle-accepted.toml"
    path.write_text(to_toml(accepted), "utf-8")
    again = read_accepted(path, TODAY)
    assert again == accepted
    holds = expires is None or expires >= TODAY
    assert (again.find(flipped) is not None) is holds
    assert to_toml(again) == to_toml(accepted)


def test_file_is_a_sorted_list_with_one_line_a_key() -> None:
    text = to_toml(accepting(result("z", "yes", "no"), NEGATIVE))
    assert [entry["id"] for entry in tomllib.loads(text)["accepted"]] == ["a", "z"]
    assert text.split("\n\n")[1] == (
        '[[accepted]]\ndataset = "golden/qa.jsonl"\nid = "a"\nflip = "negative_flip"\n'
        f'new_answer = "{answer_digest(NEGATIVE)}"\nreason = ""\ndate = 2030-05-17'
    )


def test_no_file_accepts_nothing(tmp_path: Path) -> None:
    assert read_accepted(tmp_path / "muscle-accepted.toml", TODAY).find(NEGATIVE) is None


ENTRY = """[[accepted]]
dataset = "d"
id = "a"
flip = "negative_flip"
new_answer = "0123"
date = 2030-01-01
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[accepted]", "cannot be read as TOML"),
        ("[other]", "must hold nothing but [[accepted]] entries"),
        (ENTRY.replace("id =", "idd ="), "entry 1: unknown key 'idd'; did you mean 'id'?"),
        (ENTRY.replace('id = "a"\n', ""), "entry 1: 'id' is missing"),
        (ENTRY.replace('"a"', "7"), "entry 1: 'id' must be a text, not 7"),
        (ENTRY.replace("negative", "positive"), "'flip' must be one of inconsistency_flip, negative_flip"),
        (ENTRY.replace("2030-01-01", '"soon"'), "'date' must be a day such as 2030-12-31, not 'soon'"),
        (ENTRY + "expires = 2030-01-01T00:00:00", "'expires' must be a day"),
        (ENTRY + ENTRY, "entry 2: d::a is accepted twice"),
    ],
)
def test_bad_file_is_an_error_that_says_where(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "muscle-accepted.toml"
    path.write_text(text)
    with pytest.raises(MuscleError) as caught:
        read_accepted(path, TODAY)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_entry_of_unknown_dataset_is_left_alone() -> None:
    elsewhere = AcceptedFlip("other.jsonl", "a", Flip.NEGATIVE, "0", TODAY)
    accepted = AcceptedFlips({elsewhere.key: elsewhere}, TODAY)
    assert accepted.stale([NEGATIVE]) == []
    assert elsewhere.key in accepted.renewed([NEGATIVE]).flips


TOML = (
    '[[accepted]]\ndataset = "golden/qa.jsonl"\nid = "a"\nflip = "negative_flip"\nnew_answer = "0123"\n'
    'reason = "seen"\ndate = 2030-05-17\nexpires = 2030-06-01\n'
)


@given(
    st.lists(
        st.tuples(st.integers(0, len(TOML)), st.integers(0, 30), st.text(max_size=5) | TEXTS), max_size=3
    )
)
def test_any_file_is_accepted_flips_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int, str]]
) -> None:
    text = TOML * 2
    for start, length, instead in edits:
        text = text[:start] + instead + text[start + length :]
    path = tmp_path_factory.getbasetemp() / "any-accepted.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    found = attempt(lambda: read_accepted(path, TODAY))
    if isinstance(found, MuscleError):
        assert str(found).startswith(str(path))
    else:
        assert read_accepted(path, TODAY) == found
        found.find(result("a", "yes", "no"))
