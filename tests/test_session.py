"""One run: two models on golden datasets, each asked for what is missing and for nothing else."""

import json
import sys
from pathlib import Path

import pytest

from pytest_muscle import MuscleError, compare
from pytest_muscle.reports.evidence import noise_sentences
from pytest_muscle.session import Session
from pytest_muscle.settings.loading import load_settings

SYSTEM = """
from pathlib import Path

def asked(name, case):
    with Path("asked").open("a") as file:
        file.write(f"{name} {case.id}\\n")

def old(case):
    asked("old", case)
    return case.id[-1]

def new(case):
    asked("new", case)
    return "1"
"""
MODELS = {name: {"spec": f"python:asked_system:{name}", "revision": "1"} for name in ("old", "new")}


def write(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A current folder with ten cases, recordings of two models and two functions that log their calls."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "asked_system", raising=False)
    Path("asked_system.py").write_text(SYSTEM)
    answers = "0123456789"
    write(
        tmp_path / "golden/qa.jsonl",
        *({"id": f"q{i}", "prompt": i, "answer": i, "tags": {"even": int(i) % 2 == 0}} for i in answers),
    )
    write(tmp_path / "old.jsonl", *({"id": f"q{i}", "text": i} for i in answers))
    write(tmp_path / "new.jsonl", *({"id": f"q{i}", "text": i if i < "7" else "9"} for i in answers))
    return tmp_path


def recorded(**options: object):
    return compare("recorded:old.jsonl", "recorded:new.jsonl", "golden/qa.jsonl", **options)


def session(selected: set[str] | None = None, run_id: str = "", **options: object) -> Session:
    here = Path.cwd()
    table = {"old": "old", "new": "new", "models": MODELS, "golden": ["golden/*.jsonl"], **options}
    settings = load_settings(here, here, {}, table=table)
    assert settings is not None
    made = Session(settings, run_id)
    if selected is not None:
        made.select({("golden/qa.jsonl", name) for name in selected})
    return made


def calls() -> list[str]:
    path = Path("asked")
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


# compare() ----------------------------------------------------------------------------------------


def test_two_recordings(folder):
    comparison = recorded(thresholds={"max_nfr": 0.2})
    assert (comparison.metrics.n, comparison.metrics.nfr, comparison.metrics.accuracy_new) == (10, 0.2, 0.8)
    assert comparison.passed
    assert [gate.passed for gate in comparison.gates] == [True]
    assert comparison.notices == []
    assert (comparison.old.spec, comparison.new.spec) == ("recorded:old.jsonl", "recorded:new.jsonl")
    assert set(comparison.datasets["golden/qa.jsonl"].slices) == {"even=true", "even=false"}
    assert not recorded(thresholds={"max_nfr": 0.1}).passed


def test_datasets_are_a_path_several_or_a_pattern(folder):
    write(folder / "golden/more.jsonl", {"id": "q1", "prompt": "p", "answer": "1"})
    write(folder / "all.jsonl", *({"id": f"q{i}", "text": str(i)} for i in range(10)))
    for golden in ("golden/*.jsonl", [folder / "golden/more.jsonl", "golden/qa.jsonl"]):
        comparison = compare("recorded:all.jsonl", "recorded:all.jsonl", golden)
        assert sorted(comparison.datasets) == ["golden/more.jsonl", "golden/qa.jsonl"]
        assert comparison.metrics.errors == 2, "the id q1 is used twice, and so names neither"
    assert compare("recorded:all.jsonl", "recorded:all.jsonl", Path("golden/qa.jsonl")).metrics.n == 10


def test_missing_and_extra_responses_are_named_and_never_flips(folder):
    write(folder / "new.jsonl", *({"id": f"q{i}", "text": "x"} for i in (3, 4, 77)))
    comparison = recorded(thresholds={"max_nfr": 1.0})
    assert (comparison.metrics.n, comparison.metrics.errors, comparison.metrics.nfr) == (2, 8, 1.0)
    assert comparison.notices == [
        f"{folder}/new.jsonl: no usable response to 8 of 10 cases ('q0', 'q1', 'q2', ...)",
        f"{folder}/new.jsonl: 1 responses have no golden case ('q77')",
    ]
    assert not comparison.passed


def test_limit_tolerance_and_defaults_of_a_dataset(folder):
    assert recorded(limit=3).metrics.n == 3
    table = {"golden/qa.jsonl": {"extract": "([0-8])", "tags": {"from": 2024}}}
    comparison = recorded(datasets=table)
    assert comparison.result(comparison.results[9].case).old_grade.answer is None
    assert comparison.results[0].case.tags == {"from": "2024", "even": "true"}
    write(folder / "sums.jsonl", {"id": "q1", "prompt": "p", "answer": "1 2 3 4", "metric": "rouge1"})
    write(folder / "a.jsonl", {"id": "q1", "text": "1 2 3 4"})
    write(folder / "b.jsonl", {"id": "q1", "text": "1 2 3"})
    for tolerance, nfr in ((0.0, 1.0), (0.2, 0.0)):
        found = compare("recorded:a.jsonl", "recorded:b.jsonl", "sums.jsonl", tolerance=tolerance)
        assert found.metrics.nfr == nfr


def test_code_is_run_where_the_project_names_it_not_where_a_record_does(folder, monkeypatch):
    (folder / "scores.py").write_text("def same(text, reference):\n    return float(text == reference)\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "scores", raising=False)
    record = {"id": "q1", "prompt": "p", "answer": "a", "metric": "scores:same"}
    write(folder / "own.jsonl", {"id": "q0", "prompt": "p", "answer": "a"}, record)
    write(folder / "a.jsonl", {"id": "q0", "text": "a"}, {"id": "q1", "text": "a"})
    arguments = ("recorded:a.jsonl", "recorded:a.jsonl", "own.jsonl")
    with pytest.raises(MuscleError, match=r"own.jsonl:2: metric scores:same is code that a record names"):
        compare(*arguments)
    assert "scores" not in sys.modules
    assert compare(*arguments, metrics=["scores:same"]).metrics.errors == 0
    named = {"own.jsonl": {"task": "generation", "metric": "scores:same"}}
    assert compare(*arguments, datasets=named).metrics.errors == 0


def test_choices_that_rounding_may_swap_are_counted(folder):
    choices = {"prompt": "p", "choices": ["a", "b"], "answer": 0}
    write(folder / "fine.jsonl", {"id": "c0", **choices}, {"id": "c1", **choices})
    near, far = [-1.00001, -1.0], [-2.0, -1.0]
    write(
        folder / "a.jsonl", *({"id": f"c{i}", "loglikelihoods": each} for i, each in enumerate((near, far)))
    )
    write(folder / "b.jsonl", *({"id": f"c{i}", "loglikelihoods": far} for i in range(2)))
    comparison = compare("recorded:a.jsonl", "recorded:b.jsonl", "fine.jsonl")
    assert [result.case.id for result in comparison.fragile] == ["c0"]
    result = comparison.to_dict()
    assert result["fragile"] == 1
    assert [case["fragile"] for case in result["cases"]] == [True, False]
    told = list(noise_sentences(comparison))
    assert told[0].startswith("1 fragile case: two choices within 0.0001")
    assert "fine.jsonl::c0" in told[1]
    assert len(told) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"old": "recorded:no.jsonl"}, "the old model: model 'recorded:"),
        ({"new": "./no-such-folder"}, "the new model: "),
        ({"new": "nokind:thing"}, "the new model: model 'nokind:thing': unknown kind 'nokind:'"),
        ({"new": "recorded:"}, "the new model: model 'recorded:': nothing stands after the colon"),
        ({"golden": "no.jsonl"}, "golden dataset no.jsonl: no such file"),
        ({"thresholds": {"max_nrf": 0.1}}, "unknown key 'max_nrf' in [tool.pytest-muscle.thresholds]"),
        ({"golden": "bad.jsonl"}, "bad.jsonl:1: malformed JSON"),
        ({"new": "recorded:bad.jsonl"}, "bad.jsonl:1: malformed JSON"),
    ],
)
def test_what_the_caller_can_mend_is_a_clear_error(folder, change, message):
    Path("bad.jsonl").write_text("{")
    arguments = {
        "old": "recorded:old.jsonl",
        "new": "recorded:new.jsonl",
        "golden": "golden/qa.jsonl",
        **change,
    }
    with pytest.raises(MuscleError) as caught:
        compare(**arguments)
    assert str(caught.value).removeprefix(f"{folder}/").startswith(message)


