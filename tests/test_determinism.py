"""The same inputs give the same result, whatever the batches, the order of the cases and the workers."""

import json
import random
from pathlib import Path

import pytest

from pytest_muscle import compare

TOPICS = ("parcel", "bill", "apples", "late order", "refund")
CHOICES = ("on its way", "in the box", "paid twice", "not happy", "12")
COUNT = 40
SMALLEST, LARGER = 16, 300
"""Tokens in a batch: about one case, and some."""


def records():
    draw = random.Random(0)
    for i in range(COUNT):
        topic, tags = draw.choice(TOPICS), {"half": str(i % 2)}
        prompt = f"Question {i}: what of the {topic}?\nAnswer:"
        if i % 3 == 0:
            asked = {"prompt": prompt, "choices": draw.sample(CHOICES, 4), "answer": draw.randrange(4)}
        elif i % 3 == 1:
            asked = {"prompt": prompt, "answer": "the box", "extract": "(b[a-z]*)", "max_new_tokens": 6}
        else:
            asked = {"prompt": f"About the {topic}", "answer": topic, "metric": "rouge1", "max_new_tokens": 8}
        yield {"id": f"case-{i}", "tags": tags, **asked}


@pytest.fixture
def golden(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return write(records())


def write(cases):
    Path("golden.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    return "golden.jsonl"


@pytest.fixture
def run(golden, tiny_model, tiny_model_b, tmp_path):
    def run(**options):
        compare(
            str(tiny_model),
            str(tiny_model_b),
            golden,
            json="result.json",
            no_cache=True,
            device="cpu",
            thresholds={"max_nfr": {"limit": 0.1, "decision": "significant"}, "max_mean_regression": 0.1},
            **options,
        )
        return (tmp_path / "result.json").read_bytes()

    return run


def apart(result: bytes):
    """The result without its log-likelihoods, and these."""
    parsed = json.loads(result)
    values = [
        value
        for case in sorted(parsed["cases"], key=lambda case: case["id"])
        for side in ("old", "new")
        for value in case[side].pop("loglikelihoods", ())
    ]
    return parsed, values


def test_a_run_repeats_itself_to_the_byte(run):
    first = run()
    assert run() == first
    flips = {case["flip"] for case in json.loads(first)["cases"]}
    assert len(flips) > 3


@pytest.mark.parametrize("batch_tokens", [SMALLEST, LARGER])
def test_the_size_of_a_batch_changes_nothing_but_the_last_digit_of_a_loglikelihood(run, batch_tokens):
    (one, values), (other, theirs) = apart(run()), apart(run(batch_tokens=batch_tokens))
    assert json.dumps(other) == json.dumps(one)
    assert theirs == pytest.approx(values, abs=1.5e-3)


def test_the_order_of_the_cases_is_that_of_the_result_and_changes_nothing_else(run):
    one, values = apart(run())
    write(random.Random(1).sample(list(records()), COUNT))
    other, theirs = apart(run())
    assert [case["id"] for case in other["cases"]] != [case["id"] for case in one["cases"]]
    for result in (one, other):
        result["cases"].sort(key=lambda case: case["id"])
    assert json.dumps(other) == json.dumps(one)
    assert theirs == pytest.approx(values, abs=1.5e-3)


@pytest.mark.slow
def test_workers_change_nothing_but_the_last_digit_of_a_loglikelihood(pytester, tiny_model, tiny_model_b):
    write(records())
    command = [f"--muscle-old={tiny_model}", f"--muscle-new={tiny_model_b}", "--muscle-golden=golden.jsonl"]
    found = []
    for workers in ([], ["-n", "2"], ["-n", "2"]):
        pytester.runpytest_subprocess(
            *command, "--muscle-no-cache", "--muscle-device=cpu", "--muscle-json=result.json", *workers
        )
        found.append((pytester.path / "result.json").read_bytes())
    (one, values), (other, theirs) = apart(found[0]), apart(found[1])
    assert json.dumps(other) == json.dumps(one)
    assert theirs == pytest.approx(values, abs=1.5e-3)
    assert found[2] == found[1]


def test_the_result_rounds_and_the_recording_does_not(golden, tmp_path):
    write([{"id": "c", "prompt": "?", "choices": ["a", "b"], "answer": 0}])
    exact = [-1.23456789, -2.0004999]
    (tmp_path / "model.jsonl").write_text(json.dumps({"id": "c", "loglikelihoods": exact}) + "\n")
    model = "recorded:model.jsonl"
    compare(model, model, golden, json="result.json", record="recorded")
    (case,) = json.loads((tmp_path / "result.json").read_text())["cases"]
    assert case["old"]["loglikelihoods"] == [-1.235, -2.0]
    assert json.loads((tmp_path / "recorded" / "old.jsonl").read_text())["loglikelihoods"] == exact
