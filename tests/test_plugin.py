"""The plugin as its users meet it; models are recordings or plain functions: no test needs torch."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from anything import HOSTILE, TEXT
from hypothesis import given
from hypothesis import strategies as st

from pytest_muscle.items import node_name

TRUTH = {"keep": "1", "gain": "2", "lost": "3", "drift": "4", "wrong": "5"}
OLD = {"keep": "1", "gain": "0", "lost": "3", "drift": "8", "wrong": "9"}
NEW = {"keep": "1", "gain": "2", "lost": "0", "drift": "7", "wrong": "9"}
LANG = {"keep": "en", "gain": "en", "lost": "de", "drift": "en", "wrong": "de"}
MODELS = ("--muscle-old=recorded:old.jsonl", "--muscle-new=recorded:new.jsonl")
RUN = (*MODELS, "--muscle-golden=golden/qa.jsonl")


def write_jsonl(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def write_golden(path: Path, ids: list[str] | None = None) -> None:
    records = [
        {"id": i, "prompt": f"What is {i}?", "answer": TRUTH[i], "tags": {"lang": LANG[i]}}
        for i in ids or TRUTH
    ]
    write_jsonl(path, records)


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A golden dataset of five cases, one for each kind of flip, and the recordings of two models."""
    write_golden(pytester.path / "golden/qa.jsonl")
    for name, answers in (("old", OLD), ("new", NEW)):
        write_jsonl(pytester.path / f"{name}.jsonl", [{"id": i, "text": t} for i, t in answers.items()])
    return pytester


def configure(project: pytest.Pytester, text: str) -> None:
    (project.path / "pyproject.toml").write_text(text, encoding="utf-8")


def thresholds(project: pytest.Pytester, text: str) -> None:
    configure(project, f"[tool.pytest-muscle.thresholds]\n{text}\n")


def calling_models(project: pytest.Pytester) -> tuple[str, ...]:
    """Two models that note the id of each case they are asked."""
    project.makepyfile(
        system="""
        from pathlib import Path
        def log(name, case):
            with Path("calls.txt").open("a") as file:
                file.write(f"{name} {case.id}\\n")
        def old(case):
            log("old", case)
            return {"keep": "1", "gain": "0", "lost": "3", "drift": "8", "wrong": "9"}[case.id]
        def new(case):
            log("new", case)
            return {"keep": "1", "gain": "2", "lost": "0", "drift": "7", "wrong": "9"}[case.id]
        """
    )
    return (
        "--muscle-old=python:system:old",
        "--muscle-new=python:system:new",
        "--muscle-golden=golden/qa.jsonl",
    )


def calls(project: pytest.Pytester) -> list[str]:
    file = project.path / "calls.txt"
    return sorted(file.read_text().split("\n")[:-1]) if file.exists() else []


# What becomes of a flip


def test_without_budgets_every_flip_fails(project):
    result = project.runpytest(*RUN, "-v")
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(
        ["golden/qa.jsonl::lost NEGATIVE FLIP*", "golden/qa.jsonl::drift INCONSISTENCY FLIP*"]
    )
    assert result.ret == 1


def test_a_failure_shows_prompt_truth_both_answers_and_the_change(project):
    result = project.runpytest(*RUN)
    result.stdout.fnmatch_lines(
        [
            "*negative flip: '3' -> '0' (truth '3')",
            "prompt*What is lost?",
            "truth*'3'",
            "old*right: '3'",
            "new*wrong: '0'",
        ]
    )
    result.stdout.fnmatch_lines(["NEGATIVE FLIP golden/qa.jsonl::lost - negative flip: '3' -> '0'*"])


def test_flips_within_a_budget_are_tolerated(project):
    thresholds(project, "max_nfr = 0.2\nmax_nfr_mc = 0.4")
    result = project.runpytest(*RUN, "-v", "-rx")
    result.assert_outcomes(passed=5, xfailed=2)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*::lost TOLERATED*", "*::gate?max_nfr_mc? PASSED*"])
    result.stdout.fnmatch_lines(["TOLERATED*::lost - *tolerated: within max_nfr = 0.2 (0.2000)*"])


