"""The store of responses: what goes in comes out, under kills, damage and several processes."""

import math
import os
import random
import sqlite3
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_muscle.errors import MuscleError
from pytest_muscle.models import Response
from pytest_muscle.store import VERSION, Store, decode_response, encode_response

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=30)
RESPONSES = st.builds(
    Response,
    text=st.none() | ANY_TEXT,
    choice=st.none() | st.integers(0, 99),
    loglikelihoods=st.lists(st.floats(max_value=0, allow_nan=False), max_size=4).map(tuple),
    method=st.none() | st.sampled_from(["letter", "echo"]),
)


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "store")
    yield opened
    opened.close()


def reopen(store: Store) -> Store:
    store.close()
    return Store(store.path.parent)


@given(RESPONSES)
def test_a_response_survives_its_encoding(response):
    assert decode_response(encode_response(response)) == response


def test_what_goes_in_comes_out_of_a_new_connection(store):
    @given(st.dictionaries(st.text("0123456789abcdef", min_size=1), RESPONSES, max_size=8))
    def check(responses):
        store.put("model", responses.items())
        other = Store(store.path.parent)
        assert other.get("model", [*responses, "absent"]) == responses
        assert other.notices == []
        other.close()

    check()


def test_infinite_and_nan_loglikelihoods_are_kept(store):
    store.put("m", [("r", Response(loglikelihoods=(-math.inf, math.nan)))])
    low, bad = store.get("m", ["r"])["r"].loglikelihoods
    assert low == -math.inf
    assert math.isnan(bad)


def test_a_model_never_gets_the_responses_of_another(store):
    store.put("old", [("r", Response(text="old's"))])
    assert store.get("new", ["r"]) == {}
    store.put("new", [("r", Response(text="new's"))])
    assert store.get("old", ["r"])["r"].text == "old's"


def test_many_requests_at_once(store):
    responses = {f"r{i}": Response(choice=i) for i in range(1234)}
    store.put("m", responses.items())
    assert store.get("m", list(responses)) == responses


def test_the_last_answer_to_a_request_counts(store):
    store.put("m", [("r", Response(text="first"))])
    store.put("m", [("r", Response(text="second")), ("s", Response(text=""))])
    assert {key: each.text for key, each in store.get("m", ["r", "s"]).items()} == {"r": "second", "s": ""}


def test_a_failing_batch_is_not_half_kept(store):
    def batch():
        yield "r", Response(text="one")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.put("m", batch())
    assert store.get("m", ["r"]) == {}
    store.put("m", [("r", Response(text="two"))])
    assert store.get("m", ["r"])["r"].text == "two"


def test_the_folder_is_left_out_of_version_control(store):
    assert (store.path.parent / ".gitignore").read_text() == "*\n"


# Damage -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value"),
    [("response", '{"text": "forged"}'), ("checksum", "0" * 16), ("response", None), ("response", 7)],
)
def test_a_row_that_does_not_match_its_checksum_is_dropped(store, column, value):
    store.put("m", [("r", Response(text="real")), ("s", Response(text="other"))])
    store._connection.execute(f"UPDATE responses SET {column} = ? WHERE request = 'r'", (value,))
    store = reopen(store)
    assert set(store.get("m", ["r", "s"])) == {"s"}
    assert store.notices == [f"{store.path}: 1 damaged responses dropped; they are asked again"]
    store.put("m", [("r", Response(text="again"))])
    assert store.get("m", ["r"])["r"].text == "again"
    store.close()


@pytest.mark.parametrize(("column", "value"), [("model", "other"), ("request", "s")])
def test_a_row_moved_to_other_keys_is_dropped(store, column, value):
    store.put("m", [("r", Response(text="real"))])
    store._connection.execute(f"UPDATE responses SET {column} = ?", (value,))
    assert store.get("m", ["r", "s"]) == store.get("other", ["r", "s"]) == {}
    assert len(store.notices) == 1


def test_text_that_is_no_utf8_is_dropped(store):
    store.put("m", [("r", Response(text="real"))])
    store._connection.execute("UPDATE responses SET response = CAST(X'22ff22' AS TEXT)")
    assert store.get("m", ["r"]) == {}
    assert len(store.notices) == 1


def test_a_file_that_is_no_database_is_set_aside(tmp_path):
    (tmp_path / "responses.sqlite").write_bytes(b"no database" * 1000)
    store = Store(tmp_path)
    (notice,) = store.notices
    (aside,) = tmp_path.glob("damaged-*.sqlite")
    assert notice.endswith(f"set aside as {aside.name}, starting afresh")
    assert aside.read_bytes().startswith(b"no database")
    store.put("m", [("r", Response(text="kept"))])
    store = reopen(store)
    assert store.get("m", ["r"])["r"].text == "kept"
    assert store.notices == []
    store.close()


def filled(folder: Path) -> dict[str, Response]:
    responses = {f"{i:064x}": Response(text=f"answer {i} " * 20) for i in range(200)}
    store = Store(folder)
    store.put("m", responses.items())
    store.close()
    return responses


