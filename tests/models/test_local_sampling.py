"""Texts drawn at a temperature: from the right distribution, and the same in any batch."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy import stats
from tiny import save_tiny_model

from pytest_muscle.golden import GoldenCase
from pytest_muscle.models import ModelOptions, open_model
from pytest_muscle.models.checkpoint import load_model, load_tokenizer, resolve_checkpoint
from pytest_muscle.models.local import decoding

PROMPT = "Question: where is the parcel?"


def case(number: int = 0, prompt: str = PROMPT, **more) -> GoldenCase:
    return GoldenCase(
        str(number), "g", "exact_match", ("",), prompt=prompt, **({"max_new_tokens": 12} | more)
    )


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("talker"), seed=29, initializer_range=0.3)


def said(directory: Path, cases, **options) -> dict[tuple[str, int], str]:
    model = open_model(str(directory), ModelOptions(device="cpu", **options))
    batches = list(model.respond(cases))
    model.close()
    return {(each.id, each.draw): response.text for batch in batches for each, response in batch}


def test_tokens_are_drawn_as_the_temperature_says(talker):
    cases = [case(max_new_tokens=1, draw=draw) for draw in range(1_500)]
    texts = Counter(said(talker, cases, temperature=0.7).values())
    checkpoint = resolve_checkpoint(str(talker))
    model, tokenizer = load_model(checkpoint, device="cpu"), load_tokenizer(checkpoint)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([tokenizer.encode(PROMPT)])).logits[0, -1]
    expected: Counter[str] = Counter()
    for token, chance in enumerate((logits / 0.7).softmax(-1).tolist()):
        expected[tokenizer.decode([token], skip_special_tokens=True)] += chance * len(cases)
    common = [text for text, count in expected.items() if count >= 5]
    rest = len(cases) - sum(expected[text] for text in common)
    observed = [texts[text] for text in common]
    observed.append(len(cases) - sum(observed))
    assert stats.chisquare(observed, [*(expected[text] for text in common), rest]).pvalue > 0.001
    assert len(common) > 5


def test_what_is_drawn_does_not_depend_on_the_batch(talker):
    cases = [case(i, f"{PROMPT} {i}" * (1 + i % 3), draw=i % 2) for i in range(20)]
    together = said(talker, cases, temperature=1.0)
    alone = said(talker, cases[:3], temperature=1.0, batch_tokens=1)
    assert {key: together[key] for key in alone} == alone


def test_plain_generation_draws_the_same(talker, monkeypatch):
    cases = [case(i, f"{PROMPT} {i}") for i in range(6)]
    fast = said(talker, cases, temperature=1.0)
    monkeypatch.setattr(decoding, "suits", lambda *_: False)
    assert said(talker, cases, temperature=1.0) == fast


def test_each_draw_and_each_seed_gives_another_text(talker):
    cases = [case(draw=draw) for draw in range(4)]
    texts = said(talker, cases, temperature=1.5)
    assert len(set(texts.values())) == 4
    assert said(talker, cases, temperature=1.5) == texts
    assert said(talker, cases, temperature=1.5, seed=1) != texts


def test_hardly_any_temperature_is_greedy(talker):
    cases = [case(i, f"{PROMPT} {i}") for i in range(4)]
    assert said(talker, cases, temperature=1e-4) == said(talker, cases)


def test_how_texts_are_drawn_is_part_of_the_fingerprint(talker):
    def fingerprint(**options) -> str:
        return open_model(str(talker), ModelOptions(**options)).fingerprint

    prints = [fingerprint(), fingerprint(temperature=0.5), fingerprint(temperature=0.5, seed=1)]
    assert len(set(prints)) == 3
    assert fingerprint(seed=1) == prints[0]


def test_what_is_not_drawn_is_the_same_request_in_each_draw(talker):
    choice = replace(case(1), task="multiple_choice", answer=(0,), choices=("one", "two"))
    greedy, drawing = (open_model(str(talker), ModelOptions(temperature=t, samples=3)) for t in (0.0, 0.5))

    def requests(model, case: GoldenCase) -> int:
        return len({model.request_digest(replace(case, draw=draw)) for draw in range(3)})

    assert [requests(model, choice) for model in (greedy, drawing)] == [1, 1]
    assert [requests(model, case()) for model in (greedy, drawing)] == [1, 3]


def test_several_greedy_draws_are_told_of(talker):
    model = open_model(str(talker), ModelOptions(device="cpu", samples=3))
    list(model.respond([case()]))
    model.close()
    assert any("give it a temperature" in notice for notice in model.notices)
