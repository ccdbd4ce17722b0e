"""A release over its budget is mended by training, within the same run."""

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

WORDS = [
    "parcel",
    "order",
    "money",
    "bill",
    "apples",
    "box",
    "customer",
    "answer",
    "question",
    "late",
    "twice",
    "happy",
]


@pytest.fixture
def project(pytester: pytest.Pytester, tiny_model: Path, tiny_model_b: Path) -> pytest.Pytester:
    for name, start, count in (("golden", 0, 12), ("train", 100, 16)):
        records = [
            {
                "id": f"{name}-{i}",
                "prompt": f"Is parcel {i * 7919} on its way?",
                "choices": [WORDS[(i * step + step) % 12] for step in (1, 5, 7)],
                "answer": (i + 2) % 3,
            }
            for i in range(start, start + count)
        ]
        (pytester.path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (pytester.path / "pyproject.toml").write_text(
        f"""
[tool.pytest-muscle]
old = {json.dumps(str(tiny_model))}
new = {json.dumps(str(tiny_model_b))}
golden = ["golden.jsonl"]
train = "train.jsonl"
device = "cpu"
[tool.pytest-muscle.training]
epochs = 1
learning_rate = 0.01
[tool.pytest-muscle.thresholds]
max_nfr = 0.0
"""
    )
    return pytester


def result_of(project: pytest.Pytester, *arguments: str) -> dict:
    project.runpytest_subprocess("--muscle-json=out.json", *arguments)
    return json.loads((project.path / "out.json").read_text())


def test_without_the_option_nothing_is_trained(project):
    result = result_of(project)
    assert result["adapter"] is None
    assert result["metrics"]["nfr"] > 0
    assert not (project.path / ".pytest-muscle/adapters").exists()


def test_over_budget_an_adapter_is_trained_and_judged(project):
    plain = result_of(project)
    result = result_of(project, "--muscle-adapter=auto")
    adapter = result["adapter"]
    assert adapter["before"] == plain["metrics"]
    assert adapter["seconds"] > 0
    if adapter["path"]:
        assert adapter["after"] == result["metrics"]
        assert result["new"]["spec"].endswith("+ adapter")
        assert result["new"]["fingerprint"] != plain["new"]["fingerprint"]
        report = json.loads((Path(adapter["path"]) / "adapter_report.json").read_text())
        assert report["golden"]["before"]["nfr"] == plain["metrics"]["nfr"]
    else:
        assert result["metrics"] == plain["metrics"]


def test_workers_train_once_and_agree(project):
    one = result_of(project, "--muscle-adapter=always", "--muscle-adapter-output=mended")
    two = result_of(project, "--muscle-adapter=always", "--muscle-adapter-output=mended", "-n", "2")
    assert one == two


def test_the_fixture_trains_only_over_budget(project):
    project.makepyfile(
        test_fixture="""
        def test_adapter(compatibility_adapter, comparison):
            assert comparison.adapter is None
            assert compatibility_adapter.before is comparison
            assert compatibility_adapter.recipe
        """
    )
    result = project.runpytest_subprocess("test_fixture.py")
    result.assert_outcomes(passed=1)
    (project.path / "test_fixture.py").write_text(
        "def test_none(compatibility_adapter): assert not compatibility_adapter"
    )
    toml = project.path / "pyproject.toml"
    toml.write_text(toml.read_text().replace("max_nfr = 0.0", "max_nfr = 1.0"))
    project.runpytest_subprocess("test_fixture.py").assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'train = "train.jsonl"',
            'adapter = "auto"',
            "*adapter = auto needs training records: add --muscle-train*",
        ),
        ('"train.jsonl"', '"no.jsonl"', "*training records *no.jsonl: no such file*"),
        ("epochs = 1", "epoch = 1", "*training] in *: unknown key 'epoch'; did you mean 'epochs'?*"),
        ("epochs = 1", "epochs = 0", "*adapter setting epochs must be a whole number of at least 1, not 0*"),
    ],
)
def test_bad_settings_are_usage_errors(project, old, new, message):
    toml = project.path / "pyproject.toml"
    toml.write_text(toml.read_text().replace(old, new))
    result = project.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_training_records_that_repeat_golden_cases_stop_the_run(project):
    golden = (project.path / "golden.jsonl").read_text().splitlines()
    with (project.path / "train.jsonl").open("a") as file:
        file.write(golden[0].replace("golden-0", "train-0") + "\n")
    result = project.runpytest_subprocess("--muscle-adapter=always")
    result.stdout.fnmatch_lines(["*golden-0*"])
    assert result.ret == 1
    assert not list(project.path.glob(".pytest-muscle/adapters/*"))
