"""Whole trainings where the old and the new model have different tokenizers."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from small import quick, records
from tiny import save_tiny_model
from tongues import tokenizer

from pytest_muscle.adapter import Recipe, train_compatibility_adapter
from pytest_muscle.adapter.progress import Note, Step
from pytest_muscle.errors import MuscleError

RECORDS = records(16)
OLD_ONLY = Recipe("old_only")
LESSON = quick(recipe=OLD_ONLY, selection="validation_loss", epochs=4, rank=16, alpha=32.0)
BRIEF = quick(recipe=OLD_ONLY, validation_share=0.0, epochs=1, batch_size=8)


def save_model(directory, kind, seed, made=None, **changes):
    """A tiny model with a tokenizer of a kind."""
    made = made or tokenizer(kind)
    save_tiny_model(directory, seed=seed, **{"vocab_size": len(made) + 3, **changes})
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (directory / name).unlink()
    made.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model of each kind of tokenizer, each output layer a little larger than its vocabulary."""
    home = tmp_path_factory.mktemp("tongues")
    kinds = ("more_bytes", "pieces", "unigram", "words", "bytes")
    return {kind: save_model(home / kind, kind, seed) for seed, kind in enumerate(kinds)}


def train(old, new, output, config, data=RECORDS, **changes):
    return train_compatibility_adapter(str(old), str(new), data, output, config, **changes)


def weights(result):
    return load_file(result.path / "adapter_model.safetensors")


def assert_same(one, other, tolerance=0.0):
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=tolerance, rtol=0)


@pytest.fixture(scope="module")
def unbroken(models, tmp_path_factory):
    """A training to the end, with its events."""
    events = []
    output = tmp_path_factory.mktemp("unbroken") / "adapter"
    result = train(models["more_bytes"], models["pieces"], output, LESSON, progress=events.append)
    return result, events


def test_the_new_model_comes_nearer_to_the_old_one(unbroken):
    result, events = unbroken
    losses = [event.loss for event in events if isinstance(event, Step)]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    assert result.epochs[-1].loss < result.epochs[0].loss


def test_the_coverage_is_told(unbroken, models):
    result, events = unbroken
    found = result.report["tokenizers"]
    assert 0 < found["inside"] < found["aligned"] < found["tokens"]
    assert 0 < found["rest"] < 1
    note = next(event.text for event in events if isinstance(event, Note))
    assert f"{found['aligned'] / found['tokens']:.1%} of {found['tokens']} tokens are aligned" in note
    assert note in result.notes
    assert f"- {note}" in (result.path / "README.md").read_text()
    assert json.loads((result.path / "adapter_report.json").read_text())["tokenizers"] == found


def test_the_same_tokenizer_has_no_coverage_to_tell(models, tmp_path):
    result = train(models["bytes"], models["bytes"], tmp_path / "a", BRIEF)
    assert result.report["tokenizers"] is None
    assert result.notes == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"), [("unigram", "bytes"), ("words", "more_bytes"), ("bytes", "words"), ("pieces", "unigram")]
)
def test_tokenizers_of_all_kinds(models, tmp_path, old, new):
    config = replace(LESSON, texts="choices", validation_share=0.0)
    events = []
    train(models[old], models[new], tmp_path / "adapter", config, progress=events.append)
    losses = [event.loss for event in events if isinstance(event, Step)]
    assert sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.parametrize("tokens", [pytest.param("all", marks=pytest.mark.slow), "answer"])
def test_cached_teachers_teach_what_live_ones_do(models, tmp_path, tokens):
    adapters = []
    for teacher in ("cached", "live"):
        recipe = Recipe("truth_weighted", 2.0)
        config = replace(BRIEF, recipe=recipe, teacher=teacher, tokens=tokens, texts="choices")
        adapters.append(weights(train(models["bytes"], models["pieces"], tmp_path / teacher, config)))
    assert_same(*adapters, 2e-4)


def test_a_training_that_was_stopped_goes_on(models, unbroken, tmp_path):
    def stop(event):
        if isinstance(event, Step) and event.step == 7:
            raise KeyboardInterrupt

    pair = models["more_bytes"], models["pieces"]
    with pytest.raises(KeyboardInterrupt):
        train(*pair, tmp_path / "adapter", LESSON, progress=stop)
    events = []
    result = train(*pair, tmp_path / "adapter", LESSON, progress=events.append)
    assert next(event.step for event in events if isinstance(event, Step)) == 7
    assert_same(weights(result), weights(unbroken[0]), 1e-6)
    assert result.report["steps"] == unbroken[0].report["steps"]


def test_another_template_is_rendered_for_the_old_model(tmp_path):
    """Where only the templates differ, each model still reads its own."""
    other = copy.deepcopy(tokenizer("bytes"))
    other.chat_template = "{% for m in messages %}({{ m.role }}) {{ m.content }} {% endfor %}"
    old = save_model(tmp_path / "old", "bytes", 0, other)
    new = save_model(tmp_path / "new", "bytes", 1)
    data = [
        {"messages": [{"role": "user", "content": record["prompt"]}], "answer": "late", "max_new_tokens": 2}
        for record in RECORDS
    ]
    result = train(old, new, tmp_path / "adapter", BRIEF, data)
    found = result.report["tokenizers"]
    assert found["inside"] == 0
    assert 0.5 < found["aligned"] / found["tokens"] < 1


def test_an_old_model_with_a_short_context_says_what_it_read(models, tmp_path):
    short = save_model(tmp_path / "short", "more_bytes", 5, max_position_embeddings=10)
    fewer = train(short, models["bytes"], tmp_path / "fewer", BRIEF).report["tokenizers"]
    more = train(models["more_bytes"], models["bytes"], tmp_path / "more", BRIEF).report["tokenizers"]
    assert fewer["tokens"] == more["tokens"]
    assert fewer["aligned"] < more["aligned"]


def test_texts_that_cannot_be_aligned_are_refused(models, tmp_path):
    data = [{"prompt": record["prompt"].upper() * 3, "answer": "LATE"} for record in RECORDS]
    with pytest.raises(
        MuscleError, match=r"only \d+ of \d+ tokens .* can be aligned .* keep a text"
    ) as caught:
        train(models["words"], models["bytes"], tmp_path / "adapter", BRIEF, data)
    assert str(models["words"]) in str(caught.value)
    assert str(models["bytes"]) in str(caught.value)


def test_a_tokenizer_with_more_tokens_than_the_model(models, tmp_path):
    small = save_model(tmp_path / "small", "more_bytes", 5, vocab_size=270)
    with pytest.raises(MuscleError, match=r"texts use token \d+, but"):
        train(small, models["bytes"], tmp_path / "adapter", BRIEF)
