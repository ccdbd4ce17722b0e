"""Processes killed at any moment, two at once, a full disk: what was stored is there, and nothing else."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pytest_muscle.store import Store

pytestmark = pytest.mark.slow

KILLS = 120
WRITER = """
import sys
from pathlib import Path
from pytest_muscle.models import Response
from pytest_muscle.store import Store

store = Store(Path(sys.argv[1]))
first = int(sys.argv[2])
print("ready", flush=True)
for i in range(first, first + 10_000):
    for model in ("old", "new/t=0.7"):
        texts = {f"{i}-{j}": f"{model} says {i}-{j} " + "x" * 500 for j in range(4)}
        store.put(model, [(name, Response(text=text)) for name, text in texts.items()])
    print(i, flush=True)
"""


def start(code: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )


def test_nothing_reported_as_stored_is_lost_or_mixed_up(tmp_path):
    draw = random.Random(0)
    reported: list[int] = []
    kills = 0
    while kills < KILLS:
        first = max(reported, default=-1) + 1
        with start(WRITER, tmp_path, first) as writer:
            assert writer.stdout is not None
            if draw.random() < 0.8:
                assert writer.stdout.readline() == "ready\n"
            time.sleep(draw.uniform(0, 0.1))
            writer.send_signal(signal.SIGKILL)
            seen = writer.stdout.read().split()
        assert writer.returncode == -signal.SIGKILL
        kills += 1
        reported += [int(number) for number in seen if number != "ready"]
        store = Store(tmp_path)
        assert store.notices == []
        new = [i for i in reported if i >= first] + draw.sample(reported, min(1, len(reported)))
        for model, other in (("old", "new/t=0.7"), ("new/t=0.7", "old")):
            names = [f"{i}-{j}" for i in new for j in range(4)]
            found = store.get(model, names)
            assert {name: response.text for name, response in found.items()} == {
                name: f"{model} says {name} " + "x" * 500 for name in names
            }, other
        store.close()
    assert len(reported) > KILLS
    store = Store(tmp_path)
    assert len(store.get("old", [f"{i}-0" for i in reported])) == len(reported)
    store.close()


SYSTEM = """
import os, time

def old(case):
    with open(os.environ["ASKED"], "a") as file:
        file.write(f"old {case.id}\\\\n")
    time.sleep(0.002)
    return case.id

def new(case):
    with open(os.environ["ASKED"], "a") as file:
        file.write(f"new {case.id}\\\\n")
    time.sleep(0.002)
    return case.id if int(case.id) % 9 else "lost"
"""


def project(folder: Path) -> Path:
    folder.mkdir()
    (folder / "system.py").write_text(textwrap.dedent(SYSTEM).replace("\\\\n", "\\n"))
    records = ({"id": str(i), "prompt": f"p{i}", "answer": str(i)} for i in range(400))
    (folder / "golden.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "pyproject.toml").write_text(
        "[tool.pytest-muscle.thresholds]\nmax_nfr = 0.2\n"
        '[tool.pytest-muscle.models.before]\nspec = "python:system:old"\nrevision = "1"\n'
        '[tool.pytest-muscle.models.after]\nspec = "python:system:new"\nrevision = "1"\n'
    )
    return folder


def pytest_run(folder: Path, result: str = "r.json", **how: object) -> "subprocess.Popen[bytes]":
    options = [
        "--muscle-old=before",
        "--muscle-new=after",
        "--muscle-golden=golden.jsonl",
        f"--muscle-json={result}",
    ]
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "ASKED": str(folder / "asked"), "PYTHONPATH": path}
    command = [sys.executable, "-m", "pytest", "-q", *options]
    how.setdefault("stdout", subprocess.DEVNULL)
    return subprocess.Popen(command, cwd=folder, env=environment, **how)


def judged(folder: Path, result: str = "r.json") -> object:
    return json.loads((folder / result).read_text())


def asked(folder: Path) -> list[str]:
    file = folder / "asked"
    return file.read_text().split("\n")[:-1] if file.exists() else []


def test_a_run_killed_again_and_again_ends_as_an_unbroken_one(tmp_path):
    unbroken, broken = project(tmp_path / "unbroken"), project(tmp_path / "broken")
    assert pytest_run(unbroken).wait() == 0
    draw = random.Random(1)
    kills = 0
    while True:
        run, before = pytest_run(broken), asked(broken)
        more = draw.randint(1, 120)
        while run.poll() is None and len(asked(broken)) < len(before) + more:
            time.sleep(0.001)
        run.kill()
        if run.wait() != -signal.SIGKILL:
            break
        kills += 1
    assert run.returncode == 0
    assert kills > 5
    assert judged(broken) == judged(unbroken)
    assert set(asked(broken)) == {f"{side} {i}" for side in ("old", "new") for i in range(400)}


def test_two_runs_at_once_share_a_store(tmp_path):
    alone, shared = project(tmp_path / "alone"), project(tmp_path / "shared")
    assert pytest_run(alone).wait() == 0
    runs = [pytest_run(shared, f"{name}.json") for name in ("one", "two")]
    assert [run.wait() for run in runs] == [0, 0]
    assert judged(shared, "one.json") == judged(shared, "two.json") == judged(alone)
    seen = len(asked(shared))
    assert 800 <= seen < 1600
    assert pytest_run(shared).wait() == 0
    assert len(asked(shared)) == seen


def test_a_disk_that_fills_up_is_said_and_costs_only_what_did_not_fit(tmp_path):
    folder = project(tmp_path / "full")
    limit = 150_000
    full = pytest_run(
        folder,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    told = full.communicate()[0].decode()
    assert "responses.sqlite: the store of responses failed" in told
    assert "free some space or delete the file" in told
    assert "Traceback" not in told
    assert full.returncode == 1
    before = len(asked(folder))
    assert 0 < before < 800
    unbroken = project(tmp_path / "unbroken")
    assert [pytest_run(each).wait() for each in (folder, unbroken)] == [0, 0]
    assert judged(folder) == judged(unbroken)
    assert len(asked(folder)) < before + 800
