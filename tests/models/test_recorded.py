"""``recorded:FILE``: responses found by id, and files that are wrong."""

import json
import math
import tracemalloc
from pathlib import Path

import pytest

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import GoldenCase
from pytest_muscle.grading import grade
from pytest_muscle.models import Response, open_model
from pytest_muscle.store import encode_response


def case(name: str, dataset: str = "d.jsonl") -> GoldenCase:
    return GoldenCase(name, dataset, "exact_match", ("4",))


def record(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return path


def respond(path: Path, *cases: GoldenCase) -> tuple[list[Response], list[str]]:
    model = open_model(f"recorded:{path}")
    found = [pair for batch in model.respond(cases) for pair in batch]
    assert [asked for asked, _ in found] == list(cases)
    return [response for _, response in found], model.notices


def refused(path: Path) -> str:
    with pytest.raises(MuscleError) as caught:
        respond(path, case("a"))
    assert str(caught.value).isprintable()
    return str(caught.value).removeprefix(str(path))


def test_every_kind_of_response(tmp_path):
    path = record(
        tmp_path / "r.jsonl",
        {"id": "d", "error": "timeout"},
        {"id": "c", "loglikelihoods": [-1, -2.5, float("-inf")], "note": "the user's own"},
        {"id": "b", "choice": 1},
        {"id": 1, "text": "4"},
        {"id": "e", "text": ""},
    )
    responses, notices = respond(path, case("1"), case("b"), case("c"), case("d"), case("e"))
    assert responses == [
        Response(text="4"),
        Response(choice=1),
        Response(loglikelihoods=(-1.0, -2.5, -math.inf)),
        Response(error="timeout"),
        Response(text=""),
    ]
    assert notices == [f"{path}: no usable response to 1 of 5 cases ('d')"]


def test_missing_and_extra_records_are_named_and_counted(tmp_path):
    path = record(
        tmp_path / "r.jsonl", *({"id": f"x{i}", "text": "4"} for i in range(5)), {"id": "a", "text": ""}
    )
    responses, notices = respond(path, case("a"), case("b\x1b[2J"), case("c"))
    assert [response.error for response in responses] == [
        None,
        "r.jsonl holds no response with id 'b\\x1b[2J'",
        "r.jsonl holds no response with id 'c'",
    ]
    assert notices == [
        f"{path}: no usable response to 2 of 3 cases ('b\\x1b[2J', 'c')",
        f"{path}: 5 responses have no golden case ('x0', 'x1', 'x2', ...)",
    ]


def test_the_dataset_counts_where_an_id_is_used_twice(tmp_path):
    path = record(
        tmp_path / "r.jsonl",
        {"id": "a", "dataset": "d.jsonl", "text": "of d"},
        {"id": "a", "dataset": "e.jsonl", "text": "of e"},
        {"id": "b", "text": "of whom?"},
        {"id": "c", "dataset": "moved.jsonl", "text": "of c"},
    )
    cases = [case(name, dataset) for name in "ab" for dataset in ("e.jsonl", "d.jsonl")]
    (of_e, of_d, *unclear), _ = respond(path, *cases)
    assert (of_e.text, of_d.text) == ("of e", "of d")
    assert [response.text for response in unclear] == [None, None]
    assert "several datasets use the id 'b'" in (unclear[0].error or "")
    assert respond(path, case("c"))[0] == [Response(text="of c")]
    assert respond(path, case("a", "f.jsonl"))[0][0].text is None


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    one = record(tmp_path / "one.jsonl", {"id": "a", "text": "4"})
    two = record(tmp_path / "two.jsonl", {"id": "a", "text": "4"})
    other = record(tmp_path / "other.jsonl", {"id": "a", "text": "5"})
    prints = [open_model(f"recorded:{path}").fingerprint for path in (one, two, other)]
    assert prints[0] == prints[1] != prints[2]


def test_lone_surrogates_and_a_megabyte_pass_through(tmp_path):
    text = "\ud800\x1b[31m" + "x" * 1_000_000
    path = record(tmp_path / "r.jsonl", {"id": "\udfff", "text": text})
    (response,), _ = respond(path, case("\udfff"))
    assert response.text == text


# Long texts


LONG = "Köln " * 40_000


def test_long_texts_stay_in_the_file(tmp_path):
    names = [f"c{i}" for i in range(50)]
    path = record(tmp_path / "r.jsonl", *({"id": name, "text": name + LONG} for name in names))
    assert path.stat().st_size > 10_000_000
    tracemalloc.start()
    responses, _ = respond(path, *map(case, names))
    grades = grade(list(map(case, names)), responses, lambda *_: [])
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 500_000
    assert most < 4_000_000
    assert len({each.answer for each in grades}) == 50
    assert [response.text for response in responses] == [name + LONG for name in names]


def test_long_texts_that_are_scored_are_not_held_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("pytest_muscle.grading._TOGETHER", 2 * len(LONG))
    names = [f"c{i}" for i in range(7)]
    path = record(tmp_path / "r.jsonl", *({"id": name, "text": name + LONG} for name in names))
    cases = [GoldenCase(name, "d", "generation", ("4",), metric="rouge1") for name in names]
    asked = []

    def similarity(metric, pairs):
        asked.append(len(pairs))
        return [float(text[1]) for text, _ in pairs]

    assert [each.score for each in grade(cases, respond(path, *cases)[0], similarity)] == list(range(7))
    assert asked == [2, 2, 2, 1]


def test_a_filed_response_is_like_any_other(tmp_path):
    first = {"id": "a", "text": LONG, "method": "letter", "choice": 1}
    path = record(tmp_path / "r.jsonl", first, {"id": "b", "text": LONG})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (one, other), _ = respond(path, case("a"), case("b"))
    assert (one.choice, one.method, one.choice_method) == (1, "letter", "letter")
    assert encode_response(one) == {"text": LONG, "choice": 1, "method": "letter"}
    assert encode_response(other) == {"text": LONG}


def test_a_file_that_is_changed_during_the_run_is_noticed(tmp_path):
    path = record(tmp_path / "r.jsonl", {"id": "a", "text": LONG}, {"id": "b", "text": LONG + "!"})
    responses, _ = respond(path, case("a"), case("b"))
    record(path, {"id": "a", "text": LONG}, {"id": "b", "text": LONG + "?"})
    assert responses[0].text == LONG
    with pytest.raises(MuscleError, match=r"r.jsonl:2: the file was changed during the run; run again"):
        assert responses[1].text
    path.unlink()
    with pytest.raises(MuscleError, match=r"r.jsonl: cannot be read"):
        assert responses[0].text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"text": "4"}, "field 'id' must name the golden case"),
        ({"id": None, "text": "4"}, "field 'id' must name the golden case"),
        ({"id": 1.5, "text": "4"}, "field 'id' must name the golden case"),
        ({"id": True, "text": "4"}, "field 'id' must name the golden case"),
        ({"id": "b"}, "one of the fields 'text', 'choice' and 'loglikelihoods' must be given"),
        ({"id": "b", "text": 4}, "field 'text' must be a text, not 4"),
        ({"id": "b", "text": "4", "error": 1}, "field 'error' must be a text, not 1"),
        ({"id": "b", "text": "4", "dataset": 1}, "field 'dataset' must be a text"),
        ({"id": "b", "choice": "1"}, "field 'choice' must be the index of a choice, not '1'"),
        ({"id": "b", "choice": True}, "field 'choice' must be the index of a choice, not True"),
        ({"id": "b", "loglikelihoods": -1.0}, "field 'loglikelihoods' must be a list of numbers"),
        ({"id": "b", "loglikelihoods": [None]}, "field 'loglikelihoods' must be a list of numbers"),
        ({"id": "b", "loglikelihoods": [True]}, "field 'loglikelihoods' must be a list of numbers"),
        ({"id": "b", "loglikelihoods": [-(10**400)]}, "field 'loglikelihoods' holds a number beyond"),
        (
            {"id": "b", "loglikelihood": [-1.0]},
            "unknown field 'loglikelihood'; did you mean 'loglikelihoods'?",
        ),
        ({"id": "a", "text": "5"}, "a second response with id 'a', the first is on line 1"),
    ],
)
def test_bad_records(tmp_path, line, message):
    path = record(tmp_path / "r.jsonl", {"id": "a", "text": "4"}, line)
    assert refused(path).startswith(f":2: {message}")


def test_bad_files(tmp_path):
    path = tmp_path / "r.jsonl"
    with pytest.raises(MuscleError, match=r"no such file; record one with --muscle-record DIR"):
        open_model(f"recorded:{path}")
    path.write_text('{"id": "a", "text": "4"}\n{"id": ')
    assert refused(path).startswith(":2: malformed JSON")
    path.write_bytes(b'{"id": "a", "text": "\xff"}')
    assert refused(path).startswith(":1: not UTF-8")
    path.write_bytes(b"")
    assert refused(path) == ": the file holds no records"
