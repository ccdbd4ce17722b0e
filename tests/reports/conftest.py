"""Comparisons to be reported: every task, every flip, and text that wants out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_muscle.comparison import Comparison
from pytest_muscle.session import compare

Build = Callable[..., Comparison]

HOSTILE = (
    "<script>document.title='owned'</script></template></script><!--"
    "<img src=x onerror=\"document.title='owned'\"> | cell | `code` **bold** [link](http://evil.example) "
    "![image](http://evil.example/x.png) @everyone $x$ www.evil.example\n::error::forged\n##[error]forged\n"
    "%0A::error::forged \x1b[31mred\x1b]8;;http://evil.example\x07 "
    "\u202egnorw \ud800 \x00 \u2028 &amp; {{ 777 * 777 }}"
)


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Compare two recorded models: ``build(cases, old, new, **options)``, each a list of records.

    Where a model was asked several times, a list of records stands for one.
    """

    def run(cases: list[dict[str, Any]], old: list[Any], new: list[Any], **options: Any) -> Comparison:
        monkeypatch.chdir(tmp_path)
        write_lines(tmp_path / "golden.jsonl", cases)
        for side, said in (("old", old), ("new", new)):
            records = [
                {"id": case["id"], "sample": i, **draw}
                for case, each in zip(cases, said, strict=True)
                for i, draw in enumerate(each if isinstance(each, list) else [each])
            ]
            write_lines(tmp_path / f"{side}.jsonl", records)
        return compare("recorded:old.jsonl", "recorded:new.jsonl", "golden.jsonl", **options)

    return run


@pytest.fixture
def mixed(build: Build) -> Comparison:
    """Sixty cases of every task, with every flip, two tags, three gates and one error."""
    return build(*sixty_cases(), thresholds={"max_nfr": 0.05, "max_nfr_mc": 0.9, "max_mean_regression": 0.5})


def sixty_cases() -> tuple[list[dict[str, Any]], list[Any], list[Any]]:
    draw = random.Random(7)
    cases: list[dict[str, Any]] = []
    sides: tuple[list[Any], list[Any]] = ([], [])
    for i in range(60):
        tags = {"lang": ("de", "en", "fr")[i % 3], "level": "hard" if i % 2 else "easy"}
        case: dict[str, Any] = {"id": f"case-{i}", "prompt": f"Question {i}?", "tags": tags}
        if i < 20:
            case |= {"choices": ["red", "green", "blue"], "answer": i % 3}
            for side in sides:
                side.append({"loglikelihoods": [round(draw.gauss(-3, 1), 3) for _ in range(3)]})
        elif i < 40:
            case |= {"answer": ["yes", "aye"]}
            for side in sides:
                side.append({"text": draw.choice(["yes", "yes", "aye", "no", "maybe", ""])})
        else:
            case |= {"answer": "the quick brown fox jumps", "metric": "rouge1"}
            for side in sides:
                side.append({"text": " ".join(draw.choices(["the", "quick", "brown", "fox", "dog"], k=4))})
        cases.append(case)
    sides[1][59] = {"error": "timeout"}
    return cases, *sides


@pytest.fixture
def hostile(build: Build) -> Comparison:
    """Text that wants out, everywhere where text can stand; one answer is a megabyte long."""
    cases = [
        {"id": f"a{HOSTILE}", "prompt": HOSTILE, "answer": HOSTILE, "tags": {f"t{HOSTILE}": HOSTILE}},
        {"id": "b", "prompt": HOSTILE, "choices": [HOSTILE, "x"], "answer": 0},
        {"id": "c", "prompt": HOSTILE, "answer": HOSTILE, "metric": "rouge1"},
        {"id": "d", "prompt": "p", "answer": "x"},
    ]
    old = [{"text": HOSTILE}, {"choice": 0}, {"text": HOSTILE}, {"text": "x"}]
    new = [{"text": f"{HOSTILE}!"}, {"choice": 1}, {"text": "<b>"}, {"text": "<i>" * 350_000}]
    return build(cases, old, new, thresholds={"max_nfr": 0.0})
