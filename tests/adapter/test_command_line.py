import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small import records

from pytest_muscle.adapter.__main__ import main

QUICK = ["--rank", "4", "--alpha", "8", "--batch-size", "4", "--learning-rate", "0.01", "--device", "cpu"]
QUICK += ["--validation-share", "0.25"]


@pytest.fixture
def train_file(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records(22)))
    return path


def arguments(command, train_file, output, *more, **models):
    named = [part for name, model in models.items() for part in (f"--{name}", str(model))]
    return [command, *named, "--train", str(train_file), "--out", str(output), *QUICK, *more]


def test_a_compatibility_adapter(tiny_model, tiny_model_b, train_file, tmp_path, capsys):
    output = tmp_path / "adapter"
    recipe = ["--mask", "student_wrong", "--temperature", "2", "--epochs", "1"]
    recipe += ["--targets", "q_proj", "v_proj"]
    call = arguments("compatibility", train_file, output, *recipe, old=tiny_model, new=tiny_model_b)
    assert main(call) == 0
    said = capsys.readouterr().out
    assert "training, student_wrong, T=2" in said
    assert "step 4/4" in said
    assert "epoch 1: accuracy" in said
    assert said.splitlines()[-1].startswith(f"{output}: student_wrong, T=2, epoch 1,")
    report = json.loads((output / "adapter_report.json").read_text())
    assert report["config"]["targets"] == ["q_proj", "v_proj"]
    assert report["config"]["recipe"] == {
        "mask": "student_wrong",
        "temperature": 2.0,
        "cross_entropy_weight": 0.0,
    }


def test_a_task_adapter(tiny_model, train_file, tmp_path, capsys):
    output = tmp_path / "adapter"
    assert main(arguments("task", train_file, output, "--epochs", "1", base=tiny_model)) == 0
    assert "training, cross-entropy" in capsys.readouterr().out
    assert (output / "adapter_model.safetensors").is_file()


def test_errors_are_one_line(tiny_model, train_file, tmp_path, capsys):
    call = arguments("compatibility", train_file, tmp_path / "a", old=tmp_path / "none", new=tiny_model)
    assert main(call) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: model ")
    assert "Traceback" not in error
    assert main(arguments("task", tmp_path / "no.jsonl", tmp_path / "a", base=tiny_model)) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(arguments("task", train_file, tmp_path / "a", "--epochs", "0", base=tiny_model)) == 2
    assert "adapter setting epochs" in capsys.readouterr().err


def test_golden_files_must_not_overlap(tiny_model, tiny_model_b, train_file, tmp_path, capsys):
    golden = ("--golden", str(train_file))
    call = arguments("compatibility", train_file, tmp_path / "a", *golden, old=tiny_model, new=tiny_model_b)
    assert main(call) == 2
    assert "22 of 22 training records overlap" in capsys.readouterr().err


def losses(output):
    report = json.loads((output / "adapter_report.json").read_text())
    return [(step["loss"], step["from_old"]) for step in report["steps"]], report["epochs"]


def launch(how, call, *more):
    """Run the command line in two processes that accelerate starts."""
    given = ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", *more]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", how, "--dynamo_backend", "no", *given]
    root = Path(__file__).parent.parent.parent
    return subprocess.run(
        [*launcher, "--main_process_port", "0", "-m", "pytest_muscle.adapter", *call],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_a_launcher_that_starts_one_process_of_two_is_not_believed(tiny_model, train_file, tmp_path):
    done = launch("--cpu", arguments("task", train_file, tmp_path / "a", base=tiny_model))
    assert done.returncode != 0
    assert "error: accelerate launch --cpu starts one process" in done.stderr
    assert "--multi_gpu" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["cached", "live"])
def test_two_processes_are_one_with_twice_the_accumulation(
    tiny_model, tiny_model_b, train_file, tmp_path, teacher
):
    more = ("--mask", "truth_weighted", "--epochs", "2", "--teacher", teacher)
    one, two = tmp_path / "one", tmp_path / "two"
    models = {"old": tiny_model, "new": tiny_model_b}
    accumulate = ("--gradient-accumulation", "2")
    assert main(arguments("compatibility", train_file, one, *more, *accumulate, **models)) == 0
    done = launch("--multi_gpu", arguments("compatibility", train_file, two, *more, **models))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("training, truth_weighted") == 1
    (mine, my_epochs), (theirs, their_epochs) = losses(one), losses(two)
    assert len(mine) == len(theirs) == 4
    for step, other in zip(mine, theirs, strict=True):
        assert step == pytest.approx(other, abs=1e-4)
    for epoch, other in zip(my_epochs, their_epochs, strict=True):
        assert epoch["accuracy"] == other["accuracy"]
        assert epoch["loss"] == pytest.approx(other["loss"], abs=1e-4)
