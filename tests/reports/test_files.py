"""The JSON result and the recordings: complete, plain, whole or not there at all."""

import json
import os
import stat
from pathlib import Path

import pytest
from cases import RIGHT, results

from pytest_muscle.comparison import Comparison, ModelIdentity
from pytest_muscle.errors import MuscleError
from pytest_muscle.flips import judge
from pytest_muscle.golden import GoldenCase
from pytest_muscle.grading import Grade
from pytest_muscle.models import Response
from pytest_muscle.reports.files import write_files, write_text
from pytest_muscle.session import compare
from pytest_muscle.settings.values import ModelSpec, Settings


def settings(folder: Path, **paths: object) -> Settings:
    model = ModelSpec("recorded:x.jsonl", "recorded:x.jsonl")
    return Settings(root=folder, old=model, new=model, **paths)  # type: ignore[arg-type]


def comparison(*judged) -> Comparison:
    return Comparison(ModelIdentity("a", "1"), ModelIdentity("b", "2"), judged)


def refuse(name: str):
    raise ValueError(f"{name} is not JSON")


def strict(path: Path):
    return json.loads(path.read_text("utf-8"), parse_constant=refuse)


def test_json_is_the_result_without_nan_and_infinity(mixed, tmp_path):
    write_files(mixed, settings(tmp_path, json=tmp_path / "new" / "result.json"))
    found = strict(tmp_path / "new" / "result.json")
    assert found == json.loads(json.dumps(mixed.to_dict()))
    case = GoldenCase("id", "d", "multiple_choice", (0,), choices=("a", "b"))
    response = Response(loglikelihoods=(-1.5, -float("inf")))
    judged = judge(case, response, response, *[Grade(True, 0, 1.0)] * 2)
    write_files(comparison(judged), settings(tmp_path, json=tmp_path / "r.json"))
    assert strict(tmp_path / "r.json")["cases"][0]["old"]["loglikelihoods"] == [-1.5, None]


def test_hostile_text_stays_inside_json(hostile, tmp_path):
    write_files(hostile, settings(tmp_path, json=tmp_path / "result.json", record=tmp_path / "out"))
    content = (tmp_path / "result.json").read_bytes()
    assert b"\x1b" not in content
    assert content.isascii()
    assert [case["id"] for case in strict(tmp_path / "result.json")["cases"]] == [
        result.case.id for result in hostile.results
    ]
    assert all((tmp_path / "out" / f"{side}.jsonl").read_bytes().isascii() for side in ("old", "new"))


def test_recordings_replay_to_the_same_result(mixed, tmp_path, monkeypatch):
    write_files(mixed, settings(tmp_path, record=tmp_path / "out"))
    monkeypatch.chdir(tmp_path)
    again = compare("recorded:out/old.jsonl", "recorded:out/new.jsonl", "golden.jsonl")
    assert again.metrics == mixed.metrics
    for one, other in zip(again.results, mixed.results, strict=True):
        assert (one.case, one.flip, one.delta) == (other.case, other.flip, other.delta)
        assert (one.old_grade, one.new_grade) == (other.old_grade, other.new_grade)


def test_a_response_without_anything_is_recorded_as_an_error(tmp_path):
    case = GoldenCase("id", "d.jsonl", "exact_match", (RIGHT,), prompt="p")
    unjudged = Grade(None, None, None, "the response has no text")
    judged = judge(case, Response(), None, unjudged, unjudged)
    write_files(comparison(judged), settings(tmp_path, record=tmp_path))
    assert strict(tmp_path / "old.jsonl") == {
        "id": "id",
        "dataset": "d.jsonl",
        "error": "the response has no text",
    }
    assert (tmp_path / "new.jsonl").read_text() == ""


def test_nothing_is_written_unasked(tmp_path):
    write_files(comparison(*results(both=1)), settings(tmp_path))
    assert list(tmp_path.iterdir()) == []


# Whole or not at all ------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_and_readable_by_others(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    before = os.umask(0o022)
    try:
        write_text(path, ["old"])
        write_text(path, ["one\n", "two \ud800\n"])
    finally:
        os.umask(before)
    assert path.read_bytes() == b"one\ntwo ?\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(path.parent.iterdir()) == [path]


def test_an_interrupted_file_leaves_the_old_one(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, ["old"])

    def pieces():
        yield "half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_text(path, pieces())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path, reason in (
        (tmp_path / "file" / "r.json", "Not a directory"),
        (tmp_path / "folder", "Is a directory"),
    ):
        with pytest.raises(MuscleError) as caught:
            write_text(path, ["text"])
        assert str(caught.value).startswith(f"{path}: cannot be written: ")
        assert reason in str(caught.value) or "File exists" in str(caught.value)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder"]
    with pytest.raises(MuscleError):
        write_files(comparison(*results(both=1)), settings(tmp_path, record=tmp_path / "file"))
