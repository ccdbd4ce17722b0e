"""An adapter and its control, on a release made of tiny models."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pytest_muscle.models.checkpoint import load_model, resolve_checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"
PIQA = [
    {"goal": f"keep {thing} dry", "sol1": f"put the {thing} in a box", "sol2": "pour water", "label": n % 2}
    for n, thing in enumerate(
        ("bread", "paper", "salt", "wood", "rope", "cloth", "flour", "tea", "sugar", "soap", "rice", "wool")
    )
]


def run(path, *arguments):
    runpy.run_path(str(EXAMPLES / path))["main"]([str(argument) for argument in arguments])


@pytest.fixture
def data(tmp_path):
    """Training records, and a folder of golden datasets: to be chosen, and to be written."""
    (tmp_path / "golden").mkdir()
    for name, rows in (("train", PIQA[:8]), ("dev", PIQA[8:])):
        (tmp_path / f"{name}.piqa").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make = "quantized_release/make_golden.py"
    run(make, tmp_path / "train.piqa", tmp_path / "train.jsonl")
    run(make, tmp_path / "dev.piqa", tmp_path / "golden" / "chosen.jsonl")
    run(make, tmp_path / "dev.piqa", tmp_path / "golden" / "written.jsonl", "--written")
    return tmp_path


def test_two_versions_are_trained_on_the_halves_of_the_records(tiny_model, data, capsys):
    run("adapter_control/wider_release.py", tiny_model, data / "train.jsonl", data / "models")
    assert "new: rank 16, 4 records" in capsys.readouterr().out
    ranks = {}
    for name in ("old", "new"):
        tensors = load_file(data / "models" / name / "adapter_model.safetensors")
        (ranks[name],) = {len(tensor) for key, tensor in tensors.items() if "lora_A" in key}
    assert ranks == {"old": 4, "new": 16}
    halves = [(data / "models" / f"{name}.jsonl").read_text() for name in ("old", "new")]
    assert "".join(halves) == (data / "train.jsonl").read_text()


def test_a_base_is_trained_on_and_merged(tiny_model, tmp_path, capsys):
    records = tmp_path / "records.jsonl"
    rows = [{"question": f"What is {n} + 1?", "ground_truth": str(n + 1), "id": n} for n in range(41)]
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    call = ("adapter_control/continued_release.py", tiny_model, records, tmp_path / "work")
    run(*call, "--prompt", "question", "--answer", "ground_truth", "--limit", "40")
    assert "of training" in capsys.readouterr().out
    new = load_model(resolve_checkpoint(str(tmp_path / "work" / "new")), device="cpu")
    adapted = load_model(resolve_checkpoint(str(tmp_path / "work" / "adapter")), device="cpu")
    tokens = torch.arange(6)[None]
    merged, apart, before = (
        model(tokens).logits
        for model in (new, adapted, load_model(resolve_checkpoint(str(tiny_model)), device="cpu"))
    )
    torch.testing.assert_close(merged, apart, atol=1e-4, rtol=1e-4)
    assert (merged - before).abs().max() > 1e-2
    assert len((tmp_path / "work" / "records.jsonl").read_text().splitlines()) == 40
    with pytest.raises(SystemExit, match=r"records.jsonl:1: no field 'prompt'; name another"):
        run(*call)


def test_written_answers_are_compared_with_the_right_solution(data):
    chosen, written = (
        [json.loads(line) for line in (data / "golden" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("chosen", "written")
    )
    assert [case["prompt"] for case in chosen] == [case["prompt"] for case in written]
    assert [case["answer"] for case in written] == [case["choices"][case["answer"]] for case in chosen]
    assert {case["metric"] for case in written} == {"rouge1"}


@pytest.mark.slow
def test_adapter_and_control_are_judged_on_every_dataset(tiny_model, tiny_model_b, data, capfd):
    settings = ("--epochs", "1", "--validation-share", "0", "--rank", "4")
    files = (data / "train.jsonl", data / "golden", data / "work")
    run("adapter_control/adapter_control.py", tiny_model, tiny_model_b, *files, *settings)
    shown = capfd.readouterr().out
    for dataset in ("chosen.jsonl", "written.jsonl"):
        table = shown.partition(f"{dataset}, 4 cases")[2].splitlines()
        rows = [line.partition("  ")[0] for line in table[2:6]]
        assert rows == ["old model", "new model", "compatibility adapter", "control: cross-entropy"]