def test_over_budget_the_flips_and_the_gate_fail(project):
    thresholds(project, "max_nfr = 0.19")
    result = project.runpytest(*RUN, "-v")
    result.assert_outcomes(passed=3, failed=2, xfailed=1)
    result.stdout.fnmatch_lines(
        ["*::lost NEGATIVE FLIP*", "*::drift TOLERATED*", "*::gate?max_nfr? GATE FAILED*"]
    )
    result.stdout.fnmatch_lines(["GATE FAILED*gate?max_nfr?*nfr 0.2000 is over*"])


def test_a_slice_has_a_budget_of_its_own(project):
    thresholds(project, 'max_nfr = 0.2\n[tool.pytest-muscle.thresholds.slices."lang=de"]\nmax_nfr = 0.0')
    result = project.runpytest(*RUN, "-v")
    result.stdout.fnmatch_lines(
        ["*::lost NEGATIVE FLIP*", "*::gate?max_nfr? PASSED*", "*::gate?lang=de:max_nfr? GATE FAILED*"]
    )


def test_a_dataset_has_a_budget_of_its_own(project):
    write_golden(project.path / "golden/other.jsonl")
    for name, answers in (("old", OLD), ("new", NEW)):
        datasets = ("golden/qa.jsonl", "golden/other.jsonl")
        records = [{"id": i, "dataset": d, "text": t} for d in datasets for i, t in answers.items()]
        write_jsonl(project.path / f"{name}.jsonl", records)
    thresholds(
        project, 'max_nfr = 0.2\n[tool.pytest-muscle.thresholds.datasets."golden/other.jsonl"]\nmax_nfr = 0.1'
    )
    result = project.runpytest(*MODELS, "--muscle-golden=golden/*.jsonl", "-v")
    result.stdout.fnmatch_lines(
        ["golden/other.jsonl::gate?max_nfr? GATE FAILED*", "golden/qa.jsonl::gate?max_nfr? PASSED*"]
    )


def test_a_missing_response_is_an_error_and_not_a_flip(project):
    write_jsonl(project.path / "new.jsonl", [{"id": i, "text": t} for i, t in NEW.items() if i != "lost"])
    result = project.runpytest(*RUN)
    result.assert_outcomes(passed=3, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*not judged: new model: new.jsonl holds no response with id 'lost'"])


# Being one plugin among others


def test_unused_it_prints_nothing_and_imports_nothing_heavy(project):
    project.makepyfile(
        test_plain="""
        import sys
        def test_nothing_heavy():
            ours = {name for name in sys.modules if name.startswith("pytest_muscle.")}
            assert ours == {f"pytest_muscle.{name}" for name in LIGHT}
            heavy = {"torch", "transformers", "pandas", "rich", "numpy", "peft"}
            assert not heavy & set(sys.modules)
        LIGHT = "plugin", "settings", "settings.options", "settings.parsing"
        """
    )
    result = project.runpytest_subprocess()
    result.assert_outcomes(passed=1)
    assert "muscle" not in re.sub("plugins:.*", "", result.stdout.str())


def test_it_can_be_switched_off(project):
    project.makepyfile("def test_plain(): pass")
    project.runpytest_subprocess("-p", "no:muscle").assert_outcomes(passed=1)
    result = project.runpytest_subprocess("-p", "no:muscle", *RUN)
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_fixtures_skip_without_models(project):
    project.makepyfile("def test_one(golden_case, flip): pass\ndef test_two(comparison): pass")
    project.runpytest().assert_outcomes(skipped=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--muscle-old=recorded:old.jsonl"], "*the new one is not: add --muscle-new=SPEC*"),
        (["--muscle-limit=3"], "*--muscle-limit needs an old and a new model*"),
        ([*MODELS, "--muscle-golden=no.jsonl"], "*golden dataset no.jsonl: no such file*"),
        ([*MODELS, "--muscle-golden=golden/*.csv"], "*golden dataset golden/?.csv: no file matches in*"),
        (
            [*MODELS, "--muscle-limit=none"],
            "*--muscle-limit must be a whole number of at least 1, not 'none'*",
        ),
        (
            ["--muscle-old=recorded:no.jsonl", "--muscle-new=recorded:new.jsonl"],
            "*the old model: *no such file*",
        ),
        (["--muscle-old=magic:x", "--muscle-new=recorded:new.jsonl"], "*unknown kind 'magic:'*"),
    ],
)
def test_bad_options_are_usage_errors(project, arguments, message):
    result = project.runpytest(*arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])
    assert "Traceback" not in result.stderr.str() + result.stdout.str()


