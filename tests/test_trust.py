"""What a run does to the machine, as Python's audit events tell: unpickle, connect, start, write."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from anything import HOSTILE

WATCHED = """
    import json, os, sys

    seen = []

    def hook(event, arguments):
        if event in ("pickle.find_class", "socket.connect", "subprocess.Popen", "os.system", "os.exec"):
            seen.append([event, str(arguments)])
        elif event == "open" and isinstance(arguments[0], str):
            mode, flags = arguments[1] or "", arguments[2]
            if any(each in mode for each in "wax+") or flags & (os.O_WRONLY | os.O_RDWR):
                seen.append(["write", os.path.realpath(arguments[0])])
        elif event == "sqlite3.connect":
            seen.append(["write", os.path.realpath(arguments[0])])
        elif event in ("os.mkdir", "os.rename", "os.remove", "os.symlink", "os.link"):
            seen.append(["write", *(os.path.realpath(each) for each in arguments if isinstance(each, str))])

    from pytest_muscle import compare
    import pytest_muscle.session
    sys.addaudithook(hook)
    compare(*sys.argv[1:4], **json.loads(sys.argv[4]))
    print(json.dumps(seen))
"""


def watched(folder: Path, *models: str, **options: object) -> list[list[str]]:
    """The events of one comparison in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(WATCHED), *models, "golden.jsonl", json.dumps(options)]
    environment = {**os.environ, "TMPDIR": str(folder), "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def write(path: Path, records) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_no_name_leads_out_of_the_folder(tmp_path):
    """Ids, tags, datasets and answers that look like paths, with every file a run can write."""
    folder = tmp_path / "run"
    folder.mkdir()
    names = [name for name in HOSTILE if name]
    write(
        folder / "golden.jsonl",
        ({"id": n, "prompt": n, "answer": n or "?", "tags": {n[:99]: n[:99]}} for n in names if n.strip()),
    )
    for side in ("old", "new"):
        write(folder / f"{side}.jsonl", ({"id": name, "text": name} for name in names))
    events = watched(
        folder,
        "recorded:old.jsonl",
        "recorded:new.jsonl",
        json="out/r.json",
        report="out/r.html",
        markdown="out/r.md",
        record="out/recorded",
        history="out/runs.jsonl",
        accept=True,
    )
    started = [arguments for event, *arguments in events if event == "subprocess.Popen"]
    assert all("'rev-parse'" in arguments[0] for arguments in started)
    written = {path for event, *paths in events for path in paths if event == "write"}
    assert {Path(path).name for path in written} >= {"r.html", "old.jsonl", "runs.jsonl", "responses.sqlite"}
    outside = [path for path in written if not Path(path).is_relative_to(folder) and path != os.devnull]
    assert outside == []
    assert {event for event, *_ in events} <= {"write", "subprocess.Popen"}


@pytest.mark.slow
def test_local_models_are_loaded_without_a_pickle_and_without_a_connection(
    tmp_path, tiny_model, tiny_model_b
):
    cases = [{"prompt": "where is it?", "choices": ["here", "there"], "answer": 0}]
    write(tmp_path / "golden.jsonl", [*cases, {"prompt": "say", "answer": "it", "max_new_tokens": 3}])
    events = watched(tmp_path, str(tiny_model), str(tiny_model_b), json="r.json", device="cpu")
    assert {event for event, *_ in events} & {"pickle.find_class", "socket.connect"} == set()
    assert ["write", str(tmp_path / ".pytest-muscle" / "responses.sqlite")] in events