# Asking -------------------------------------------------------------------------------------------


def test_each_model_is_asked_once_the_old_one_first(folder):
    first = session()
    assert first.comparison.metrics.nfr == 0.9
    assert first.comparison is first.comparison
    first.close()
    assert calls() == [f"{name} q{i}" for name in ("old", "new") for i in range(10)]
    second = session()
    assert second.comparison.to_dict() == first.comparison.to_dict()
    second.close()
    assert calls() == []


def test_only_selected_cases_are_asked(folder):
    part = session({"q3", "q4"}, thresholds={"max_nfr": 1.0})
    comparison = part.comparison
    part.close()
    assert calls() == ["old q3", "old q4", "new q3", "new q4"]
    assert [each.case.id for each in comparison.results] == ["q3", "q4"]
    assert (comparison.unselected, list(comparison.beside)) == (8, [])
    assert [(gate.answered, gate.cases, gate.passed) for gate in comparison.gates] == [(2, 10, None)]


def test_what_the_store_holds_of_the_others_is_beside(folder):
    whole = session(thresholds={"max_nfr": 1.0})
    assert whole.comparison.passed
    whole.close()
    calls()
    part = session({"q3"}, thresholds={"max_nfr": 1.0})
    comparison = part.comparison
    part.close()
    assert calls() == []
    assert [each.case.id for each in comparison.results] == ["q3"]
    assert len(comparison.beside) == 9
    assert comparison.gates == whole.comparison.gates


