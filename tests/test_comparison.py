"""A comparison: every figure of a run from one object, as JSON and as a table."""

import json
import math

import pytest
from cases import RIGHT, SET, result, results, scored

from pytest_muscle.comparison import SCHEMA, Comparison, ModelIdentity
from pytest_muscle.flips import Flip
from pytest_muscle.gates import Verdict, plan
from pytest_muscle.metrics import measure
from pytest_muscle.settings.values import Threshold

OLD, NEW = ModelIdentity("recorded:old.jsonl", "0a"), ModelIdentity("./candidate", "0b")
MIXED = [
    *results(both=6, lost=2, won=3, same=1, other=1, tags={"lang": "de"}),
    *results(both=4, failed=1, tags={"lang": "en"}, start=50),
    *[scored(0.5, 0.25, "s1", "golden/sums.jsonl"), scored(0.5, 1.0, "s2", "golden/sums.jsonl")],
]


def compared(judged=MIXED, *thresholds: Threshold, **fields) -> Comparison:
    by_dataset: dict[str, list] = {}
    for each in judged:
        by_dataset.setdefault(each.case.dataset, []).append(each.case)
    planned = [gate for cases in by_dataset.values() for gate in plan(cases, thresholds)]
    return Comparison(OLD, NEW, judged, planned=planned, **fields)


def test_metrics_of_all_of_each_dataset_and_of_each_slice():
    comparison = compared()
    assert comparison.metrics == measure(MIXED)
    assert list(comparison.datasets) == [SET, "golden/sums.jsonl"]
    questions, sums = comparison.datasets.values()
    assert questions.metrics == measure(MIXED[:18])
    assert sums.metrics == measure(MIXED[18:])
    assert dict(questions.slices) == {"lang=de": measure(MIXED[:13]), "lang=en": measure(MIXED[13:18])}
    assert dict(sums.slices) == {}


def test_quadrants_leave_out_generations_and_errors():
    assert compared().quadrants == {
        Flip.BOTH_CORRECT: 10,
        Flip.POSITIVE: 3,
        Flip.BOTH_WRONG: 1,
        Flip.INCONSISTENCY: 1,
        Flip.NEGATIVE: 2,
    }


def test_results_by_case_and_by_flip():
    comparison = compared()
    assert comparison.result(MIXED[7].case) is MIXED[7]
    assert [each.case.id for each in comparison.of(Flip.NEGATIVE)] == ["case-6", "case-7", "s1"]


def test_without_a_budget_every_flip_fails():
    verdicts = [each.verdict for each in compared().outcomes.values()]
    assert verdicts.count(Verdict.FAILED) == 4
    assert verdicts.count(Verdict.ERROR) == 1
    assert not compared().passed
    assert compared(results(both=3, won=2, same=1)).passed
    assert not compared(results(both=3, other=1)).passed
    assert not compared(results(both=3, failed=1)).passed


def test_a_budget_that_holds_passes_and_one_that_does_not_fails():
    judged = results(both=6, lost=2)
    assert compared(judged, Threshold("max_nfr", 0.25)).passed
    over = compared(judged, Threshold("max_nfr", 0.24))
    assert not over.passed
    assert [gate.passed for gate in over.gates] == [False]
    assert over.gate(over.planned[0]).value == 0.25


def test_what_is_beside_counts_for_gates_alone():
    judged = results(both=6, lost=2)
    whole = compared(judged, Threshold("max_nfr", 0.3))
    part = Comparison(OLD, NEW, judged[6:], beside=judged[:6], planned=whole.planned)
    assert [gate.value for gate in part.gates] == [0.25]
    assert part.metrics.nfr == 1.0
    assert part.outcomes.keys() == {each.case.key for each in judged[6:]}
    alone = Comparison(OLD, NEW, judged[6:], planned=whole.planned)
    assert [gate.passed for gate in alone.gates] == [None]


def test_the_json_result_has_its_stable_keys():
    found = json.loads(json.dumps(compared(MIXED, Threshold("max_nfr", 0.5)).to_dict()))
    assert found["schema"] == SCHEMA == "pytest-muscle/1"
    assert found["old"] == {"spec": "recorded:old.jsonl", "fingerprint": "0a", "choices": []}
    assert found["new"] == {"spec": "./candidate", "fingerprint": "0b", "choices": []}
    assert found["metrics"]["nfr"] == measure(MIXED).nfr
    assert found["datasets"][SET]["slices"]["lang=de"]["nfr"] == 2 / 13
    assert found["datasets"][SET]["metrics"]["score_old"] is None
    assert found["adapter"] is None
    gate = found["gates"][0]
    assert {"name", "scope", "limit", "value", "interval", "passed"} <= gate.keys()
    assert (gate["name"], gate["limit"], gate["value"], gate["passed"]) == ("max_nfr", 0.5, 2 / 17, True)
    assert len(found["cases"]) == len(MIXED)


def test_the_json_of_cases():
    cases = {case["id"]: case for case in compared().to_dict()["cases"]}
    lost = cases["case-6"]
    assert {"id", "dataset", "task", "tags", "flip", "outcome", "old", "new", "delta"} <= lost.keys()
    assert (lost["dataset"], lost["task"], lost["tags"]) == (SET, "exact_match", {"lang": "de"})
    assert (lost["flip"], lost["outcome"], lost["delta"]) == ("negative_flip", "failed", -1.0)
    assert lost["old"] == {"text": "1", "answer": "1", "correct": True, "score": 1.0}
    failed = cases["case-54"]
    assert (failed["flip"], failed["outcome"], failed["delta"]) == (None, "error", None)
    assert failed["new"] == {"error": "it timed out", "answer": None, "correct": None, "score": None}
    assert cases["s1"]["flip"] == "negative_flip"
    assert cases["s1"]["delta"] == -0.25


def test_a_table_with_one_row_a_case():
    frame = compared().to_frame()
    assert list(frame["id"]) == [each.case.id for each in MIXED]
    assert {"dataset", "task", "truth", "flip", "outcome", "delta", "tag.lang"} <= set(frame.columns)
    assert frame["flip"].value_counts()["negative_flip"] == 3
    rates = frame[frame.dataset == SET].groupby("tag.lang")["old_score"].mean()
    assert rates["de"] == 8 / 13
    row = frame[frame.id == "s2"].iloc[0]
    assert (row.old_score, row.new_score, row.delta) == (0.5, 1.0, 0.5)
    assert math.isnan(row["tag.lang"])


@pytest.mark.parametrize("judged", [[], [result(RIGHT, None)]])
def test_nothing_judged_is_no_trouble(judged):
    comparison = compared(judged, Threshold("max_nfr", 0.0)) if judged else Comparison(OLD, NEW, [])
    assert comparison.metrics.nfr is None
    assert json.loads(json.dumps(comparison.to_dict()))["metrics"]["nfr"] is None
    assert len(comparison.to_frame()) == len(judged)
    assert comparison.passed is not bool(judged)