def test_a_bad_key_in_pyproject_names_its_place_and_the_nearest(project):
    thresholds(project, "max_nrf = 0.1")
    result = project.runpytest(*RUN)
    result.stderr.fnmatch_lines(
        ["ERROR: unknown key 'max_nrf' in [[]tool.pytest-muscle.thresholds] of *; did you mean 'max_nfr'?"]
    )


def test_a_bad_golden_dataset_is_a_collection_error(project):
    with (project.path / "golden/qa.jsonl").open("a") as file:
        file.write('{"prompt": "?", "answer": "1"\n')
    result = project.runpytest(*RUN)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*golden/qa.jsonl:6: malformed JSON at column*"])
    assert "Traceback" not in result.stdout.str()


# Selection


def test_pyproject_alone_is_enough_and_a_bare_run_finds_golden_data_anywhere(project):
    (project.path / "golden").rename(project.mkdir("build") / "golden")
    configure(
        project,
        '[tool.pytest-muscle]\nold = "recorded:old.jsonl"\nnew = "recorded:new.jsonl"\n'
        'golden = ["build/golden/*.jsonl"]',
    )
    result = project.runpytest("-v")
    result.assert_outcomes(passed=3, failed=2)
    result.stdout.fnmatch_lines(["build/golden/qa.jsonl::keep PASSED*"])
    project.makepyfile(test_plain="def test_plain(): pass")
    project.runpytest("test_plain.py").assert_outcomes(passed=1)
    project.runpytest("build/golden").assert_outcomes(passed=3, failed=2)


def test_a_dataset_given_as_an_argument_is_collected(project):
    project.runpytest(*MODELS, "golden/qa.jsonl").assert_outcomes(passed=3, failed=2)
    project.runpytest(*MODELS, "golden/qa.jsonl::lost").assert_outcomes(failed=1)


@pytest.mark.parametrize(
    ("arguments", "outcomes"),
    [
        (["-k", "lost or keep"], {"passed": 1, "failed": 1, "deselected": 3}),
        (["-k", "lang:de"], {"passed": 1, "failed": 1, "deselected": 3}),
        (["-m", "muscle"], {"passed": 3, "failed": 2}),
        (["-m", "not muscle"], {"deselected": 5}),
        (["-x"], {"passed": 2, "failed": 1}),
        (["--muscle-limit=2"], {"passed": 2}),
        (["--deselect", "golden/qa.jsonl::lost"], {"passed": 3, "failed": 1, "deselected": 1}),
    ],
)
def test_pytest_selects_as_ever(project, arguments, outcomes):
    project.runpytest(*RUN, *arguments).assert_outcomes(**outcomes)


def test_last_failed_and_stepwise_know_the_flips(project):
    project.runpytest(*RUN).assert_outcomes(passed=3, failed=2)
    project.runpytest(*RUN, "--lf").assert_outcomes(failed=2)
    project.runpytest(*RUN, "--sw").assert_outcomes(passed=2, failed=1)
    project.runpytest(*RUN, "--sw").assert_outcomes(failed=1, deselected=2)