def test_another_process_compares_the_same_from_the_store(folder):
    worker, controller = session({"q1", "q2"}, "run"), session(None, "run")
    expected = worker.comparison.to_dict()
    described = json.loads(json.dumps(worker.describe()))
    calls()
    controller.resume(described)
    assert controller.from_store().to_dict() == expected
    assert calls() == []
    worker.close()
    controller.close()


def test_from_the_store_alone_nothing_is_asked(folder):
    made = session()
    assert made.from_store().metrics.errors == 10
    made.close()
    assert calls() == []


def test_without_a_revision_a_function_is_asked_afresh_in_every_run(folder):
    models = {name: {"spec": f"python:asked_system:{name}"} for name in ("old", "new")}
    for run_id, count in (("one", 20), ("one", 0), ("two", 20)):
        made = session(None, run_id, models=models)
        assert made.comparison.metrics.n == 10
        made.close()
        assert len(calls()) == count


def test_without_a_cache_nothing_is_left(folder, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    for keep in (True, False):
        made = session(None, "run", no_cache=True)
        assert made.comparison.metrics.n == 10
        made.close(keep)
        assert len(list(elsewhere.iterdir())) == keep
    assert len(calls()) == 20
    assert not (folder / ".pytest-muscle").exists()


def test_a_model_against_itself_is_asked_once_and_never_flips(folder):
    made = session(new="old")
    assert made.comparison.metrics.counts == {"both_correct": 10}
    made.close()
    assert calls() == [f"old q{i}" for i in range(10)]


def test_a_failing_function_makes_its_case_unjudgeable_and_is_asked_again(folder):
    broken = SYSTEM.replace('return "1"', 'return {"q1": "1"}[case.id]')
    Path("asked_system.py").write_text(broken)
    made = session()
    assert (made.comparison.metrics.n, made.comparison.metrics.errors) == (1, 9)
    assert "raised KeyError: 'q0'" in (made.comparison.results[0].error or "")
    made.close()
    calls()
    again = session({"q0", "q1"})
    assert len(again.comparison.results) == 2
    again.close()
    assert calls() == ["new q0"]


def test_one_model_is_closed_before_the_other_is_asked(folder, monkeypatch):
    from pytest_muscle.models.python import PythonModel

    def close(model: PythonModel) -> None:
        with Path("asked").open("a") as file:
            file.write("close\n")

    monkeypatch.setattr(PythonModel, "close", close)
    made = session({"q1"})
    assert made.comparison.results
    made.close()
    assert calls() == ["old q1", "close", "new q1", "close"]


def test_check_opens_both_models_and_asks_nothing(folder):
    session().check()
    with pytest.raises(MuscleError, match="the new model: "):
        session(new="python:no_such_module:f").check()
    assert calls() == []


def test_a_damaged_store_is_told(folder):
    (folder / ".pytest-muscle").mkdir()
    (folder / ".pytest-muscle/responses.sqlite").write_bytes(b"rubbish" * 1000)
    made = session()
    assert any("set aside as damaged-" in notice for notice in made.comparison.notices)
    made.close()
