"""The benchmarks' own arithmetic; the peers they compare with need not be installed."""

import runpy
import sys
from pathlib import Path

import pytest

from pytest_muscle.golden import GoldenCase
from pytest_muscle.models.local.encoding import Continuation

FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(FOLDER)
    yield lambda name: runpy.run_path(str(FOLDER / name))
    for name in ("measuring", "agree_with_lm_eval"):
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
    ("theirs", "same", "agree"),
    [
        ([(-1.0, -2.0), (-3.0, -1.0)], 2, True),
        ([(-1.001, -2.0), (-3.0, -1.0)], 2, True),
        ([(-1.003, -2.0), (-3.0, -1.0)], 2, False),
        ([(-1.0, -2.0), (-3.0, -3.1)], 1, False),
    ],
)
def test_agreement_is_by_choice_and_distance(
    script, theirs: list[tuple[float, ...]], same: int, agree: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = [(-1.0, -2.0), (-3.0, -1.0)]
    assert script("agree_with_lm_eval.py")["report"]([case(0), case(1)], ours, theirs, 2e-3) is agree
    assert f"same choice: {same} of 2 cases" in capsys.readouterr().out


def test_shots_are_answered_and_not_asked(script) -> None:
    (asked,) = script("multiple_choice.py")["few_shot"]([case(0), case(1, answer=1), case(2)], 2)
    assert asked.id == "2"
    assert asked.prompt == "Q0: yes\n\nQ1: no\n\nQ2:"


def test_the_floor_counts_each_distinct_token_once(script, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    choices = (Continuation((1, 2, 3, 4), 2), Continuation((1, 2, 3, 5, 6), 3), Continuation((1, 2, 7), 1))
    script("multiple_choice.py")["print_floor"](torch.nn.Linear(2, 2), [choices, choices[:1]], 1.0)
    # Inputs 1 2 3, 1 2 3 5 and 1 2: four distinct; scored after 1 2, 1 2 3 and 1 2 3 5.
    assert "for 4 distinct tokens, 3 of them scored" in capsys.readouterr().out


def test_contestants_take_turns(script) -> None:
    order = []
    measuring = script("measuring.py")
    seconds = measuring["interleaved"](2, {"a": lambda: order.append("a"), "b": lambda: order.append("b")})
    assert order == ["a", "b", "a", "b"]
    assert [len(values) for values in seconds.values()] == [2, 2]


def test_generation_benchmark_compares_texts(script, tiny_model: Path, tmp_path: Path, capsys) -> None:
    golden = tmp_path / "golden.jsonl"
    golden.write_text('{"prompt": "where is it?", "answer": "x"}\n{"prompt": "why?", "answer": "y"}\n')
    with pytest.raises(SystemExit) as ended:
        script("generation.py")["main"]([str(tiny_model), str(golden), "--new-tokens", "5", "--rounds", "1"])
    assert ended.value.code == 0
    assert "same text: 2 of 2 prompts" in capsys.readouterr().out
