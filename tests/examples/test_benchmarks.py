"""The benchmarks' own arithmetic; the peers they compare with need not be installed."""

import json
import re
import runpy
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pytest_muscle.adapter import Recipe
from pytest_muscle.golden import GoldenCase
from pytest_muscle.models.checkpoint import load_model, load_tokenizer, resolve_checkpoint
from pytest_muscle.models.local.encoding import Continuation

FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(FOLDER)
    yield lambda name: runpy.run_path(str(FOLDER / name))
    for name in ("measuring", "agree_with_lm_eval", "recorded_cases"):
        sys.modules.pop(name, None)


def case(number: int, answer: int = 0) -> GoldenCase:
    return GoldenCase(
        id=str(number),
        dataset="g",
        task="multiple_choice",
        answer=(answer,),
        prompt=f"Q{number}:",
        choices=("yes", "no"),
    )


@pytest.mark.parametrize(
    ("moved", "same", "agree"),
    [
        ((0.0, 0.0), 2, True),
        # Within what rounding may do, and beyond it, where float64 decides: for this package.
        ((0.0005, 0.0), 2, True),
        ((0.0020, 0.0), 2, True),
        ((0.0, -99.0), 1, False),
    ],
)
def test_agreement_is_by_choice_and_distance(
    script, tiny_model: Path, moved: tuple[float, float], same: int, agree: bool, capsys
) -> None:
    agreement = script("agree_with_lm_eval.py")
    cases = [case(0), case(1)]
    ours = agreement["score_here"](str(tiny_model), cases)
    best = max(range(2), key=ours[1].__getitem__)
    theirs = [
        tuple(value + moved[0] for value in ours[0]),
        tuple(value + moved[1] * (i == best) for i, value in enumerate(ours[1])),
    ]
    assert agreement["report"](cases, ours, theirs, str(tiny_model)) is agree
    assert f"same choice: {same} of 2 cases" in capsys.readouterr().out


def test_what_float64_contradicts_is_no_agreement(script, tiny_model: Path, capsys) -> None:
    agreement = script("agree_with_lm_eval.py")
    theirs = agreement["score_here"](str(tiny_model), [case(0)])
    ours = [tuple(value + 0.01 for value in theirs[0])]
    assert not agreement["report"]([case(0)], ours, theirs, str(tiny_model))
    assert "1 cases; from float64, 1 of them" in capsys.readouterr().out


def test_shots_are_answered_and_not_asked(script) -> None:
    cases = [case(0), case(1, answer=1), case(2)]
    (asked,) = script("multiple_choice.py")["few_shot"](cases, 2)
    shots = [each for each in cases if each.id != asked.id]
    right = {"0": "Q0: yes\n\n", "1": "Q1: no\n\n", "2": "Q2: yes\n\n"}
    assert len(shots) == 2
    assert asked.prompt in {
        "".join(right[each.id] for each in order) + f"Q{asked.id}:" for order in (shots, shots[::-1])
    }


def test_further_choices_are_those_of_the_next_cases(script) -> None:
    cases = [replace(case(i), choices=(f"a{i}", f"b{i}")) for i in range(3)]
    wide = script("multiple_choice.py")["widened"](cases, 4)
    assert [each.choices for each in wide] == [
        ("a0", "b0", "a1", "b1"),
        ("a1", "b1", "a2", "b2"),
        ("a2", "b2", "a0", "b0"),
    ]
    assert [each.answer for each in wide] == [each.answer for each in cases]


def test_the_floor_counts_each_distinct_token_once(script, capsys: pytest.CaptureFixture[str]) -> None:
    choices = (Continuation((1, 2, 3, 4), 2), Continuation((1, 2, 3, 5, 6), 3), Continuation((1, 2, 7), 1))
    model = torch.nn.ModuleDict({"body": torch.nn.Linear(2, 5), "lm_head": torch.nn.Linear(5, 7)})
    operations = script("multiple_choice.py")["arithmetic"](model, [choices, choices[:1]])
    # Inputs 1 2 3, 1 2 3 5 and 1 2: four distinct; scored after 1 2, 1 2 3 and 1 2 3 5.
    assert operations == 2 * (4 * 10 + 3 * 35)
    assert "for 4 distinct tokens, 3 of them scored" in capsys.readouterr().out


def test_the_floor_does_its_operations(script, monkeypatch: pytest.MonkeyPatch) -> None:
    measuring = script("measuring.py")
    product = measuring["Product"](torch.nn.Linear(4, 4), torch.rand(4, 4))
    done = []
    product.layer.register_forward_hook(lambda *_: done.append(1))
    monkeypatch.setitem(measuring["floor"].__globals__, "fastest_product", lambda: product)
    least = measuring["floor"](1280)
    assert least.timed().wall > 0
    assert len(done) * product.operations == 1280


def test_contestants_take_turns_and_go_on_from_the_log(script, tmp_path: Path) -> None:
    order = []
    measuring = script("measuring.py")
    layer = torch.nn.Linear(3, 1)

    def runner(name: str, rows: int):
        def run() -> str:
            order.append(name)
            layer(torch.zeros(rows, 3))
            return name

        return measuring["Contestant"](run, layer)

    contestants = {measuring["HERE"]: runner("a", 2), "peer": runner("b", 5)}
    checked = []
    for rounds in (2, 1):
        done = measuring["interleaved"](
            rounds, contestants, lambda: checked.append(len(order)), tmp_path / "log"
        )
    assert order == ["a", "b"] * 3
    assert checked == [2, 6]
    assert len(done) == 3
    assert [(each.answer, each.tokens) for each in contestants.values()] == [("a", 6), ("b", 15)]


