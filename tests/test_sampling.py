"""Models asked several times: verdicts by majority, and the noise floor by simulation."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import OTHER, RIGHT, SET, WRONG, unused

from pytest_muscle import compare
from pytest_muscle.errors import MuscleError
from pytest_muscle.flips import Flip
from pytest_muscle.gates import decide, plan
from pytest_muscle.golden import GoldenCase
from pytest_muscle.models import Response
from pytest_muscle.sampling import compare_draws, excess_of, noise_of
from pytest_muscle.settings.values import Threshold
from pytest_muscle.statistics import wilson


def case(name="case", task="exact_match", **fields):
    return GoldenCase(name, SET, task, (RIGHT,), prompt="?", **fields)


def said(text):
    return Response(error="it timed out") if text is None else Response(text)


def drawn(old, new, **fields):
    """The result of one case; each character is one draw's text, ``!`` a failed call."""
    sides = [[[said(None if text == "!" else text)] for text in side] for side in (old, new)]
    (result,) = compare_draws([case(**fields)], *sides, unused)
    return result


def scored(old, new, tolerance=0.0):
    sides = [[[Response(str(score))] for score in side] for side in (old, new)]
    similarity = lambda metric, pairs: [float(text) for text, _ in pairs]  # noqa: E731
    (result,) = compare_draws([case(task="generation", metric="rouge1")], *sides, similarity, tolerance)
    return result


# The majority


@pytest.mark.parametrize(
    ("old", "new", "flip"),
    [
        ("11111", "11111", Flip.BOTH_CORRECT),
        ("11122", "22211", Flip.NEGATIVE),
        ("11111", "11222", Flip.NEGATIVE),
        ("22211", "11111", Flip.POSITIVE),
        ("22222", "33322", Flip.INCONSISTENCY),
        ("22223", "22233", Flip.BOTH_WRONG),
        ("11232", "11111", Flip.POSITIVE),
        ("1122", "1111", Flip.POSITIVE),
    ],
)
def test_the_majority_decides(old, new, flip):
    assert drawn(old, new).flip is flip


def test_the_response_shown_is_one_of_the_majority():
    result = drawn("23313", "11122")
    assert (result.old.text, result.new.text) == (OTHER, RIGHT)
    assert [response.text for response, _ in result.draws.old] == list("23313")


def test_the_models_may_be_asked_unequally_often():
    result = drawn("11111", "2")
    assert result.flip is Flip.NEGATIVE
    assert (result.draws.flips, result.draws.own) == (1.0, 0.0)
    assert drawn("1", "22222").draws.own is None


def test_a_generation_is_worth_the_mean_of_its_draws():
    result = scored((0.2, 0.5, 0.8), (0.1, 0.3, 0.5))
    assert result.old_grade.score == pytest.approx(0.5)
    assert result.delta == pytest.approx(-0.2)
    assert result.old.text == "0.5"


def test_failed_draws_are_left_out_while_most_are_judged():
    result = drawn("11!11", "1!2!2")
    assert result.flip is Flip.NEGATIVE
    assert result.draws.flips == pytest.approx(2 / 3)


def test_a_case_most_of_whose_draws_failed_is_an_error():
    result = drawn("11111", "1!!!1")
    assert result.flip is None
    assert result.error == "new model: 3 of 5 draws failed, the first: it timed out"
    assert noise_of([result, drawn("11112", "11111")]).n == 1


# What is unstable


@pytest.mark.parametrize(
    ("old", "new", "unstable"),
    [
        ("11111", "11112", False),
        ("11111", "11122", True),
        ("12212", "22222", True),
        ("11112", "22221", False),
        ("22222", "33322", False),
    ],
)
def test_a_case_whose_draws_disagree_is_unstable(old, new, unstable):
    assert drawn(old, new).draws.unstable is unstable


def test_a_generation_that_moves_within_its_noise_is_unstable():
    assert scored((0.2, 0.5, 0.8), (0.1, 0.4, 0.7)).draws.unstable
    assert not scored((0.79, 0.8, 0.81), (0.1, 0.11, 0.12)).draws.unstable
    assert not scored((0.5, 0.5), (0.5, 0.5)).draws.unstable