def test_last_failed_survives_an_inserted_record(project):
    records = [{"prompt": f"What is {i}?", "answer": TRUTH[i]} for i in TRUTH]
    project.makepyfile(
        system="""
        def old(case): return case.answer[0]
        def new(case): return "0" if "lost" in case.prompt else case.answer[0]
        """
    )
    run = (
        "--muscle-old=python:system:old",
        "--muscle-new=python:system:new",
        "--muscle-golden=golden/qa.jsonl",
    )
    write_jsonl(project.path / "golden/qa.jsonl", records)
    project.runpytest(*run).assert_outcomes(passed=4, failed=1)
    write_jsonl(project.path / "golden/qa.jsonl", [{"prompt": "new", "answer": "1"}, *records])
    project.runpytest(*run, "--lf").assert_outcomes(failed=1)


def test_collect_only_asks_no_model(project):
    result = project.runpytest(*calling_models(project), "--collect-only", "-q")
    result.stdout.fnmatch_lines(["golden/qa.jsonl::keep", "golden/qa.jsonl::wrong"])
    assert calls(project) == []


def test_deselected_cases_are_never_sent_to_a_model(project):
    project.runpytest(*calling_models(project), "-k", "keep or gain").assert_outcomes(passed=2, deselected=3)
    assert calls(project) == ["new gain", "new keep", "old gain", "old keep"]


def test_each_case_is_asked_once_and_all_before_the_first_test(project):
    result = project.runpytest(*calling_models(project), "-x", "-k", "lost or drift or wrong")
    result.assert_outcomes(failed=1, deselected=2)
    assert calls(project) == [f"{m} {i}" for m in ("new", "old") for i in ("drift", "lost", "wrong")]


def test_a_gate_is_not_judged_on_a_part(project):
    thresholds(project, "max_nfr = 0.5")
    result = project.runpytest(*calling_models(project), "-k", "lost or gate", "-rs")
    result.assert_outcomes(failed=1, skipped=1, deselected=4)
    assert "zero tolerance" not in result.stdout.str()
    result.stdout.fnmatch_lines(["SKIPPED*1 of 5 cases answered*"])


def test_a_gate_is_judged_with_what_the_store_holds(project):
    run = calling_models(project)
    configure(
        project,
        '[tool.pytest-muscle.models]\nv1 = {spec = "python:system:old", revision = "1"}\n'
        'v2 = {spec = "python:system:new", revision = "2"}\n[tool.pytest-muscle.thresholds]\nmax_nfr = 0.2',
    )
    run = ("--muscle-old=v1", "--muscle-new=v2", "--muscle-golden=golden/qa.jsonl")
    project.runpytest(*run).assert_outcomes(passed=4, xfailed=2)
    asked = calls(project)
    result = project.runpytest(*run, "-k", "lost or gate")
    result.assert_outcomes(passed=1, xfailed=1, deselected=4)
    assert calls(project) == asked


# Responses


def test_a_run_that_was_interrupted_goes_on_where_it_was(project):
    calling_models(project)
    with (project.path / "system.py").open("a") as file:
        file.write(
            "\ndef breaks(case):\n"
            "    if case.id == 'drift' and not Path('again').exists():\n"
            "        raise KeyboardInterrupt\n"
            "    return old(case)\n"
        )
    configure(project, '[tool.pytest-muscle.models]\nv1 = {spec = "python:system:breaks", revision = "1"}')
    run = ("--muscle-old=v1", "--muscle-new=recorded:new.jsonl", "--muscle-golden=golden/qa.jsonl")
    result = project.runpytest_subprocess(*run)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "Traceback" not in result.stdout.str() + result.stderr.str()
    assert calls(project) == ["old gain", "old keep", "old lost"]
    (project.path / "again").touch()
    project.runpytest_subprocess(*run).assert_outcomes(passed=3, failed=2)
    assert calls(project) == ["old drift", "old gain", "old keep", "old lost", "old wrong"]


def test_no_cache_keeps_nothing(project):
    run = calling_models(project)
    project.runpytest(*run, "--muscle-no-cache").assert_outcomes(passed=3, failed=2)
    assert not (project.path / ".pytest-muscle").exists()


