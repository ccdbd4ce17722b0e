"""Asking models: only for what the store lacks, batch by batch, by one process at a time."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_muscle.evaluation import ask, held, silent
from pytest_muscle.golden import GoldenCase
from pytest_muscle.models import Response
from pytest_muscle.store import Store


def cases(count: int, start: int = 0) -> list[GoldenCase]:
    return [
        GoldenCase(f"c{i}", "d", "exact_match", ("4",), prompt=f"p{i}") for i in range(start, start + count)
    ]


class Echo:
    """A model that answers two cases at a time, last first, with their prompts."""

    stored = False

    def __init__(self, fingerprint: str = "echo", stop_after: int | None = None, fails: Sequence[str] = ()):
        self.spec = self.fingerprint = fingerprint
        self.stop_after, self.fails = stop_after, fails
        self.notices: list[str] = []
        self.asked: list[str] = []
        self.closed = False

    def request_digest(self, case: GoldenCase) -> str:
        return case.request_digest()

    def respond(self, given: Sequence[GoldenCase]) -> Iterator[list[tuple[GoldenCase, Response]]]:
        queue = list(given)[::-1]
        for start in range(0, len(queue), 2):
            batch = queue[start : start + 2]
            if self.stop_after is not None and len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked += [case.id for case in batch]
            yield [(case, self.answer(case)) for case in batch]

    def answer(self, case: GoldenCase) -> Response:
        if case.id in self.fails:
            return Response(error="timed out")
        return Response(text=f"{self.fingerprint}: {case.prompt}")

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path)
    yield opened
    opened.close()


def texts(responses: dict[tuple[str, str], Response]) -> dict[str, str | None]:
    return {case_id: response.text for (_, case_id), response in responses.items()}


def test_every_case_is_asked_once_and_then_never_again(store):
    model = Echo()
    expected = {f"c{i}": f"echo: p{i}" for i in range(5)}
    assert texts(ask(model, cases(5), store, silent, "")) == expected
    assert sorted(model.asked) == sorted(expected)
    assert model.closed
    again = Echo()
    assert texts(ask(again, cases(5), store, silent, "")) == expected
    assert again.asked == []


def test_only_what_is_missing_is_asked(store):
    ask(Echo(), cases(3), store, silent, "")
    model = Echo()
    assert len(ask(model, cases(6), store, silent, "")) == 6
    assert sorted(model.asked) == ["c3", "c4", "c5"]


def test_another_model_is_asked_itself(store):
    ask(Echo("a"), cases(2), store, silent, "")
    assert held(Echo("b"), cases(2), store) == {}
    assert texts(ask(Echo("b"), cases(2), store, silent, "")) == {"c0": "b: p0", "c1": "b: p1"}


def test_an_interrupted_run_keeps_its_batches(store):
    model = Echo(stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        ask(model, cases(7), store, silent, "")
    assert model.asked == ["c6", "c5", "c4", "c3"]
    assert sorted(texts(held(Echo(), cases(7), store))) == ["c3", "c4", "c5", "c6"]
    resumed = Echo()
    assert len(ask(resumed, cases(7), store, silent, "")) == 7
    assert resumed.asked == ["c2", "c1", "c0"]


def test_an_error_is_shown_but_asked_again(store):
    responses = ask(Echo(fails=["c1"]), cases(3), store, silent, "")
    assert responses["d", "c1"].error == "timed out"
    model = Echo()
    assert ask(model, cases(3), store, silent, "")["d", "c1"].text == "echo: p1"
    assert model.asked == ["c1"]


def test_equal_requests_share_what_is_stored(store):
    one, two = cases(1)[0], GoldenCase("other", "e", "exact_match", ("5",), prompt="p0", tags={"a": "b"})
    ask(Echo(), [one], store, silent, "")
    assert texts(held(Echo(), [two], store)) == {"other": "echo: p0"}


def test_what_is_recorded_is_looked_up_and_not_stored(store):
    model = Echo()
    model.stored = True
    assert len(held(model, cases(3), store)) == 3
    assert store.get("echo", [case.request_digest() for case in cases(3)]) == {}


def test_progress_counts_to_the_number_of_missing_cases(store):
    shown: list[object] = []

    @contextmanager
    def progress(title: str, total: int):
        shown.append((title, total))
        yield shown.append

    ask(Echo(), cases(2), store, progress, "old model")
    ask(Echo(), cases(7), store, progress, "new model")
    ask(Echo(), cases(7), store, progress, "nothing")
    assert shown == [("old model", 2), 2, ("new model", 5), 2, 2, 1]


# Processes ----------------------------------------------------------------------------------------

ASK = r"""
import os, signal, sys, time
from pathlib import Path
from test_evaluation import Echo, ask, cases, silent, Store

log, stop = Path(sys.argv[2]), int(sys.argv[3])

class Logging(Echo):
    def answer(self, case):
        if len(self.asked) > stop:
            os.kill(os.getpid(), signal.SIGKILL)
        with log.open("a") as file:
            file.write(case.id + "\n")
        time.sleep(0.01)
        return super().answer(case)

print(len(ask(Logging(), cases(20), Store(Path(sys.argv[1])), silent, "")))
"""


def start(*arguments: object) -> subprocess.Popen[str]:
    paths = [str(Path(__file__).parent), *sys.path]
    return subprocess.Popen(
        [sys.executable, "-c", ASK, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )


def test_a_killed_run_asks_only_for_what_it_lacks(tmp_path):
    log = tmp_path / "log"
    killed = start(tmp_path, log, 10)
    killed.communicate(timeout=60)
    assert killed.returncode == -9
    before = log.read_text().split()
    assert before == [f"c{i}" for i in range(19, 9, -1)]
    resumed = start(tmp_path, log, 99)
    assert resumed.communicate(timeout=60)[0] == "20\n"
    assert log.read_text().split() == [f"c{i}" for i in range(19, -1, -1)]


def test_two_runs_at_once_ask_each_case_once(tmp_path):
    log = tmp_path / "log"
    runs = [start(tmp_path, log, 99) for _ in range(2)]
    assert [each.communicate(timeout=60)[0] for each in runs] == ["20\n", "20\n"]
    assert sorted(log.read_text().split()) == sorted(f"c{i}" for i in range(20))
