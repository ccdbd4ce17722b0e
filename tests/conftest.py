"""Tiny real checkpoints for the tests, and no network."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy  # noqa: F401  (cannot be imported again where a run within a test was the first to do so)
import pytest
from hypothesis import settings
from tiny import save_tiny_model

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["pytester"]

# No test is timed, and what fails in one run fails in the next; --hypothesis-profile=thorough looks further.
settings.register_profile("reproducible", deadline=None, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=3_000)
settings.load_profile("reproducible")


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads to compute with, for one test."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a Llama of some ten thousand random parameters, its tokenizer and chat template."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny", seed=0)


@pytest.fixture(scope="session")
def tiny_model_b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with other weights."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-b", seed=1)
