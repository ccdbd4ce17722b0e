"""Asking models: only for what the store lacks, batch by batch, by one process at a time."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from pytest_muscle import evaluation
from pytest_muscle.evaluation import ask, divide, held, silent
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


def test_an_error_holds_for_the_run_and_is_asked_again_by_the_next(store, tmp_path):
    responses = ask(Echo(fails=["c1"]), cases(3), store, silent, "")
    assert responses["d", "c1"].error == "timed out"
    model = Echo()
    assert ask(model, cases(3), store, silent, "")["d", "c1"].error == "timed out"
    assert model.asked == []
    following = Store(tmp_path, "the next run")
    assert ask(model, cases(3), following, silent, "")["d", "c1"].text == "echo: p1"
    assert model.asked == ["c1"]
    following.close()
    store.forget_failures()
    assert len(store.get("echo", [case.request_digest() for case in cases(3)])) == 3


@pytest.mark.parametrize(("count", "workers"), [(1, 2), (2, 8), (7, 3), (100, 2), (1000, 4)])
def test_shares_hold_every_case_once_and_shrink(count, workers):
    shares = divide(cases(count), workers)
    assert sorted(case.id for share in shares for case in share) == sorted(c.id for c in cases(count))
    assert all(shares)
    assert divide(cases(count), workers) == shares
    if count == 1000:
        sizes = [len(share) for share in shares]
        assert len(sizes) == 4 * workers
        assert sizes == pytest.approx([125] * 4 + [62.5] * 4 + [31.25] * 8, abs=1)


def test_shares_hold_cases_that_begin_alike():
    subjects = [f"{name} " * 50 for name in ("law", "music", "trees")]
    given = [
        GoldenCase(
            f"c{i}",
            "d",
            "exact_match",
            ("4",),
            prompt=f"{'x' * (i % 40)}{i}" if i % 2 else "",
            messages=({"role": "system", "content": subjects[i % 3]},) if i % 2 else (),
            choices=() if i % 2 else (subjects[i % 3], "b"),
        )
        for i in range(600)
    ]
    shares = divide(given, 2)
    told = [
        [(bool(case.choices), *(m["content"] for m in case.messages)) for case in share] for share in shares
    ]
    flat = [each for share in told for each in share]
    changes = sum(a != b for a, b in pairwise(flat))
    assert changes == len(set(flat)) - 1
    # Of about as much to read and write each, whatever the number of cases.
    sizes = [sum(map(evaluation._length, share)) for share in shares]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)
    assert sizes[0] == pytest.approx(4 * sizes[-1], rel=0.2)


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
workers, name = int(sys.argv[4]), sys.argv[5]

class Logging(Echo):
    def answer(self, case):
        if len(self.asked) == 2:
            meet()
        if len(self.asked) > stop:
            os.kill(os.getpid(), signal.SIGKILL)
        with log.open("a") as file:
            file.write(f"{case.id}\n" if workers == 1 else f"{name} {case.id}\n")
        time.sleep(0.01)
        return super().answer(case)

def meet():
    log.with_suffix("." + name).touch()
    end = time.monotonic() + 20
    while time.monotonic() < end and len(list(log.parent.glob("log.*"))) < workers:
        time.sleep(0.01)

print(len(ask(Logging(), cases(20), Store(Path(sys.argv[1])), silent, "", workers=workers)))
"""


def start(folder: Path, log: Path, stop: int, workers: int = 1, name: str = "w") -> subprocess.Popen[str]:
    paths = [str(Path(__file__).parent), *sys.path]
    return subprocess.Popen(
        [sys.executable, "-c", ASK, *map(str, (folder, log, stop, workers, name))],
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


def workers(tmp_path: Path, *stops: int) -> list[list[str]]:
    """Which cases each worker of a run answered, where all of them have some; each stops at its number."""
    log = tmp_path / "log"
    runs = [start(tmp_path, log, stop, len(stops), f"w{i}") for i, stop in enumerate(stops)]
    ends = [(each.communicate(timeout=60)[0], each.returncode) for each in runs]
    assert ends == [("", -9) if stop < 99 else ("20\n", 0) for stop in stops]
    lines = [line.split() for line in log.read_text().splitlines()]
    return [[case for worker, case in lines if worker == f"w{i}"] for i in range(len(stops))]


def test_workers_divide_the_cases(tmp_path):
    one, other = workers(tmp_path, 99, 99)
    assert one
    assert other
    assert sorted(one + other) == sorted(f"c{i}" for i in range(20))


def test_what_a_killed_worker_has_answered_stays_and_the_rest_is_taken_over(tmp_path):
    killed, other = workers(tmp_path, 4, 99)
    assert len(killed) == 4
    assert sorted(killed + other) == sorted(f"c{i}" for i in range(20))