# The noise floor


def test_self_flips_are_counted_over_all_pairs_of_draws():
    draws = drawn("11122", "12222").draws
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    old = [True, True, True, False, False]
    assert draws.own == pytest.approx(sum(old[i] and not old[j] for i, j in pairs) / len(pairs))
    assert draws.flips == pytest.approx(3 / 5 * 4 / 5)


def test_self_flips_of_scores_are_counted_over_all_pairs_of_draws():
    draws = scored((0.2, 0.3, 0.5), (0.1, 0.3), tolerance=0.15).draws
    assert draws.own == pytest.approx(2 / 6)
    assert draws.flips == pytest.approx(3 / 6)


def test_what_a_case_does_by_chance_is_estimated_without_bias():
    """A case right with chance p, wrong otherwise, flips against itself with p (1 - p)."""
    random = np.random.default_rng(0)
    sides = np.where(random.random((4_000, 2, 4)) < 0.7, RIGHT, WRONG)
    results = [drawn(old, new) for old, new in sides.tolist()]
    noise = noise_of(results)
    assert noise.self_flip_rate == pytest.approx(0.21, abs=0.01)
    assert noise.draw_nfr == pytest.approx(0.21, abs=0.01)
    assert noise.intervals["self_flip_rate"][0] < 0.21 < noise.intervals["self_flip_rate"][1]
    assert noise.intervals["excess_nfr"][0] == 0.0


def test_greedy_models_have_no_floor_but_an_interval():
    results = [drawn("11111", "11111", name=str(i)) for i in range(50)]
    noise = noise_of(results)
    assert (noise.self_flip_rate, noise.unstable) == (0.0, 0)
    assert noise.intervals["self_flip_rate"] == pytest.approx(wilson(0, 50))


def test_one_draw_each_has_no_floor():
    assert noise_of([drawn("1", "2")]) is None
    assert excess_of([drawn("1", "22222")]) is None


def test_the_floor_of_scores_is_in_standard_errors():
    random = np.random.default_rng(1)
    centres = random.uniform(0.3, 0.7, 300)
    old, new = (random.normal(centres[:, None] - shift, 0.05, (300, 5)) for shift in (0.0, 0.02))
    noise = noise_of([scored(*pair) for pair in zip(old.tolist(), new.tolist(), strict=True)])
    expected = math.sqrt(2 * 0.05**2 / 5 / 300)
    assert noise.delta_error == pytest.approx(expected, rel=0.1)
    assert noise.delta_errors == pytest.approx(-0.02 / expected, abs=3)


RUNS, CASES, BUDGET = 200, 300, 0.02


def gates_of(results, *names):
    planned = plan([each.case for each in results], [Threshold(name, BUDGET) for name in names])
    return {gate.name: gate.passed for gate in decide(planned, results)}


def test_identical_noisy_models_pass_where_one_draw_fails():
    """Each answer is wrong with a chance of 5%: nothing has changed, and one draw in 21 flips."""
    random = np.random.default_rng(2)
    seen = {}
    passed = {"naive": 0, "max_nfr": 0, "max_excess_nfr": 0}
    for _ in range(RUNS):
        wrong = random.random((CASES, 2, 5)) < 0.05
        kinds = np.unique(wrong.sum(axis=2), axis=0, return_counts=True)
        results = []
        for (old, new), count in zip(*(each.tolist() for each in kinds), strict=True):
            if (old, new) not in seen:
                seen[old, new] = drawn(*(WRONG * k + RIGHT * (5 - k) for k in (old, new)))
            results += [seen[old, new]] * count
        gates = gates_of(results, "max_nfr", "max_excess_nfr")
        for name, is_passed in gates.items():
            passed[name] += is_passed
        passed["naive"] += np.mean(~wrong[:, 0, 0] & wrong[:, 1, 0]) <= BUDGET
    assert passed["max_nfr"] >= 0.95 * RUNS
    assert passed["max_excess_nfr"] >= 0.95 * RUNS
    assert passed["naive"] < 0.5 * RUNS


