"""Hundreds of requests through a faulty proxy: all answered, none lost, none asked twice after success."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from servers import FAULTS, Loopback, Proxy, completion

from pytest_muscle import compare
from pytest_muscle.models.openai import server

RUN = """
import json, sys
from pytest_muscle import compare
url, out = sys.argv[1:]
table = {"spec": "openai:desk", "base_url": url, "revision": "1", "concurrency": 16}
compared = compare("desk", "desk", "golden.jsonl", models={"desk": table})
answers = {result.case.id: result.new.text for result in compared.results}
json.dump(answers, open(out, "w"))
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with a program that asks for all of a golden dataset."""
    (tmp_path / "run.py").write_text(RUN)
    return tmp_path


def golden(folder: Path, count: int) -> None:
    records = [{"id": str(i), "prompt": f"number {i} is", "answer": str(i)} for i in range(count)]
    (folder / "golden.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def answer(path, body):
    return completion(body["prompt"].split()[1])


def start(folder: Path, url: str) -> subprocess.Popen:
    environment = {**os.environ, "no_proxy": "127.0.0.1"}
    return subprocess.Popen([sys.executable, "run.py", url, "out.json"], cwd=folder, env=environment)


def answers(folder: Path) -> dict[str, str]:
    return json.loads((folder / "out.json").read_text())


def stored(folder: Path) -> int:
    try:
        connection = sqlite3.connect(f"file:{folder}/.pytest-muscle/responses.sqlite?mode=ro", uri=True)
    except sqlite3.OperationalError:
        return 0
    try:
        return connection.execute("SELECT count(*) FROM responses").fetchone()[0]
    except sqlite3.OperationalError:
        return 0
    finally:
        connection.close()


def one_in_ten(seed: int):
    """Name a fault for one request in ten; one of them is a slow answer."""
    kinds = sorted(FAULTS.keys() - {"slow"})
    draw = random.Random(seed)
    return lambda number: "slow" if number == 40 else draw.choice(kinds) if draw.random() < 0.1 else None


def test_all_are_answered_and_none_is_asked_twice_after_success(folder, monkeypatch):
    golden(folder, 500)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(server, "_FIRST_PAUSE", 0.02)
    with Proxy(answer, one_in_ten(0)) as proxy:
        table = {"spec": "openai:desk", "base_url": proxy.url, "concurrency": 16, "timeout": 5.0}
        compared = compare("desk", "desk", "golden.jsonl", models={"desk": table})
    assert [result.new.text for result in compared.results] == [str(i) for i in range(500)]
    assert len(proxy.succeeded) == 500
    assert set(proxy.succeeded.values()) == {1}
    assert proxy.faults.keys() == FAULTS.keys()
    assert proxy.faults.total() > 30


def test_a_killed_run_goes_on_and_repeats_no_request_that_was_answered(folder):
    count, after = 200, 80
    golden(folder, count)
    passed = Counter()
    hold = True

    def reply(path, body):
        with upstream.lock:
            passed["asked"] += 1
            is_held = hold and passed["asked"] > after
        while is_held and hold:
            time.sleep(0.01)
        return answer(path, body)

    with Loopback(reply) as upstream:
        first = start(folder, upstream.url)
        give_up = time.monotonic() + 60
        while stored(folder) < after and time.monotonic() < give_up:
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
        assert first.wait(10) == -signal.SIGKILL
        assert stored(folder) == after
        answered = {body["prompt"] for _, body in upstream.asked[:after]}
        upstream.asked.clear()
        hold = False
        assert start(folder, upstream.url).wait(120) == 0
    asked = Counter(body["prompt"] for _, body in upstream.asked)
    assert not answered & asked.keys()
    assert len(asked) == count - after
    assert set(asked.values()) == {1}
    assert answers(folder) == {str(i): str(i) for i in range(count)}