def test_recordings_replay_to_the_same_result(project):
    run = calling_models(project)
    project.runpytest(*run, "--muscle-record=rec", "--muscle-json=a.json")
    again = ("--muscle-old=recorded:rec/old.jsonl", "--muscle-new=recorded:rec/new.jsonl", run[2])
    project.runpytest(*again, "--muscle-json=b.json").assert_outcomes(passed=3, failed=2)
    first, second = (json.loads((project.path / name).read_text()) for name in ("a.json", "b.json"))
    for key in ("metrics", "datasets", "gates", "cases"):
        assert first[key] == second[key]


def test_a_recording_of_all_cases_is_not_overwritten_by_a_part(project):
    project.runpytest(*RUN, "--muscle-record=rec")
    whole = (project.path / "rec/old.jsonl").read_text()
    result = project.runpytest(*RUN, "--muscle-record=rec", "-k", "keep")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["ERROR: *old.jsonl: kept as it is, since 4 cases were not selected*"])
    assert (project.path / "rec/old.jsonl").read_text() == whole


def test_a_function_may_look_at_the_whole_case(project):
    write_jsonl(
        project.path / "golden/qa.jsonl",
        [{"id": i, "prompt": "the same", "answer": "de", "tags": {"lang": i}} for i in ("de", "en")],
    )
    project.makepyfile(system="def by_tag(case): return case.tags['lang']")
    configure(project, '[tool.pytest-muscle.models]\nv1 = {spec = "python:system:by_tag", revision = "1"}')
    run = ("--muscle-old=v1", "--muscle-new=v1", "--muscle-golden=golden/qa.jsonl", "--muscle-json=out.json")
    for _ in range(2):
        project.runpytest(*run).assert_outcomes(passed=2)
        cases = json.loads((project.path / "out.json").read_text())["cases"]
        assert [case["old"]["answer"] for case in cases] == ["de", "en"]


def test_a_model_that_cannot_be_asked_stops_the_run_once(project):
    (project.path / "old.jsonl").write_text("not json\n")
    result = project.runpytest(*RUN)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*old.jsonl:1: malformed JSON at column 1*"])
    result.stdout.no_fnmatch_line("During handling*")
    assert "Traceback" not in result.stdout.str()


# Fixtures


def test_fixtures_for_own_tests(project):
    project.makepyfile(
        test_own="""
        def test_case(golden_case, flip):
            assert flip != "negative_flip", golden_case.id
        def test_whole(comparison):
            assert comparison.metrics.nfr == 0.2
            assert len(comparison.to_frame()) == 5
        """
    )
    result = project.runpytest(*RUN, "test_own.py", "-p", "no:cacheprovider", "-v")
    result.assert_outcomes(passed=5 + 3, failed=1 + 2)
    result.stdout.fnmatch_lines(["test_own.py::test_case?golden/qa.jsonl-lost? FAILED*"])


def test_the_flip_fixture_alone_asks_only_for_its_cases(project):
    calling_models(project)
    project.makepyfile(test_own="def test_case(golden_case, flip): assert flip == 'both_correct'")
    configure(
        project,
        '[tool.pytest-muscle]\nold = "python:system:old"\nnew = "python:system:new"\n'
        'golden = ["golden/qa.jsonl"]',
    )
    result = project.runpytest("test_own.py", "-k", "keep")
    result.assert_outcomes(passed=1, deselected=4)
    assert calls(project) == ["new keep", "old keep"]


# Reports


def test_junit_has_gates_as_tests_and_answers_as_properties(project):
    thresholds(project, "max_nfr = 0.1")
    project.runpytest(*RUN, "--junitxml=junit.xml")
    root = ElementTree.parse(project.path / "junit.xml").getroot()
    cases = {case.get("name"): case for case in root.iter("testcase")}
    properties = {p.get("name"): p.get("value") for p in cases["lost"].iter("property")}
    assert properties["flip"] == "negative_flip"
    assert (properties["old"], properties["new"]) == ("3", "0")
    assert cases["gate[max_nfr]"].find("failure") is not None


