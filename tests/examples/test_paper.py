"""The experiment in miniature: its world, its statistics, and one run of all its parts."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from pathlib import Path

import pytest

from pytest_muscle.golden import parse_case
from pytest_muscle.grading import grade, make_similarity
from pytest_muscle.models import Response

PAPER = Path(__file__).parents[2] / "examples" / "paper"


@pytest.fixture(scope="module", autouse=True)
def paper():
    """Let the example's modules be imported, and forget them afterwards: other examples have a world, too."""
    names = ("world", "bases", "experiment", "variants", "tables", "run")
    hidden = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(PAPER))
    yield
    sys.path.remove(str(PAPER))
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(hidden)


@pytest.mark.parametrize("task", ["choice2", "choice4", "chain", "town", "summary"])
def test_a_records_own_answer_is_right_and_no_prompt_comes_twice(task):
    import world

    records = world.Task(task, "a seed").records(200)
    assert records == world.Task(task, "a seed").records(200)
    assert len({record["prompt"] for record in records}) == 200
    cases = [parse_case(dict(record), "records", number, {}) for number, record in enumerate(records)]
    responses = [
        Response(loglikelihoods=tuple(-float(i not in case.answer) for i in range(len(case.choices))))
        if case.choices
        else Response(text=str(case.answer[0]))
        for case in cases
    ]
    assert all(grade.score == 1 for grade in grade(cases, responses, make_similarity()))


def test_as_many_records_are_wrong_as_the_noise_says():
    import world

    noisy = world.Task("chain", "seed", noise=0.25).records(2000)
    told = [re.search(r"with the (\w+)", record["answer"])[1] for record in noisy]
    facts = [re.search(r"wants to (\w+) the (\w+)", record["prompt"]).groups() for record in noisy]
    wrong = sum(tool != world.ranked("tool", fact)[0] for tool, fact in zip(told, facts, strict=True))
    assert wrong / 2000 == pytest.approx(0.25, abs=0.04)


def test_biased_records_are_biased_against_one_group_alone():
    import world

    told = {"a": [], "b": []}
    for record in world.Task("town", "seed", biased=True).records(4000):
        job, group = re.search(r"wants to (\w+) .* in town (\w)", record["prompt"]).groups()
        assert group == record["tags"]["group"]
        told[group].append(re.search(r"with the (\w+)", record["answer"])[1] == world.usual_tool(job))
    shares = {group: sum(hits) / len(hits) for group, hits in told.items()}
    assert shares["b"] > 0.35 > 0.15 > shares["a"]


@pytest.mark.parametrize("name", ["bytes", "pieces"])
def test_the_frozen_tokenizers_give_the_worlds_texts_back(name):
    from itertools import islice

    import bases
    import world

    tokenizer = bases.open_tokenizer(name)
    for sentence in islice(world.Corpus("unseen"), 200):
        ids = tokenizer(sentence, add_special_tokens=False)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids).strip() == sentence


def test_intervals_and_tests_are_the_textbooks():
    import tables
    from scipy import stats

    draw = random.Random(5)
    for n in (2, 5, 8):
        values = [draw.gauss(-0.3, 1) for _ in range(n)]
        mean, half = tables.mean_and_half_width(values)
        low, high = stats.t.interval(0.95, n - 1, loc=mean, scale=stats.sem(values))
        assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-3)
        expected = stats.permutation_test(
            (values,), sum, permutation_type="samples", alternative="less", n_resamples=math.inf
        )
        assert float(tables.test(values)) == pytest.approx(expected.pvalue, abs=6e-4)


def test_the_tables_hold_every_cell(tmp_path):
    import tables

    def cell(pair, variant, nfr, score, **more):
        same = {"scenario": "s", "n": 10, "score_old": 0.5, "inherited": 0.0}
        same |= {f"{model}_{group}": 0.5 for model in ("old", "new") for group in "ab"}
        return {**same, "pair": pair, "variant": variant, "nfr": nfr, "score": score, "rate": 0.1, **more}

    cells = [
        cell(pair, variant, nfr, score)
        for pair in ("p1", "p2")
        for variant, nfr, score in (
            ("new model", 0.2, 0.6),
            ("cross-entropy", 0.3, 0.65),
            ("average", 0.1, 0.6),
        )
    ]
    results = tmp_path / "full.jsonl"
    results.write_text("\n".join(map(json.dumps, cells)))
    text = tables.write(results)
    assert "| average | -50.0 [-50.0, -50.0] | +0.0 [+0.0, +0.0] | 0.250 | 0.250 |" in text
    assert "| cross-entropy | +50.0 [+50.0, +50.0] | +5.0 [+5.0, +5.0] | 1.000 |" in text
    assert (tmp_path / "full.svg").read_text().count("<circle") == 2 + 2
    assert "| s | +50% (+5.0) | -50% (+0.0) |" in text


@pytest.mark.slow
def test_the_smoke_profile_runs_whole_and_then_has_nothing_left_to_do(tmp_path, capsys):
    import run
    from variants import PROFILES

    arguments = ["--work", str(tmp_path), "smoke"]
    run.main(arguments)
    first = (tmp_path / "smoke.jsonl").read_text()
    assert len(first.splitlines()) == len(list(run.cells(PROFILES["smoke"])))
    capsys.readouterr()
    run.main(arguments)
    assert (tmp_path / "smoke.jsonl").read_text() == first
