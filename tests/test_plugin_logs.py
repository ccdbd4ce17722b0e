"""Golden datasets and models out of what other tools logged, as a user of the plugin meets them."""

import json

import pytest


def write_samples(folder, answers):
    """Samples of lm-evaluation-harness: three documents, each with two choices, the first being right."""
    folder.mkdir(parents=True)
    samples = [
        {
            "doc_id": number,
            "doc": {"q": f"Q{number}?"},
            "target": "0",
            "arguments": {
                f"gen_args_{i}": {"arg_0": f"Q{number}?", "arg_1": f" {choice}"}
                for i, choice in enumerate(("yes", "no"))
            },
            "resps": [],
            "filtered_resps": [["-1.0", "False"], ["-0.5" if wrong else "-2.0", "False"]],
            "filter": "none",
            "metrics": ["acc"],
            "acc": float(not wrong),
        }
        for number, wrong in enumerate(answers)
    ]
    lines = "".join(json.dumps(sample) + "\n" for sample in samples)
    (folder / "samples_tiny_2026-01-02T03-04-05.678901.jsonl").write_text(lines)


def write_output(path, outputs):
    """Outputs of promptfoo: each provider's to the same tests, which want a 4; None is a failed call."""
    rows = [
        {
            "testIdx": test,
            "promptIdx": index,
            "prompt": {"raw": f"2+2? ({test})"},
            "provider": {"id": f"exec:{name}", "label": name},
            "vars": {},
            "testCase": {"assert": [{"type": "equals", "value": "4"}], "metadata": {"id": f"t{test}"}},
            "response": {"output": text},
            "failureReason": 2 if text is None else int(text != "4"),
            "error": "timeout" if text is None else None,
        }
        for index, (name, texts) in enumerate(outputs.items())
        for test, text in enumerate(texts)
    ]
    path.write_text(json.dumps({"results": {"version": 3, "results": rows}}))


@pytest.mark.parametrize("folder", ["logs/old", "logs/old/samples_tiny_*.jsonl"])
def test_two_runs_of_lm_eval_alone_make_the_comparison(pytester, folder):
    write_samples(pytester.path / "logs/old", [False, False, True])
    write_samples(pytester.path / "logs/new", [False, True, False])
    outcome = pytester.runpytest(
        "--muscle-old=lm-eval:logs/old", "--muscle-new=lm-eval:logs/new", f"--muscle-golden=lm-eval:{folder}"
    )
    outcome.assert_outcomes(passed=2, failed=1)
    name = "logs/old/samples_tiny_2026-01-02T03-04-05.678901.jsonl"
    outcome.stdout.fnmatch_lines([f"NEGATIVE FLIP {name}::1 - *"])


def test_one_output_of_promptfoo_is_golden_dataset_and_both_models(pytester):
    write_output(pytester.path / "out.json", {"old": ["4", "4", "5"], "new": ["4", None, "4"]})
    pytester.makepyprojecttoml("""
        [tool.pytest-muscle]
        old = "promptfoo:out.json#old"
        new = "promptfoo:out.json#new"
        golden = "promptfoo:out.json"
        json = "result.json"
    """)
    outcome = pytester.runpytest()
    outcome.assert_outcomes(passed=2, errors=1)
    cases = json.loads((pytester.path / "result.json").read_text())["cases"]
    assert [(case["id"], case["flip"], case["outcome"]) for case in cases] == [
        ("t0", "both_correct", "passed"),
        ("t1", None, "error"),
        ("t2", "positive_flip", "passed"),
    ]


def test_a_log_that_makes_no_golden_dataset_fails_to_collect(pytester):
    (pytester.path / "out.json").write_text("[]")
    models = ("--muscle-old=promptfoo:out.json", "--muscle-new=promptfoo:out.json")
    outcome = pytester.runpytest(*models, "--muscle-golden=promptfoo:out.json")
    outcome.assert_outcomes(errors=1)
    outcome.stdout.fnmatch_lines(["*out.json: not an output of promptfoo eval*"])


def test_no_log_in_a_folder(pytester):
    pytester.mkdir("empty")
    write_output(pytester.path / "out.json", {"old": ["4"]})
    models = ("--muscle-old=promptfoo:out.json", "--muscle-new=promptfoo:out.json")
    outcome = pytester.runpytest(*models, "--muscle-golden=lm-eval:empty")
    outcome.stderr.fnmatch_lines(
        ["ERROR: golden dataset lm-eval:empty: no log of that kind *; correct --muscle-golden"]
    )