def test_the_summary_names_rates_gates_slices_and_the_worst(project):
    thresholds(project, "max_nfr = 0.1")
    result = project.runpytest(*RUN)
    result.stdout.fnmatch_lines(
        [
            "*= pytest-muscle =*",
            "*old right*1 (20.0%)*1 (20.0%)*<- negative flips*",
            "*golden/qa.jsonl*5*40.00%*40.00%*20.00%*40.00%*20.00%*",
            "*golden/qa.jsonl*0.1*0.2000*FAILED*",
            "*lang=de*2*50.00%*",
            "*golden/qa.jsonl::lost*'3' -> '0' (truth '3')*",
            "cases: 3 passed, 1 tolerated, 1 failed; gates: 1 failed",
        ]
    )


def test_hostile_text_does_nothing_to_the_terminal(project):
    hostile = "\x1b[31m\x1b]0;owned\x07[bold red]x[/] \ud800 \u202e"
    write_jsonl(
        project.path / "golden/qa.jsonl",
        [{"id": hostile, "prompt": hostile, "answer": "1", "tags": {hostile: hostile}}],
    )
    write_jsonl(project.path / "old.jsonl", [{"id": hostile, "text": "1"}])
    write_jsonl(project.path / "new.jsonl", [{"id": hostile, "text": hostile}])
    result = project.runpytest_subprocess(*RUN, "-v", "--junitxml=junit.xml", "--muscle-json=out.json")
    result.assert_outcomes(failed=1)
    output = result.stdout.str()
    assert "\x1b" not in output
    assert "\u202e" not in output
    assert "\\x1b[31m" in output
    assert "[bold red]x[/]" in output
    ElementTree.parse(project.path / "junit.xml")
    assert json.loads((project.path / "out.json").read_text())["cases"][0]["id"] == hostile


def test_json_has_the_stable_keys(project):
    thresholds(project, "max_nfr = 0.1")
    project.runpytest(*RUN, "--muscle-json=deep/out.json")
    result = json.loads((project.path / "deep/out.json").read_text())
    assert result["schema"] == "pytest-muscle/1"
    assert result["metrics"]["nfr"] == 0.2
    assert result["metrics"]["score_old"] is None
    assert result["datasets"]["golden/qa.jsonl"]["slices"]["lang=de"]["nfr"] == 0.5
    (gate,) = result["gates"]
    assert (gate["name"], gate["scope"], gate["passed"]) == ("max_nfr", "golden/qa.jsonl", False)
    lost = next(case for case in result["cases"] if case["id"] == "lost")
    assert (lost["flip"], lost["outcome"], lost["delta"]) == ("negative_flip", "failed", -1.0)