def test_a_truncated_file_is_set_aside_while_it_is_used(tmp_path):
    responses = filled(tmp_path)
    path = tmp_path / "responses.sqlite"
    os.truncate(path, path.stat().st_size // 2)
    store = Store(tmp_path)
    assert store.get("m", list(responses)) == {}
    assert "set aside as damaged-" in store.notices[0]
    store.put("m", responses.items())
    assert store.get("m", list(responses)) == responses
    store.close()


def test_the_one_who_comes_late_to_the_damage_keeps_the_new_file(tmp_path):
    responses = filled(tmp_path)
    first, second = Store(tmp_path), Store(tmp_path)
    path = tmp_path / "responses.sqlite"
    os.truncate(path, path.stat().st_size // 2)
    first.put("m", responses.items())
    second.put("m", [("new", Response(text="kept"))])
    assert len(list(tmp_path.glob("damaged-*"))) == 1
    assert first.get("m", ["new", *responses]) == {"new": Response(text="kept"), **responses}
    first.close()
    second.close()


def test_flipped_bits_never_give_another_answer(tmp_path):
    chance = random.Random(0)
    responses = filled(tmp_path / "0")
    whole = (tmp_path / "0" / "responses.sqlite").read_bytes()
    lost = 0
    for i in range(1, 101):
        content = bytearray(whole)
        for _ in range(chance.choice([1, 1, 10, 100])):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "responses.sqlite").write_bytes(content)
        try:
            store = Store(folder)
            found = store.get("m", list(responses))
            store.close()
        except MuscleError as error:
            assert str(folder) in str(error)  # noqa: PT017
            continue
        assert all(responses[request] == response for request, response in found.items())
        if len(found) < len(responses):
            lost += 1
    assert lost > 20


# What cannot be used ------------------------------------------------------------------------------


def test_a_newer_format_is_refused_and_left_alone(store):
    store._connection.execute(f"PRAGMA user_version={VERSION + 1}")
    with pytest.raises(MuscleError) as caught:
        reopen(store)
    assert str(caught.value).startswith(
        f"{store.path}: written by a newer pytest-muscle (format {VERSION + 1}, this one reads {VERSION}); "
    )
    assert list(store.path.parent.glob("damaged-*")) == []


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(MuscleError, match=r"cannot be opened: .*; use --muscle-cache-dir DIR"):
            Store(folder)


def test_a_database_that_is_a_folder(tmp_path):
    (tmp_path / "responses.sqlite").mkdir()
    with pytest.raises(MuscleError, match="cannot be opened: unable to open database file"):
        Store(tmp_path)


def test_a_full_disk(store):
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count={pages + 2}")
    store.put("m", [("kept", Response(text="kept"))])
    with pytest.raises(MuscleError, match="database or disk is full; free some space"):
        store.put("m", [("r", Response(text="x" * 100_000))])
    assert store.get("m", ["kept", "r"]) == {"kept": Response(text="kept")}


# Processes ----------------------------------------------------------------------------------------


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_a_read_only_folder():
    code = """
        import os, sys
        from pathlib import Path
        from pytest_muscle.store import Store
        if os.geteuid() == 0:  # root may write anywhere
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        try:
            Store(Path(sys.argv[1]))
        except Exception as error:
            print(type(error).__name__, error)
    """
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        found = run(code, folder).stdout
        Path(folder).chmod(0o755)
    assert found.startswith(f"MuscleError {folder}/responses.sqlite: the store of responses cannot be opened")
    assert "use --muscle-cache-dir DIR or --muscle-no-cache" in found


def test_a_killed_process_keeps_every_batch_that_was_put(tmp_path):
    code = """
        import os, signal, sys
        from pathlib import Path
        from pytest_muscle.models import Response
        from pytest_muscle.store import Store
        store = Store(Path(sys.argv[1]))
        for i in range(7):
            store.put("m", [(f"{i}-{j}", Response(text=f"{i} {j}")) for j in range(3)])
        store._connection.execute("BEGIN IMMEDIATE")
        store._connection.execute("DELETE FROM responses")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    assert run(code, tmp_path).returncode == -9
    store = Store(tmp_path)
    names = [f"{i}-{j}" for i in range(7) for j in range(3)]
    assert {name: each.text for name, each in store.get("m", names).items()} == {
        name: name.replace("-", " ") for name in names
    }
    assert store.notices == []
    store.close()


def test_several_processes_at_once(tmp_path):
    code = """
        import sys
        from pathlib import Path
        from pytest_muscle.models import Response
        from pytest_muscle.store import Store
        store = Store(Path(sys.argv[1]))
        for i in range(50):
            store.put(sys.argv[2], [(str(i), Response(choice=i))])
        print(len(store.get(sys.argv[2], list(map(str, range(50))))), store.notices)
    """
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: run(code, tmp_path, name).stdout, "abcd"))
    assert found == ["50 []\n"] * 4
    store = Store(tmp_path)
    for name in "abcd":
        assert store.get(name, ["49"]) == {"49": Response(choice=49)}
    store.close()


def test_an_open_transaction_elsewhere_is_waited_for(store):
    other = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(put_from_another_thread, store.path.parent)
        assert not waiting.done()
        other.execute("COMMIT")
        other.close()
        waiting.result(timeout=60)
    assert store.get("m", ["r"])["r"].text == "late"


def put_from_another_thread(folder: Path) -> None:
    store = Store(folder)
    store.put("m", [("r", Response(text="late"))])
    store.close()


def test_a_store_is_opened_by_one_process_at_a_time(store):
    """SQLite answers "database is locked" at once to the second of two that set a new file's journal."""
    with ThreadPoolExecutor() as pool:
        with store.lock("opening"):
            opened = pool.submit(lambda: Store(store.path.parent).close())
            assert not wait([opened], timeout=0.3).done
        opened.result(timeout=30)
