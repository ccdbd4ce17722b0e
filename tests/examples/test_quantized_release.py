import json
import runpy
from pathlib import Path

import pytest
import torch

from pytest_muscle.golden import read_golden
from pytest_muscle.models import ModelOptions, open_model
from pytest_muscle.models.checkpoint import load_model, resolve_checkpoint

FOLDER = Path(__file__).parents[2] / "examples" / "quantized_release"
PIQA = [
    {"id": "a", "goal": "dresser", "sol1": "replace drawer with bobby pin ", "sol2": "finish", "label": 1},
    {"goal": "Grüße", "sol1": "aus Köln", "sol2": "aus dem Kölner Dom", "label": 0},
]


def script(name: str) -> dict:
    return runpy.run_path(str(FOLDER / name))


@pytest.mark.parametrize(("bits", "group"), [(4, 64), (3, 5), (8, 1000)])
def test_every_weight_moves_to_the_nearest_level_of_its_group(bits: int, group: int) -> None:
    weight = torch.randn(3, 24, generator=torch.Generator().manual_seed(bits))
    rounded = script("quantize.py")["round_to_nearest"](weight, bits, group)
    for row, found in zip(weight.tolist(), rounded.tolist(), strict=True):
        for start in range(0, 24, group):
            low, high = min(row[start : start + group]), max(row[start : start + group])
            levels = [low + i * (high - low) / (2**bits - 1) for i in range(2**bits)]
            nearest = [min(levels, key=lambda level: abs(level - x)) for x in row[start : start + group]]
            assert found[start : start + group] == pytest.approx(nearest, abs=1e-5)


def test_the_quantised_copy_is_a_model_of_its_own(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script("quantize.py")["main"]([str(tiny_model), str(tmp_path / "int3"), "--bits", "3", "--group", "8"])
    assert "weights at 3 bits in groups of 8; root mean square change" in capsys.readouterr().out
    old = load_model(resolve_checkpoint(str(tiny_model)), device="cpu").state_dict()
    new = load_model(resolve_checkpoint(str(tmp_path / "int3")), device="cpu").state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {name for name in old if name.endswith("proj.weight")}
    for name in changed:
        assert all(len(set(run.tolist())) <= 8 for run in new[name][0].split(8))


def test_an_impossible_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"error: model './gone' does not exist"):
        script("quantize.py")["main"](["./gone", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_golden_cases_are_made_and_can_be_asked(tiny_model: Path, tmp_path: Path) -> None:
    source, golden = tmp_path / "piqa.jsonl", tmp_path / "golden.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in PIQA))
    script("make_golden.py")["main"]([str(source), str(golden)])
    first, second = read_golden(golden)
    assert (first.id, first.answer, first.choices) == (
        "a",
        (1,),
        ("replace drawer with bobby pin ", "finish"),
    )
    assert (second.prompt, second.answer) == ("Question: Grüße\nAnswer:", (0,))
    model = open_model(str(tiny_model), ModelOptions(device="cpu"))
    assert sum(len(batch) for batch in model.respond([first, second])) == 2


def test_a_record_without_a_field_is_named(tmp_path: Path) -> None:
    source = tmp_path / "piqa.jsonl"
    source.write_text(json.dumps(PIQA[0]) + "\n" + json.dumps({"goal": "x", "sol1": "y", "label": 0}) + "\n")
    with pytest.raises(SystemExit, match=r"piqa\.jsonl:2: no field 'sol2'"):
        script("make_golden.py")["main"]([str(source), str(tmp_path / "golden.jsonl")])
