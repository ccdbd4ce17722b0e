from __future__ import annotations

import random

import pytest

from pytest_muscle.adapter.overlap import find_overlaps, refuse_overlaps
from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import GoldenCase

WORDS = [a + b for a in ("ka", "lo", "mi", "nu", "pe", "ra", "so") for b in ("bar", "den", "fil", "gor")]


def case(prompt, id="x", dataset="train.jsonl", line=1, **fields):
    return GoldenCase(id, dataset, "exact_match", ("1",), prompt=prompt, line=line, **fields)


def pairs(train, golden):
    return [(each.train.id, each.golden.id) for each in find_overlaps(train, golden)]


def sentence(seed, length=20):
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def test_equal_but_for_case_punctuation_and_space():
    train = [case("What is  2 + 3?\n", "a"), case("What is 2 + 4?", "b")]
    assert pairs(train, [case("what is 2+3", "g")]) == [("a", "g")]


def test_choices_are_part_of_the_question():
    ask = "Which sentence is right?"
    golden = [case(ask, "g", choices=("Cats bark", "Dogs bark"))]
    same = case(ask, "same", choices=("cats bark.", "dogs bark."))
    other = case(ask, "other", choices=("Fish fly", "Birds fly"))
    assert pairs([same, other], golden) == [("same", "g")]


def test_messages_are_compared_by_their_content():
    messages = ({"role": "user", "content": "Name the capital of Peru"},)
    assert pairs([case("name the capital of Peru!", "a")], [case("", "g", messages=messages)]) == [("a", "g")]


def test_near_duplicates():
    text = sentence(1, 40)
    edited = text.replace(text.split()[20], "changed", 1)
    longer = "Before that, something new. " + text
    train = [case(edited, "edited"), case(longer, "longer"), case(sentence(2, 40), "new")]
    assert pairs(train, [case(text, "g")]) == [("edited", "g"), ("longer", "g")]


def test_a_shared_template_is_no_overlap():
    block = sentence(0, 200)
    train = [case(f"{block} {sentence(i, 12)}", f"t{i}") for i in range(100)]
    golden = [case(f"{block} {sentence(i, 12)}", f"g{i}") for i in range(1000, 1100)]
    assert pairs(train, golden) == []
    copied = case(f"{block} {sentence(1003, 12)} {block}", "copied")
    assert pairs([*train, copied], golden) == [("copied", "g1003")]


def test_a_record_inside_a_longer_case_is_found_behind_the_template():
    block = sentence(0, 200)
    train = [case(f"{block} {sentence(i, 12)}", f"t{i}") for i in range(100)]
    golden = [case(f"{block} {sentence(i, 12)} {sentence(2 * i, 300)}", f"g{i}") for i in range(60, 70)]
    assert pairs(train, golden) == [(f"t{i}", f"g{i}") for i in range(60, 70)]


def test_text_without_spaces():
    text = "東京は日本の首都であり世界でも有数の大都市である"
    assert pairs([case(text + "。とても大きい", "a")], [case(text, "g")]) == [("a", "g")]
    assert pairs([case("大阪は西日本の中心でたこ焼きが名物の街です", "a")], [case(text, "g")]) == []


def test_prompts_of_symbols_only_are_compared_as_they_are():
    assert pairs([case("+++", "a"), case("---", "b")], [case("---", "g")]) == [("b", "g")]


def test_the_error_names_the_records():
    train = [case(f"question number {i}", f"t{i}", line=i + 1) for i in range(12)]
    golden = [case(f"Question number {i}", f"g{i}", "golden.jsonl", i + 5) for i in range(12)]
    with pytest.raises(MuscleError, match="12 of 12 training records overlap") as caught:
        refuse_overlaps(train, golden)
    message = str(caught.value)
    assert "train.jsonl:3 (t2) repeats golden.jsonl:7 (g2)" in message
    assert "and 2 more" in message
    assert "allow_overlap" in message
    refuse_overlaps(train[:1], golden[1:])