def test_a_model_that_is_truly_worse_fails_for_all_its_noise():
    random = np.random.default_rng(3)
    sides = random.random((CASES, 2, 5)) < np.array([0.05, 0.13])[:, None]
    results = [drawn(*("".join(np.where(side, WRONG, RIGHT)) for side in each)) for each in sides]
    assert gates_of(results, "max_excess_nfr") == {"max_excess_nfr": False}


# From files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write("golden.jsonl", [{"id": f"c{i}", "prompt": "?", "answer": RIGHT} for i in range(3)])
    for side, draws in (("old", ["111", "121", "222"]), ("new", ["111", "222", "333"])):
        write(
            f"{side}.jsonl",
            [
                {"id": f"c{i}", "sample": k, "text": text}
                for i, each in enumerate(draws)
                for k, text in enumerate(each)
            ],
        )
    return tmp_path


def write(name, records):
    Path(name).write_text("".join(json.dumps(record) + "\n" for record in records))


def run(**options):
    return compare("recorded:old.jsonl", "recorded:new.jsonl", "golden.jsonl", **options)


def test_recorded_draws_are_compared(folder):
    comparison = run(samples=3)
    assert [result.flip for result in comparison.results] == [
        Flip.BOTH_CORRECT,
        Flip.NEGATIVE,
        Flip.INCONSISTENCY,
    ]
    plain = comparison.to_dict()
    assert plain["noise"]["self_flip_rate"] == pytest.approx(1 / 3 / 3)
    assert [result.case.id for result in comparison.unstable] == ["c1"]


def test_one_draw_is_the_first_and_the_others_are_told_of(folder):
    comparison = run()
    assert [result.old.text for result in comparison.results] == ["1", "1", "2"]
    assert comparison.noise is None
    assert any("--muscle-samples=3" in notice for notice in comparison.notices)


def test_too_few_recorded_draws_are_an_error_of_the_case(folder):
    error = run(samples=8).results[0].error
    assert error == "old model: 5 of 8 draws failed, the first: old.jsonl holds 3 of 8 draws of id 'c0'"


def test_the_same_draw_twice_is_refused(folder):
    write("old.jsonl", [{"id": "c0", "sample": 1, "text": "1"}] * 2)
    with pytest.raises(MuscleError, match=r"old.jsonl:2: a second response .* 'sample' of its own"):
        run(samples=3)


def test_each_model_may_be_asked_as_often_as_it_needs(folder):
    models = {"noisy": {"spec": "recorded:old.jsonl", "samples": 3}}
    comparison = compare("noisy", "recorded:new.jsonl", "golden.jsonl", models=models)
    assert (comparison.noise.draws_old, comparison.noise.draws_new) == (3, 1)


def test_the_excess_needs_several_draws_of_the_old_model(folder):
    with pytest.raises(MuscleError, match=r"max_excess_nfr.* needs the old model to be asked at least twice"):
        run(thresholds={"max_excess_nfr": 0.1})


def test_a_draw_is_a_request_of_its_own():
    assert len({case(draw=draw).request_digest() for draw in range(3)}) == 3


def test_draws_are_asked_apart_and_kept_apart(folder, monkeypatch):
    (folder / "assistants.py").write_text(
        "asked = []\n"
        "def noisy(case):\n"
        "    asked.append((case.id, case.draw))\n"
        "    return '12'[case.draw % 2]\n"
    )
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "assistants", raising=False)
    models = {"fixed": {"spec": "python:assistants:noisy", "revision": "1"}}
    for _ in range(2):
        comparison = compare("fixed", "recorded:new.jsonl", "golden.jsonl", samples=3, models=models)
        texts = [response.text for response, _ in comparison.results[0].draws.old]
        assert texts == ["1", "2", "1"]
    import assistants

    assert sorted(assistants.asked) == [(f"c{i}", draw) for i in range(3) for draw in range(3)]