def test_json_that_cannot_be_written_is_an_error(project):
    result = project.runpytest(*RUN, "--muscle-json=old.jsonl/out.json")
    result.stdout.fnmatch_lines(["ERROR: *old.jsonl/out.json: cannot be written: *"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR


# pytest-xdist


@pytest.mark.parametrize("selection", [(), ("-k", "lost or keep or gate")])
def test_workers_give_the_same_result(project, selection):
    thresholds(project, "max_nfr = 0.1")
    run = calling_models(project)
    one = project.runpytest_subprocess(*run, *selection, "--muscle-json=one.json")
    asked = calls(project)
    (project.path / "calls.txt").unlink()
    two = project.runpytest_subprocess(
        *run, *selection, "--muscle-json=two.json", "-n", "2", "--junitxml=junit.xml"
    )
    assert calls(project) == asked
    assert {**two.parseoutcomes(), "deselected": 0} == {**one.parseoutcomes(), "deselected": 0}
    first, second = (json.loads((project.path / name).read_text()) for name in ("one.json", "two.json"))
    for each in (first, second):
        for side in ("old", "new"):
            del each[side]["fingerprint"]
    assert first == second
    assert two.ret == one.ret == 1
    two.stdout.fnmatch_lines(["*= pytest-muscle =*", "*golden/qa.jsonl::lost*'3' -> '0'*"])
    cases = {
        case.get("name"): case for case in ElementTree.parse(project.path / "junit.xml").iter("testcase")
    }
    assert {p.get("name") for p in cases["lost"].iter("property")} >= {"flip", "old", "new"}


def test_workers_share_a_run_without_a_cache(project):
    run = calling_models(project)
    result = project.runpytest_subprocess(*run, "-n", "2", "--muscle-no-cache")
    result.assert_outcomes(passed=3, failed=2)
    assert len(calls(project)) == 10


# Any id


@given(st.lists(TEXT, min_size=2, max_size=8, unique=True))
def test_names_of_tests_are_one_line_of_their_own_and_end(ids):
    names = [node_name(each) for each in ids]
    assert len(set(names)) == len(ids)
    for name in names:
        assert name.isprintable()
        assert "::" not in name
        assert len(name) <= 200
        name.encode()


def test_every_id_and_tag_is_a_test_that_can_be_selected(project):
    ids = [text for text in HOSTILE if text] + [chr(code) * 3 for code in range(0, 0x3000, 97)]
    records = [{"id": i, "prompt": "?", "answer": "1", "tags": {i[:40]: i[:40]}} for i in ids]
    write_jsonl(project.path / "golden/qa.jsonl", records)
    for side in ("old", "new"):
        write_jsonl(project.path / f"{side}.jsonl", [{"id": i, "text": "1"} for i in ids])
    project.runpytest(*RUN, "--muscle-json=result.json", "--junitxml=junit.xml").assert_outcomes(
        passed=len(ids)
    )
    assert [case["id"] for case in json.loads((project.path / "result.json").read_text())["cases"]] == ids
    assert len(ElementTree.parse(project.path / "junit.xml").findall(".//testcase")) == len(ids)
    listed = project.runpytest(*RUN, "--collect-only", "-q").outlines
    nodes = [line for line in listed if line.startswith("golden/qa.jsonl::")]
    assert len(nodes) == len(ids)
    for node in nodes[::9]:
        project.runpytest(*RUN, node).assert_outcomes(passed=1)
    above = {path.name for path in project.path.iterdir()}
    assert above <= {
        "golden",
        "old.jsonl",
        "new.jsonl",
        "result.json",
        "junit.xml",
        ".pytest-muscle",
        ".pytest_cache",
    }


# Datasets that change under a run


CHANGED = "*golden/qa.jsonl: the file has changed since its cases were collected; run again"


def test_a_dataset_that_is_changed_after_its_collection_stops_the_run_before_a_model_is_asked(project):
    models = calling_models(project)
    project.makeconftest(
        """
        from pathlib import Path
        def pytest_collection_finish(session):
            golden = Path("golden/qa.jsonl")
            golden.write_text(golden.read_text().replace('"answer": "3"', '"answer": "0"'))
        """
    )
    result = project.runpytest(*models)
    result.stdout.fnmatch_lines([CHANGED])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert calls(project) == []


def test_a_dataset_that_is_merely_written_again_is_no_other(project):
    golden = (project.path / "golden/qa.jsonl").read_text()
    project.makeconftest(
        f"""
        from pathlib import Path
        def pytest_collection_finish(session):
            Path("golden/qa.jsonl").write_text({golden!r})
        """
    )
    thresholds(project, "max_nfr_mc = 0.5")
    assert project.runpytest(*RUN).ret == 0


@pytest.mark.parametrize("becomes", ["another", "nothing"])
def test_a_dataset_that_is_changed_while_workers_run_is_an_error_and_no_result(project, becomes):
    project.makepyfile(
        system=f"""
        from pathlib import Path
        golden = Path("golden/qa.jsonl")
        def old(case):
            return case.answer[0]
        def new(case):
            if {becomes!r} == "another":
                golden.write_text(golden.read_text().replace('"answer": "3"', '"answer": "0"'))
            else:
                golden.unlink(missing_ok=True)
            return "3" if case.id == "lost" else case.answer[0]
        """
    )
    result = project.runpytest_subprocess(
        "--muscle-old=python:system:old",
        "--muscle-new=python:system:new",
        "--muscle-golden=golden/qa.jsonl",
        "--muscle-json=result.json",
        "-n1",
    )
    result.stdout.fnmatch_lines([f"ERROR: {CHANGED[1:]}"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert not (project.path / "result.json").exists()