@pytest.mark.parametrize("same", [True, False])
def test_generation_benchmark_compares_texts(script, tiny_model: Path, tmp_path: Path, capsys, same) -> None:
    golden = tmp_path / "golden.jsonl"
    golden.write_text('{"prompt": "where is it?", "answer": "x"}\n{"prompt": "why?", "answer": "y"}\n')
    checkpoint = resolve_checkpoint(str(tiny_model))
    model, tokenizer = load_model(checkpoint, device="cpu"), load_tokenizer(checkpoint)

    def written(peer: object, cases: list[GoldenCase]) -> list[str]:
        texts = []
        for each in cases:
            tokens = tokenizer(each.prompt, return_tensors="pt")
            made = model.generate(**tokens, max_new_tokens=each.max_new_tokens, do_sample=False)
            text = tokenizer.decode(made[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)
            texts.append(text if same else text + "!")
        return texts

    main = script("generation.py")["main"]
    main.__globals__["harness"] = lambda spec, size, device: SimpleNamespace(model=model)
    main.__globals__["written"] = written
    with nullcontext() if same else pytest.raises(SystemExit, match="do not write the same"):
        main([str(tiny_model), str(golden), "--new-tokens", "5", "--rounds", "1"])
    told = capsys.readouterr().out
    assert f"same text: {2 * same} of 2 prompts" in told
    assert ("median of 1 rounds" in told) is same


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["responses", "--cases", "200", "--characters", "3000"], "200 cases: .* 199 passed, 2 xfailed"),
        (["gates", "--gates", "30"], "30 cases: .* 60 passed"),
        (["history", "--runs", "3"], "3 runs: 0.0"),
    ],
)
def test_large_runs_at_a_small_scale(script, capsys, arguments, told) -> None:
    script("large_runs.py")["main"](arguments)
    assert re.search(told, capsys.readouterr().out)


@pytest.mark.parametrize("choices", [True, False])
def test_recorded_cases_at_a_small_scale(script, capsys, choices: bool) -> None:
    kind = ["--choices"] if choices else []
    script("recorded_cases.py")["main"](["--cases", "60", "--rounds", "1", "--profile", *kind])
    told = capsys.readouterr().out
    assert "60 cases judged, 3 of them negative flips" in told
    assert re.search(r"plain pytest +\d+\.\d +1\.00", told)
    assert re.search(r"\d%  grading\n", told)


def test_recorded_cases_that_do_not_flip_as_they_should_are_an_error(script) -> None:
    main = script("recorded_cases.py")["main"]
    main.__globals__["text_case"] = lambda number: (
        {"prompt": "p", "answer": "a"},
        {"text": "a"},
        {"text": "a"},
    )
    with pytest.raises(SystemExit, match="60 of 60 cases judged, 0 flips found"):
        main(["--cases", "60", "--rounds", "1"])


def test_a_profile_names_what_takes_the_time(script, capsys) -> None:
    measuring = script("measuring.py")
    matrix = torch.rand(600, 600)
    measuring["print_profile"](lambda: matrix @ matrix)
    first = capsys.readouterr().out.splitlines()[0]
    assert re.fullmatch(r" *\d+\.\d%  aten::mm", first)
    assert float(first.split("%")[0]) > 50


@pytest.mark.parametrize("name", ["multiple_choice.py", "distillation.py"])
def test_a_profile_of_several_threads_is_refused(script, capsys, set_threads, name) -> None:
    set_threads(2)
    models = ["model"] if name == "multiple_choice.py" else ["old", "new"]
    with pytest.raises(SystemExit):
        script(name)["main"]([*models, "golden.jsonl", "--profile"])
    assert "set OMP_NUM_THREADS=1" in capsys.readouterr().err


@pytest.mark.parametrize("prompt", [0, 9])
def test_both_sides_of_a_training_step_learn_the_same(script, tiny_model, tiny_model_b, tmp_path, prompt):
    golden = tmp_path / "golden.jsonl"
    rows = [
        {"id": str(n), "prompt": f"{n} apples are left in box {7 * n}.", "answer": "yes"} for n in range(40)
    ]
    golden.write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = script("distillation.py")
    work = step["Work"](str(tiny_model), str(tiny_model_b), golden, 4, 16, prompt, Recipe("student_wrong"))
    here, naive = step["Here"](work), step["Naive"](work)
    for _ in range(3):
        assert here.step()[0] == pytest.approx(naive.step()[0], rel=1e-4)
    for mine, theirs in zip(here.adapter(), naive.adapter(), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)
    # The arithmetic of a step, layer by layer: 4 texts of 16 tokens, of which the first is never scored.
    model = load_model(resolve_checkpoint(str(tiny_model_b)), device="cpu")
    layers = [m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    weights = sum(layer.weight.numel() for layer in layers)
    factors = sum(16 * (layer.in_features + layer.out_features) for layer in layers)
    scored = 4 * (16 - max(1, prompt))
    head = model.lm_head.weight.numel()
    assert here.operations() == 2 * (64 * (2 * weights + 3 * factors) + scored * 2 * head)
    assert naive.operations() == 2 * (64 * (4 * weights + 3 * factors) + 64 * 4 * head)
