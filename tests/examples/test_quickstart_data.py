"""The quickstart's data: made by its script, uncontaminated, small enough to live in the repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pytest_muscle.adapter.overlap import find_overlaps
from pytest_muscle.golden import read_golden

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
DATA = ("golden/intent.jsonl", "golden/orders.jsonl", "golden/tickets.jsonl", "train.jsonl")


@pytest.fixture(scope="module")
def remade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    script = QUICKSTART / "make_models.py"
    subprocess.run([sys.executable, script, "--data", "--output", folder], check=True, timeout=120)
    return folder


@pytest.mark.parametrize("name", DATA)
def test_the_script_makes_the_data_again(remade: Path, name: str) -> None:
    assert (remade / name).read_bytes() == (QUICKSTART / name).read_bytes()


def test_training_records_keep_clear_of_the_golden_cases() -> None:
    *golden, train = (read_golden(QUICKSTART / name) for name in DATA)
    cases = [case for dataset in golden for case in dataset]
    assert len(cases) == 480
    assert find_overlaps(train, cases) == []
    assert len(find_overlaps([*train, cases[0]], cases)) == 1


def test_each_dataset_holds_one_task() -> None:
    tasks = [{case.task for case in read_golden(QUICKSTART / name)} for name in DATA]
    assert tasks[:3] == [{"multiple_choice"}, {"exact_match"}, {"generation"}]
    assert tasks[3] == set.union(*tasks[:3])


def test_the_models_are_small_and_hold_no_code() -> None:
    files = [path for path in (QUICKSTART / "models").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in files) < 4_000_000
    assert not any("auto_map" in path.read_text() for path in files if path.name == "config.json")


def test_both_models_share_one_tokenizer() -> None:
    old, new = ((QUICKSTART / "models" / name / "tokenizer.json").read_bytes() for name in ("v1", "v2"))
    assert old == new
