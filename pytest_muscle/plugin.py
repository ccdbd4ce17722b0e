"""The pytest plugin: options, start and fixtures.

Every pytest run imports it, also one that compares no models: it imports next to nothing itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_muscle.settings.options import OPTIONS

if TYPE_CHECKING:
    from pytest_muscle.comparison import Comparison, TrainedAdapter
    from pytest_muscle.flips import Flip
    from pytest_muscle.golden import GoldenCase
    from pytest_muscle.run import MusclePlugin

MARK = "muscle"
ACTIVE = pytest.StashKey["MusclePlugin"]()
_NEEDS_MODELS = "needs an old and a new model: --muscle-old=SPEC --muscle-new=SPEC"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, each of which may also stand in ``[tool.pytest-muscle]``."""
    group = parser.getgroup("muscle", "regression testing for LLM releases")
    for option in OPTIONS:
        how: dict[str, Any] = {"dest": option.dest, "help": option.help, "default": None}
        if option.metavar is None:
            how["action"] = "store_true"
        else:
            how |= {"metavar": option.metavar, "action": "append" if option.repeatable else "store"}
        group.addoption(option.flag, **how)


def pytest_configure(config: pytest.Config) -> None:
    """Start a run where two models are named; do nothing at all otherwise."""
    config.addinivalue_line("markers", f"{MARK}: a golden case or gate of pytest-muscle")
    given = {option.key: config.getoption(option.dest) for option in OPTIONS}
    file = _settings_file(config)
    if any(given.values()) or _names_us(file):
        _start(config, given, file)


def _settings_file(config: pytest.Config) -> Path:
    inipath = config.inipath
    is_ours = inipath is not None and inipath.suffix == ".toml" and "pytest.toml" not in inipath.name
    return inipath if inipath is not None and is_ours else config.rootpath / "pyproject.toml"


def _names_us(file: Path) -> bool:
    try:
        return b"pytest-muscle" in file.read_bytes()
    except OSError:
        return False


def _start(config: pytest.Config, given: dict[str, Any], file: Path) -> None:
    from pytest_muscle.errors import MuscleError
    from pytest_muscle.settings.loading import load_settings

    try:
        settings = load_settings(config.rootpath, config.invocation_params.dir, given, file)
    except MuscleError as error:
        raise pytest.UsageError(str(error)) from None
    if settings is None:
        if any(given.values()):
            flag = next(option.flag for option in OPTIONS if given[option.key])
            raise pytest.UsageError(f"{flag} {_NEEDS_MODELS}")
        return
    from pytest_muscle.run import MusclePlugin

    plugin = MusclePlugin(config, settings)
    try:
        plugin.session.check()
    except MuscleError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[ACTIVE] = plugin
    config.pluginmanager.register(plugin, "muscle-run")


# Fixtures -----------------------------------------------------------------------------------------


def _active(request: pytest.FixtureRequest) -> MusclePlugin:
    plugin = request.config.stash.get(ACTIVE, None)
    if plugin is None:
        pytest.skip(_NEEDS_MODELS)
    return plugin


@pytest.fixture
def golden_case(request: pytest.FixtureRequest) -> GoldenCase:
    """Every golden case in turn."""
    _active(request)
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def flip(request: pytest.FixtureRequest, golden_case: GoldenCase) -> Flip:
    """What the update did to ``golden_case``; an error where a response could not be judged."""
    result = _active(request).comparison(request.session).result(golden_case)
    if result.flip is None:
        pytest.fail(f"not judged: {result.error}", pytrace=False)
    return result.flip


@pytest.fixture(scope="session")
def comparison(request: pytest.FixtureRequest) -> Comparison:
    """Both models on all golden cases: ``metrics``, ``datasets``, ``gates``, ``results``, ``to_frame()``."""
    return _active(request).comparison(request.session)


@pytest.fixture(scope="session")
def compatibility_adapter(request: pytest.FixtureRequest) -> TrainedAdapter | None:
    """The adapter that brings the release within its budgets: ``path``, ``before``, ``after``, ``recipe``.

    None, and nothing is trained, where no gate is exceeded.
    """
    return _active(request).adapter(request.session)
