"""A training killed at any moment and started again ends with the same adapter."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import quick, records

from pytest_muscle.adapter import train_compatibility_adapter
from pytest_muscle.adapter.progress import Step
from pytest_muscle.errors import MuscleError

KILLED = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
from small import quick, records
from pytest_muscle.adapter import train_compatibility_adapter
from pytest_muscle.adapter.progress import Step

kind, number = sys.argv[5], int(sys.argv[6])
saved = []
write = torch.save

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def save(content, path, *rest, **more):
    saved.append(path)
    if kind == "write" and len(saved) == number:
        path = open(path, "wb")
        path.write(b"half")
        path.flush()
        die()
    write(content, path, *rest, **more)

torch.save = save

def progress(event):
    if kind == "step" and isinstance(event, Step) and event.step == number:
        die()

config = quick(dropout=0.1, epochs=3)
train_compatibility_adapter(*sys.argv[2:4], records(24), sys.argv[4], config, progress=progress)
"""


def killed(old, new, output, kind, number):
    """Run the training until a SIGKILL at a step, or while a checkpoint's file is written."""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here.parent.parent)}
    arguments = [sys.executable, "-c", KILLED, here, old, new, output, kind, str(number)]
    done = subprocess.run(list(map(str, arguments)), env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not output.exists()
    return output.parent / f".{output.name}.partial"


@pytest.fixture(scope="module")
def unbroken(tiny_model, tiny_model_b, tmp_path_factory):
    output = tmp_path_factory.mktemp("unbroken") / "adapter"
    return train_compatibility_adapter(
        str(tiny_model), str(tiny_model_b), records(24), output, quick(dropout=0.1, epochs=3)
    )


@pytest.mark.parametrize(
    ("kind", "number", "resumed_at"),
    [
        ("step", 7, 7),
        pytest.param("step", 5, 5, marks=pytest.mark.slow),
        pytest.param("write", 4, 3, marks=pytest.mark.slow),
        pytest.param("write", 1, 1, marks=pytest.mark.slow),
    ],
)
def test_killed_and_resumed(tiny_model, tiny_model_b, tmp_path, unbroken, kind, number, resumed_at):
    output = tmp_path / "adapter"
    killed(tiny_model, tiny_model_b, output, kind, number)
    events = []
    result = train_compatibility_adapter(
        str(tiny_model),
        str(tiny_model_b),
        records(24),
        output,
        quick(dropout=0.1, epochs=3),
        progress=events.append,
    )
    assert next(event.step for event in events if isinstance(event, Step)) == resumed_at
    mine, expected = (load_file(r.path / "adapter_model.safetensors") for r in (result, unbroken))
    for name in expected:
        torch.testing.assert_close(mine[name], expected[name], atol=1e-6, rtol=0)
    assert result.epochs == unbroken.epochs
    assert result.report["steps"] == unbroken.report["steps"]
    assert not output.with_name(".adapter.partial").exists()


def test_an_unfinished_run_is_not_mixed_with_another(tiny_model, tiny_model_b, tmp_path):
    work = tmp_path / ".adapter.partial"
    work.mkdir()
    (work / "run.json").write_text(json.dumps({"digest": "of another run"}))
    with pytest.raises(MuscleError, match="unfinished run with other models, records or settings"):
        train_compatibility_adapter(
            str(tiny_model), str(tiny_model_b), records(24), tmp_path / "adapter", quick()
        )
