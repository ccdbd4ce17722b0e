"""Settings from the command line and pyproject.toml, and whatever can be wrong with them."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_muscle.errors import MuscleError
from pytest_muscle.models import ModelOptions
from pytest_muscle.settings.loading import load_settings, read_table
from pytest_muscle.settings.options import MODEL_OPTIONS, OPTIONS
from pytest_muscle.settings.values import Settings, Threshold

MODELS = {"old": "recorded:old.jsonl", "new": "recorded:new.jsonl"}
BASE = '[tool.pytest-muscle]\nold = "recorded:old.jsonl"\nnew = "recorded:new.jsonl"\n'


@pytest.fixture
def project(tmp_path) -> Path:
    """A folder with golden datasets and a folder ``run`` in it, from which pytest is called."""
    (tmp_path / "run").mkdir()
    (tmp_path / "golden").mkdir()
    for name in ("b.jsonl", "a.jsonl", "notes[1].jsonl"):
        (tmp_path / "golden" / name).write_text("{}")
    (tmp_path / "golden" / "sub.jsonl").mkdir()
    return tmp_path


def load(project: Path, text: str = "", **given: object) -> Settings:
    (project / "pyproject.toml").write_text(text, encoding="utf-8")
    settings = load_settings(project, project / "run", given)
    assert settings is not None
    return settings


def refused(project: Path, text: str = "", **given: object) -> str:
    with pytest.raises(MuscleError) as caught:
        load(project, text, **given)
    return str(caught.value).replace(str(project), "ROOT")


# What is asked for --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "[tool.other]\n", '[tool.pytest-muscle]\ngolden = ["a.jsonl"]\n', "# pytest-muscle\n"]
)
def test_without_models_there_is_no_run(project, text):
    (project / "pyproject.toml").write_text(text)
    assert load_settings(project, project, {"old": None, "accept": False, "golden": []}) is None


def test_no_file_at_all(tmp_path):
    assert load_settings(tmp_path, tmp_path, {}) is None
    settings = load_settings(tmp_path, tmp_path, MODELS)
    assert settings is not None
    assert settings.cache_dir == tmp_path / ".pytest-muscle"
    assert settings.thresholds == settings.golden == ()


def test_the_command_line_wins_and_sources_tell(project):
    settings = load(project, BASE + 'limit = 5\ndevice = "cpu"\n', new="recorded:other.jsonl", limit="7")
    assert (settings.limit, settings.device) == (7, "cpu")
    assert (settings.old.name, settings.new.name) == ("recorded:old.jsonl", "recorded:other.jsonl")
    assert settings.sources == {
        "old": "pyproject.toml",
        "new": "--muscle-new",
        "limit": "--muscle-limit",
        "device": "pyproject.toml",
    }


def test_paths_start_where_they_are_written(project):
    settings = load(project, BASE + 'json = "out/result.json"\n', old="recorded:mine.jsonl", report="r.html")
    assert settings.old.spec == f"recorded:{project}/run/mine.jsonl"
    assert settings.new.spec == f"recorded:{project}/new.jsonl"
    assert settings.json == project / "out/result.json"
    assert settings.report == project / "run/r.html"


def test_specs_that_are_no_paths_stay_as_they_are(project):
    settings = load(project, old="python:my.module:answer", new="org/name@main")
    assert (settings.old.spec, settings.new.spec) == ("python:my.module:answer", "org/name@main")
    (project / "run" / "candidate").mkdir()
    settings = load(project, old="./absent", new="candidate")
    assert (settings.old.spec, settings.new.spec) == (f"{project}/run/absent", f"{project}/run/candidate")
    assert load(project, old="lm-eval:~/out", new="recorded:").old.spec == f"lm-eval:{Path.home()}/out"
    assert load(project, old="x/y", new="recorded:").new.spec == "recorded:"


def test_golden_datasets_by_name_and_wildcard_each_once_in_order(project):
    text = BASE + 'golden = ["golden/b.jsonl", "golden/*.jsonl", "golden/notes[1].jsonl"]\n'
    names = [path.name for path in load(project, text).golden]
    assert names == ["b.jsonl", "a.jsonl", "notes[1].jsonl"]
    given = load(project, text, golden=["../golden/a.jsonl", f"{project}/golden/b*"]).golden
    assert given == (project / "golden/a.jsonl", project / "golden/b.jsonl")
    settings = load(project, BASE + 'golden = "**/a.jsonl"\n')
    assert [settings.dataset_name(path) for path in settings.golden] == ["golden/a.jsonl"]


def test_the_cache_can_be_moved_and_switched_off(project):
    assert load(project, BASE, cache_dir="mine").cache_dir == project / "run/mine"
    assert load(project, BASE + 'cache_dir = "mine"\n').cache_dir == project / "mine"
    assert load(project, BASE, no_cache=True).cache_dir is None


def test_thresholds_for_all_datasets_and_slices(project):
    text = (
        BASE
        + """
        [tool.pytest-muscle.thresholds]
        max_nfr = 0.02
        max_nfr_mc = 1
        [tool.pytest-muscle.thresholds.slices."lang=de"]
        max_nfr = 0
        [tool.pytest-muscle.thresholds.datasets."golden/a.jsonl"]
        max_accuracy_drop = 0.1
        [tool.pytest-muscle.thresholds.datasets."golden/a.jsonl".slices."lang=de"]
        max_mean_regression = 0.5
        """
    )
    assert load(project, text).thresholds == (
        Threshold("max_nfr", 0.02),
        Threshold("max_nfr_mc", 1.0),
        Threshold("max_nfr", 0.0, slice="lang=de"),
        Threshold("max_accuracy_drop", 0.1, "golden/a.jsonl"),
        Threshold("max_mean_regression", 0.5, "golden/a.jsonl", "lang=de"),
    )


def test_models_by_name_with_their_options(project):
    text = """
        [tool.pytest-muscle]
        old = "stable"
        new = "org/name"
        [tool.pytest-muscle.models.stable]
        spec = "./checkpoints/v1"
        dtype = "float32"
        batch_tokens = 256
        trust_remote_code = true
    """
    settings = load(project, text)
    assert (settings.old.name, settings.old.spec) == ("stable", f"{project}/checkpoints/v1")
    assert settings.old.options == {"dtype": "float32", "batch_tokens": 256, "trust_remote_code": True}
    assert settings.new.options == {}


def test_a_server_with_its_options(project):
    text = """
        [tool.pytest-muscle]
        old = "served"
        new = "openai:other"
        [tool.pytest-muscle.models.served]
        spec = "openai:org/name"
        base_url = "http://localhost:8000/v1"
        api_key_env = "DESK_KEY"
        concurrency = 32
        time_budget = 60
        extra_body = {top_k = 5}
    """
    settings = load(project, text)
    assert (settings.old.spec, settings.new.spec) == ("openai:org/name", "openai:other")
    assert settings.old.options == {
        "base_url": "http://localhost:8000/v1",
        "api_key_env": "DESK_KEY",
        "concurrency": 32,
        "time_budget": 60,
        "extra_body": {"top_k": 5},
    }
    assert {field.name for field in dataclasses.fields(ModelOptions)} == {*MODEL_OPTIONS, "samples", "run_id"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base_url = 8000", "'base_url' in [P] of F must be a text, not 8000"),
        ("api = 'responses'", "'api' in [P] of F must be one of chat, completions, not 'responses'"),
        ("choices = 'A'", "'choices' in [P] of F must be one of log-likelihood, letter, not 'A'"),
        ("concurrency = 0", "'concurrency' in [P] of F must be a whole number of at least 1, not 0"),
        ("timeout = 0", "'timeout' in [P] of F must be a number of seconds above 0, not 0"),
        ("time_budget = true", "'time_budget' in [P] of F must be a number of seconds above 0, not True"),
        ("retries = -1", "'retries' in [P] of F must be a whole number of at least 0, not -1"),
        ("extra_body = 'k'", "'extra_body' in [P] of F must be a table of what JSON knows, not 'k'"),
        (
            "extra_body = {top_k = nan}",
            "'extra_body' in [P] of F must be a table of what JSON knows, not {'top_k': nan}",
        ),
        ("api_key = 'sk-1'", "unknown key 'api_key' in [P] of F; did you mean 'api_key_env'?"),
    ],
)
def test_server_options_that_are_wrong(project, text, message):
    found = refused(project, f"{BASE}[tool.pytest-muscle.models.a]\nspec = 'openai:x'\n{text}")
    found = found.replace("ROOT/pyproject.toml", "F").replace("tool.pytest-muscle.models.a", "P")
    assert found == message


def test_server_options_are_for_servers(project):
    found = refused(project, f"{BASE}[tool.pytest-muscle.models.a]\nspec = './v1'\nbase_url = 'http://x'")
    assert found.startswith(
        "'base_url' in [tool.pytest-muscle.models.a] of ROOT/pyproject.toml is for servers"
    )


def test_defaults_of_a_dataset(project):
    text = BASE + '[tool.pytest-muscle.datasets."golden/a.jsonl"]\nextract = "A: (.*)"\nstop = ["\\n"]\n'
    assert load(project, text).datasets == {"golden/a.jsonl": {"extract": "A: (.*)", "stop": ["\n"]}}


def test_settings_cannot_be_changed(project):
    settings = load(project, BASE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.limit = 3  # type: ignore[misc]


def test_accepted_flips_belong_to_a_project_only(project):
    assert load(project, BASE).accepted == project / "muscle-accepted.toml"
    alone = load_settings(project, project, {}, table=MODELS)
    assert alone is not None
    assert alone.accepted is None


# What is wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("treshold = 1", "unknown key 'treshold' in [tool.pytest-muscle] of F; did you mean 'thresholds'?"),
        ("zzz = 1", "unknown key 'zzz' in [tool.pytest-muscle] of F; the keys are old, new, golden"),
        ("limit = 0", "'limit' in [tool.pytest-muscle] of F must be a whole number of at least 1, not 0"),
        (
            "limit = true",
            "'limit' in [tool.pytest-muscle] of F must be a whole number of at least 1, not True",
        ),
        ("limit = 2.0", "'limit' in [tool.pytest-muscle] of F must be a whole number"),
        ("device = 3", "'device' in [tool.pytest-muscle] of F must be a text, not 3"),
        ('json = ""', "'json' in [tool.pytest-muscle] of F must be a text, not ''"),
        ('accept = "yes"', "'accept' in [tool.pytest-muscle] of F must be true or false, not 'yes'"),
        ("golden = []", "'golden' in [tool.pytest-muscle] of F must be a text or a list of texts, not []"),
        ("golden = [1]", "'golden' in [tool.pytest-muscle] of F must be a text or a list of texts, not [1]"),
        ("tolerance = 2", "'tolerance' in [tool.pytest-muscle] of F must be a number between 0 and 1, not 2"),
        ("tolerance = nan", "'tolerance' in [tool.pytest-muscle] of F must be a number between 0 and 1"),
        ('thresholds = "0.1"', "[tool.pytest-muscle.thresholds] in F must be a table, not '0.1'"),
        ("[tool.pytest-muscle.models]\na = 1", "[tool.pytest-muscle.models.a] in F must be a table, not 1"),
        (
            "[tool.pytest-muscle.models.a]\ndtype = 'auto'",
            "key 'spec' is missing in [tool.pytest-muscle.models.a] of F; it names the model",
        ),
        (
            "[tool.pytest-muscle.models.a]\nspec = 'x'\ndtyp = 'auto'",
            "unknown key 'dtyp' in [tool.pytest-muscle.models.a] of F; did you mean 'dtype'?",
        ),
        (
            "[tool.pytest-muscle.models.a]\nspec = 'x'\nbatch_tokens = 'many'",
            "'batch_tokens' in [tool.pytest-muscle.models.a] of F must be a whole number of at least 1",
        ),
        (
            "[tool.pytest-muscle.datasets.'a.jsonl']\nextract = '('",
            "[tool.pytest-muscle.datasets.\"a.jsonl\"] in F: field 'extract' is not a valid regular",
        ),
        (
            "[tool.pytest-muscle.datasets.'a.jsonl']\nmax_new_token = 3",
            "[tool.pytest-muscle.datasets.\"a.jsonl\"] in F: unknown key 'max_new_token'; did you mean",
        ),
    ],
)
def test_errors_name_key_place_and_remedy(project, text, message):
    found = refused(project, BASE + text).replace("ROOT/pyproject.toml", "F")
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_nrf = 0.1", "unknown key 'max_nrf' in [P] of F; did you mean 'max_nfr'?"),
        ("max_nfr = 1.5", "'max_nfr' in [P] of F must be a number between 0 and 1, not 1.5"),
        ("max_nfr = -0.1", "'max_nfr' in [P] of F must be a number between 0 and 1, not -0.1"),
        ("max_nfr = inf", "'max_nfr' in [P] of F must be a number between 0 and 1, not inf"),
        ("max_nfr = true", "'max_nfr' in [P] of F must be a number between 0 and 1, not True"),
        ('max_nfr = "2%"', "'max_nfr' in [P] of F must be a number between 0 and 1, not '2%'"),
        (
            'slices."lang" = {max_nfr = 0}',
            '[P.slices."lang"] in F: a slice is named tag=value, such as "lang=de"',
        ),
        ('slices."lang=de" = 0', '[P.slices."lang=de"] in F must be a table, not 0'),
        (
            'slices."a=b" = {max_nrf = 0}',
            "unknown key 'max_nrf' in [P.slices.\"a=b\"] of F; did you mean 'max_nfr'?",
        ),
        (
            "datasets.d = {slice = {}}",
            "unknown key 'slice' in [P.datasets.\"d\"] of F; did you mean 'slices'?",
        ),
        (
            "datasets.d = {max_nfr = 2}",
            "'max_nfr' in [P.datasets.\"d\"] of F must be a number between 0 and 1",
        ),
    ],
)
def test_thresholds_that_are_wrong(project, text, message):
    found = refused(project, f"{BASE}[tool.pytest-muscle.thresholds]\n{text}")
    found = found.replace("ROOT/pyproject.toml", "F").replace("tool.pytest-muscle.thresholds", "P")
    assert found.startswith(message)


def test_options_that_are_wrong(project):
    assert refused(project, BASE, limit="0") == (
        "--muscle-limit must be a whole number of at least 1, not '0'"
    )
    assert refused(project, BASE, batch_tokens="many").startswith(
        "--muscle-batch-tokens must be a whole number"
    )
    assert refused(project, BASE, old="").startswith("--muscle-old must be a text, not ''")


def test_one_model_is_not_enough(project):
    assert refused(project, old="recorded:old.jsonl") == (
        "the old model is given, the new one is not: add --muscle-new=SPEC "
        "or 'new' in [tool.pytest-muscle] of ROOT/pyproject.toml"
    )
    assert refused(project, '[tool.pytest-muscle]\nnew = "x/y"\n').startswith(
        "the new model is given, the old"
    )


def test_golden_datasets_that_are_not_there(project):
    assert refused(project, BASE, golden=["no.jsonl"]) == (
        "golden dataset no.jsonl: no such file (looked for ROOT/run/no.jsonl); correct --muscle-golden"
    )
    named = "'golden' in [tool.pytest-muscle] of ROOT/pyproject.toml"
    assert refused(project, BASE + 'golden = "no.jsonl"') == (
        f"golden dataset no.jsonl: no such file (looked for ROOT/no.jsonl); correct {named}"
    )
    for pattern in ("golden/*.csv", "golden/s*.jsonl"):
        assert refused(project, BASE + f'golden = "{pattern}"') == (
            f"golden dataset {pattern}: no file matches in ROOT; correct {named}"
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[tool.pytest-muscle\n", ": not valid TOML: Expected ']'"),
        (b"# pytest-muscle \xff\n", ": not valid TOML: 'utf-8' codec"),
        (b'tool = "pytest-muscle"', ": 'tool' of [tool.pytest-muscle] must be a table, not 'pytest-muscle'"),
        (b"[tool]\npytest-muscle = 3\n", ": 'pytest-muscle' of [tool.pytest-muscle] must be a table, not 3"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "pyproject.toml").write_bytes(content)
    with pytest.raises(MuscleError) as caught:
        read_table(tmp_path / "pyproject.toml")
    assert str(caught.value).startswith(f"{tmp_path / 'pyproject.toml'}{message}")


def test_without_a_file_the_arguments_are_named(project):
    table = {**MODELS, "thresholds": {"max_nrf": 0.1}}
    with pytest.raises(MuscleError) as caught:
        load_settings(project, project, {}, table=table)
    assert str(caught.value) == (
        "unknown key 'max_nrf' in [tool.pytest-muscle.thresholds] of the arguments; did you mean 'max_nfr'?"
    )


VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
KEYS = st.sampled_from([option.key for option in OPTIONS] + ["thresholds", "datasets", "models", "tolerance"])


@given(st.dictionaries(KEYS | st.text(max_size=5), VALUES, max_size=5))
def test_any_table_is_settings_or_a_clear_error(tmp_path_factory, table):
    folder = tmp_path_factory.getbasetemp()
    try:
        settings = load_settings(folder, folder, {}, table={**MODELS, **table})
    except MuscleError as error:
        message = str(error)
    else:
        assert isinstance(settings, Settings)
        return
    assert message


def test_a_launcher_stands_in_the_project(project):
    assert load(project, BASE).launcher is None
    assert load(project, BASE + 'launcher = "accelerate launch"\n').launcher == "accelerate launch"
    assert "'launcher' in [tool.pytest-muscle]" in refused(project, BASE + "launcher = 8\n")
