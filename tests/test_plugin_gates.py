"""Gates as tests: three decisions, an outcome of its own for the undecided, budgets for errors."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

RUN = ("--muscle-old=recorded:old.jsonl", "--muscle-new=recorded:new.jsonl", "--muscle-golden=golden.jsonl")


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """Fifty cases, of which the new model loses three and fails to answer one."""
    ids = [f"c{i}" for i in range(50)]
    write(pytester, "golden", [{"id": i, "prompt": "?", "answer": "1", "tags": {"lang": "de"}} for i in ids])
    write(pytester, "old", [{"id": i, "text": "1"} for i in ids])
    write(pytester, "new", [{"id": i, "text": "2" if i in ids[:3] else "1"} for i in ids])
    return pytester


def write(pytester, name, records):
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (pytester.path / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def configure(pytester, text):
    (pytester.path / "pyproject.toml").write_text(f"[tool.pytest-muscle]\n{text}", encoding="utf-8")


def significant(pytester):
    configure(pytester, 'decision = "significant"\nthresholds.max_nfr = 0.02')


def test_an_undecided_gate_warns_and_is_counted_apart(project):
    significant(project)
    result = project.runpytest(*RUN, "-v")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "*c0 TOLERATED (negative flip, tolerated*",
            "*gate?max_nfr? INCONCLUSIVE*",
            "*47 passed, 3 xfailed, 1 inconclusive*",
        ]
    )


def test_an_undecided_gate_may_fail(project):
    significant(project)
    result = project.runpytest(*RUN, "-v", "--muscle-inconclusive=fail")
    result.assert_outcomes(passed=47, failed=4)
    result.stdout.fnmatch_lines(
        [
            "*gate?max_nfr? INCONCLUSIVE*",
            "nfr 0.0600 is over the budget of 0.02, but not surely (95% interval 0.0206 to 0.1622)",
            "INCONCLUSIVE golden.jsonl::gate?max_nfr?*",
        ]
    )


def test_an_undecided_gate_may_pass_and_is_seen_all_the_same(project):
    significant(project)
    result = project.runpytest(*RUN, "-v", "--muscle-inconclusive=pass")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*gate?max_nfr? INCONCLUSIVE*", "*1 inconclusive*"])


def test_what_must_be_assured_fails_where_it_is_not(project):
    configure(project, 'thresholds.max_nfr = {limit = 0.1, decision = "assured"}')
    result = project.runpytest(*RUN)
    result.assert_outcomes(passed=47, failed=4)
    result.stdout.fnmatch_lines(["nfr 0.0600 is within the budget of 0.1, but may be over it (*"])
    configure(project, 'inconclusive = "warn"\nthresholds.max_nfr = {limit = 0.1, decision = "assured"}')
    assert project.runpytest(*RUN).ret == 0


def test_junit_does_not_show_an_undecided_gate_as_passed(project):
    significant(project)
    project.runpytest(*RUN, "--junitxml=junit.xml")
    cases = ElementTree.parse(project.path / "junit.xml").getroot().iter("testcase")
    gate = next(case for case in cases if case.get("name") == "gate[max_nfr]")
    assert "inconclusive" in gate.find("skipped").get("message")
    properties = {each.get("name"): each.get("value") for each in gate.iter("property")}
    assert properties["ruling"] == "inconclusive"


def test_workers_tell_of_an_undecided_gate(project):
    significant(project)
    result = project.runpytest(*RUN, "-n2")
    result.stdout.fnmatch_lines(["*47 passed, 3 xfailed, 1 inconclusive*"])


def test_the_json_result_names_the_ruling(project):
    significant(project)
    project.runpytest(*RUN, "--muscle-json=result.json")
    (gate,) = json.loads((project.path / "result.json").read_text())["gates"]
    assert (gate["passed"], gate["ruling"], gate["decision"]) == (None, "inconclusive", "significant")
    assert gate["reversal"] == 1
    assert gate["needed"] > 50


def test_a_failed_call_is_an_error_and_its_budget_bears_it(project):
    answers = [{"id": f"c{i}", "text": "1"} for i in range(49)] + [{"id": "c49", "error": "it timed out"}]
    write(project, "new", answers)
    configure(project, "")
    project.runpytest(*RUN).assert_outcomes(passed=49, errors=1)
    configure(project, "thresholds.max_error_rate = 0.02")
    result = project.runpytest(*RUN, "-rx")
    result.assert_outcomes(passed=50, xfailed=1)
    result.stdout.fnmatch_lines(["*not judged, tolerated: within max_error_rate = 0.02*it timed out*"])
    configure(project, "thresholds.max_error_rate = 0.01")
    project.runpytest(*RUN).assert_outcomes(passed=49, errors=1, failed=1)


def test_a_pair_of_tags_may_have_a_budget(project):
    configure(
        project,
        'slice_pairs = true\nthresholds.max_nfr = 0.1\nthresholds.slices."lang=de,level=2".max_nfr = 0',
    )
    golden = [
        {"id": f"c{i}", "prompt": "?", "answer": "1", "tags": {"level": i % 2 + 1, "lang": "de"}}
        for i in range(50)
    ]
    write(project, "golden", golden)
    result = project.runpytest(*RUN, "-v")
    result.assert_outcomes(passed=48, failed=2, xfailed=2)
    result.stdout.fnmatch_lines(["*c1 NEGATIVE FLIP*", "*gate?lang=de,level=2:max_nfr? GATE FAILED*"])


def test_samples_are_asked_and_recorded(project):
    project.makepyfile(noisy="def old(case): return '1'\ndef new(case): return '12'[case.draw % 2]\n")
    models = (
        "--muscle-old=python:noisy:old",
        "--muscle-new=python:noisy:new",
        "--muscle-golden=golden.jsonl",
    )
    result = project.runpytest(*models, "--muscle-samples=3", "--muscle-record=kept")
    result.assert_outcomes(passed=50)
    result.stdout.fnmatch_lines(["*excess over the floor: 33.33%*", "*50 unstable cases*"])
    again = ("--muscle-old=recorded:kept/old.jsonl", "--muscle-new=recorded:kept/new.jsonl", RUN[2])
    assert "excess over the floor: 33.33%" in project.runpytest(*again, "--muscle-samples=3").stdout.str()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'decision = "sure"',
            "'decision' in [[]tool.pytest-muscle[]] of *must be one of point, *assured, not 'sure'",
        ),
        ('inconclusive = "skip"', "'inconclusive' in *must be one of fail, warn, pass, not 'skip'"),
        (
            'thresholds.max_nfr = {limit = 0.1, decide = "point"}',
            "unknown key 'decide' in [[]tool.pytest-muscle.thresholds.max_nfr[]]*",
        ),
        (
            'thresholds.max_nfr = {decision = "point"}',
            "key 'limit' is missing in [[]tool.pytest-muscle.thresholds.max_nfr[]]*",
        ),
        (
            "thresholds.max_nfr = {limit = 2}",
            "'limit' in [[]tool.pytest-muscle.thresholds.max_nfr[]] *must be a number between 0 and 1, not 2",
        ),
        ("samples = 0", "'samples' in *must be a whole number of at least 1, not 0"),
        (
            'models.a = {spec = "org/a", temperature = -1}',
            "'temperature' in *must be a number of at least 0, not -1",
        ),
        (
            "thresholds.max_excess_nfr = 0.1",
            "*needs the old model to be asked at least twice*--muscle-samples=5",
        ),
    ],
)
def test_a_wrong_setting_is_named(project, text, message):
    configure(project, text)
    result = project.runpytest(*RUN)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{message}*"])
