import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small import quick, records

from pytest_muscle.adapter import train_compatibility_adapter
from pytest_muscle.adapter.__main__ import _compatibility, _parser, main
from pytest_muscle.adapter.config import Recipe
from pytest_muscle.adapter.launching import Elsewhere
from pytest_muscle.errors import MuscleError
from pytest_muscle.models import ModelOptions

CPU = ModelOptions(device="cpu")
ROOT = Path(__file__).parent.parent.parent
RECIPES = ROOT / "examples" / "distributed"

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
    recipe = ["--mask", "student_wrong", "--temperature", "2", "--cross-entropy-weight", "0", "--epochs", "1"]
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
        "guard": "none",
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


def launcher(*how):
    """What starts two processes with accelerate."""
    given = ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    given += ["--dynamo_backend", "no", "--main_process_port", "0"]
    return shlex.join([sys.executable, "-m", "accelerate.commands.launch", *how, *given])


def launch(call, *how, what=("-m", "pytest_muscle.adapter")):
    """Run the command line in two processes that accelerate starts."""
    return subprocess.run(
        [*shlex.split(launcher(*how)), *what, *call],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_a_launcher_that_starts_one_process_of_two_is_not_believed(tiny_model, train_file, tmp_path):
    done = launch(arguments("task", train_file, tmp_path / "a", base=tiny_model), "--cpu")
    assert done.returncode != 0
    assert "error: accelerate launch --cpu starts one process" in done.stderr
    assert "--multi_gpu" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["cached", "live"])
def test_two_processes_are_one_with_twice_the_accumulation(
    tiny_model, tiny_model_b, train_file, tmp_path, teacher
):
    more = ("--mask", "truth_weighted", "--epochs", "3", "--teacher", teacher)
    one, two = tmp_path / "one", tmp_path / "two"
    models = {"old": tiny_model, "new": tiny_model_b}
    accumulate = ("--gradient-accumulation", "2")
    assert main(arguments("compatibility", train_file, one, *more, *accumulate, **models)) == 0
    done = launch(arguments("compatibility", train_file, two, *more, **models), "--multi_gpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("training, truth_weighted") == 1
    (mine, my_epochs), (theirs, their_epochs) = losses(one), losses(two)
    assert len(mine) == len(theirs) == 6
    for step, other in zip(mine, theirs, strict=True):
        assert step == pytest.approx(other, abs=1e-4)
    for epoch, other in zip(my_epochs, their_epochs, strict=True):
        assert epoch["accuracy"] == other["accuracy"]
        assert epoch["loss"] == pytest.approx(other["loss"], abs=1e-4)


@pytest.mark.slow
def test_sharded_weights_train_as_whole_ones(tiny_model, tiny_model_b, train_file, tmp_path):
    call = ("compatibility", train_file)
    more = ("--mask", "truth_weighted", "--epochs", "3")
    models = {"old": tiny_model, "new": tiny_model_b}
    whole = launch(
        arguments(*call, tmp_path / "whole", *more, **models), "--config_file", str(RECIPES / "ddp.yaml")
    )
    sharded = launch(
        arguments(*call, tmp_path / "sharded", *more, **models),
        "--config_file",
        str(RECIPES / "fsdp.yaml"),
        what=(str(ROOT / "tests" / "adapter" / "sharded_on_cpu.py"),),
    )
    for done in (whole, sharded):
        assert done.returncode == 0, done.stderr
    assert sharded.stdout.count("DistributedType.FSDP") == 2
    (mine, my_epochs), (theirs, their_epochs) = losses(tmp_path / "whole"), losses(tmp_path / "sharded")
    for step, other in zip(mine, theirs, strict=True):
        assert step == pytest.approx(other, abs=1e-5)
    for epoch, other in zip(my_epochs, their_epochs, strict=True):
        assert epoch["accuracy"] == other["accuracy"]
        assert epoch["loss"] == pytest.approx(other["loss"], abs=1e-5)
    weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "sharded")]
    for name, tensor in weights[0].items():
        assert tensor.allclose(weights[1][name], atol=1e-4), name


@pytest.mark.slow
def test_a_training_may_call_the_launcher_itself(tiny_model, tiny_model_b, train_file, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    config = quick(recipe=Recipe("truth_weighted"), gradient_accumulation=1)
    models = str(tiny_model), str(tiny_model_b), train_file
    events = []
    how = {"options": CPU, "progress": events.append, "launcher": launcher("--multi_gpu")}
    two = train_compatibility_adapter(*models, tmp_path / "two", config, **how)
    one = train_compatibility_adapter(
        *models, tmp_path / "one", quick(recipe=config.recipe, gradient_accumulation=2), options=CPU
    )
    assert any(event.text.startswith("step ") for event in events)
    for mine, theirs in zip(one.report["steps"], two.report["steps"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
    again = train_compatibility_adapter(*models, tmp_path / "two", config, options=CPU, launcher="no-such")
    assert again == two


def test_what_the_launched_training_says_is_the_error(tiny_model, tiny_model_b, train_file, tmp_path):
    call = str(tiny_model), str(tiny_model_b), train_file, tmp_path / "a", quick()
    with pytest.raises(MuscleError, match="launcher 'no-such-command' cannot be started"):
        train_compatibility_adapter(*call, options=CPU, launcher="no-such-command")
    failing = shlex.join([sys.executable, "-c", "import sys; sys.exit('error: no cluster')"])
    with pytest.raises(MuscleError, match="left no adapter: error: no cluster"):
        train_compatibility_adapter(*call, options=CPU, launcher=failing)


def test_all_settings_reach_the_launched_training(tmp_path):
    config = quick(targets=("q_proj", "v_proj"), max_length=64, recipe=Recipe("old_only", temperature=2.0))
    models = {"old": "a b", "new": "c"}
    elsewhere = Elsewhere("run -n 2", models, tmp_path, tmp_path, config, CPU, print)
    start, options = elsewhere.command()[:5], elsewhere.command()[5:]
    assert start == ["run", "-n", "2", "-m", "pytest_muscle.adapter"]
    given = vars(_parser().parse_args(options))
    assert (given["old"], given["train"], given["device"]) == ("a b", tmp_path, "cpu")
    assert _compatibility({name: value for name, value in given.items() if value is not None}) == config
