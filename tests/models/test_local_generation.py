"""Generation against an oracle: plain greedy ``generate``, one prompt at a time."""

import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from tiny import save_other_model, save_tiny_model

from pytest_muscle.golden import GoldenCase
from pytest_muscle.models import ModelOptions, Response, open_model
from pytest_muscle.models.checkpoint import load_model, load_tokenizer, resolve_checkpoint
from pytest_muscle.models.local import decoding, generation
from pytest_muscle.models.local.encoding import Prompt
from pytest_muscle.models.local.stopping import Endings
from pytest_muscle.models.quiet import quiet

PROMPTS = [
    "Question: where is the parcel?",
    "Grüße",
    "Summary: the order came late, and the customer was not happy about it. " * 2,
    "a",
    "<|begin|>its own begin token",
    "",
]


def case(number: int, prompt: str, **more) -> GoldenCase:
    return GoldenCase(
        id=str(number),
        dataset="g",
        task="exact_match",
        answer=("",),
        prompt=prompt,
        **({"max_new_tokens": 20} | more),
    )


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose texts end after different numbers of tokens."""
    return save_tiny_model(tmp_path_factory.mktemp("talker"), seed=29, initializer_range=0.3)


@cache
def reference(directory: Path):
    checkpoint = resolve_checkpoint(str(directory))
    return load_model(checkpoint, device="cpu"), load_tokenizer(checkpoint)


def oracle(directory: Path, text: str, new: int = 20, kept: int = 256) -> list[int]:
    """The new tokens of plain greedy generation of the one prompt, without its last ``kept``."""
    model, tokenizer = reference(directory)
    ids = torch.tensor([tokenizer.encode(text) or [tokenizer.bos_token_id]])[:, -kept:]
    with torch.inference_mode(), quiet():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=new,
            pad_token_id=tokenizer.pad_token_id,
        )
    return output[0, ids.shape[1] :].tolist()


def decoded(directory: Path, tokens: list[int]) -> str:
    return reference(directory)[1].decode(tokens, skip_special_tokens=True)


def texts(directory: Path, cases: Sequence[GoldenCase], **options) -> list[str | None]:
    found = responses(directory, cases, **options)
    assert not any(response.error for response in found)
    return [response.text for response in found]


def responses(directory: Path, cases: Sequence[GoldenCase], **options) -> list[Response]:
    model = open_model(str(directory), ModelOptions(device="cpu", **options))
    found = {asked.id: response for batch in model.respond(cases) for asked, response in batch}
    model.close()
    assert len(found) == len(cases)
    return [found[asked.id] for asked in cases]


SHOTS = "Question: how many apples are left? Answer: 12 apples are left in the box.\n\n" * 2


@pytest.mark.parametrize("batch_tokens", [None, 600])
def test_texts_behind_a_shared_prefix_equal_plain_ones(talker: Path, batch_tokens: int | None) -> None:
    shared = [f"{SHOTS}Question: {'where ' * (i % 5)}{i}?" for i in range(20)]
    cases = [case(i, prompt) for i, prompt in enumerate([*PROMPTS, *shared])]
    expected = [decoded(talker, oracle(talker, case.prompt)) for case in cases]
    assert texts(talker, cases, batch_tokens=batch_tokens) == expected


def test_a_shared_prefix_is_run_once(talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [case(i, f"{SHOTS}Question: {i}?", max_new_tokens=1) for i in range(30)]
    length = len(reference(talker)[1].encode(SHOTS))
    tokens = sum(forward_sizes(talker, cases, monkeypatch))
    assert tokens < 8 * length + 30 * 20 < 30 * length


@pytest.mark.parametrize("kind", ["window", "long window", "gpt2", "mamba"])
def test_other_architectures_generate_what_they_do_alone(tmp_path: Path, kind: str) -> None:
    directory = save_other_model(tmp_path / kind, kind)
    prompts = [*PROMPTS, *(f"{SHOTS}{i}" for i in range(16))]
    expected = [decoded(directory, oracle(directory, prompt)) for prompt in prompts]
    assert texts(directory, [case(i, prompt) for i, prompt in enumerate(prompts)]) == expected


@pytest.mark.parametrize("kind", ["llama", "window", "long window"])
def test_the_faster_loop_is_used_where_it_gives_the_same_logits(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = (
        save_tiny_model(tmp_path / kind, seed=1)
        if kind == "llama"
        else save_other_model(tmp_path / kind, kind)
    )
    used = []
    real = generation._plain
    monkeypatch.setattr(generation, "_plain", lambda *a: used.append("plain") or real(*a))
    model = open_model(str(directory), ModelOptions(device="cpu"))
    list(model.respond([case(i, prompt) for i, prompt in enumerate(PROMPTS)]))
    assert used == (["plain"] if kind == "window" else [])
    assert ["plain padded batches" in notice for notice in model.notices] == [True] * len(used)


def test_a_loop_that_differs_is_not_used(talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = decoding.run
    monkeypatch.setattr(decoding, "run", lambda *a: real(*a) + torch.randn(1, a[0].config.vocab_size))
    expected = [decoded(talker, oracle(talker, prompt)) for prompt in PROMPTS]
    assert texts(talker, [case(i, prompt) for i, prompt in enumerate(PROMPTS)]) == expected


@pytest.mark.parametrize("batch_tokens", [None, 1, 100])
def test_texts_equal_plain_greedy_generation(talker: Path, batch_tokens: int | None) -> None:
    cases = [case(i, prompt) for i, prompt in enumerate(PROMPTS)]
    expected = [oracle(talker, prompt) for prompt in PROMPTS]
    assert len({len(tokens) for tokens in expected}) > 1, "some texts should end early"
    assert texts(talker, cases, batch_tokens=batch_tokens) == [decoded(talker, tokens) for tokens in expected]


def test_each_case_has_its_own_length(talker: Path) -> None:
    cases = [case(i, PROMPTS[0], max_new_tokens=new) for i, new in enumerate((1, 7, 20))]
    assert texts(talker, cases) == [decoded(talker, oracle(talker, PROMPTS[0], new)) for new in (1, 7, 20)]


def test_the_text_ends_before_the_first_stop_string(talker: Path) -> None:
    whole = [decoded(talker, oracle(talker, prompt)) for prompt in PROMPTS[:3]]
    stops = [(text[3:6], text[5:7]) for text in whole]
    cases = [case(i, prompt, stop=stop) for i, (prompt, stop) in enumerate(zip(PROMPTS, stops, strict=False))]
    expected = [
        text[: min(text.find(stop) for stop in pair)] for text, pair in zip(whole, stops, strict=True)
    ]
    assert texts(talker, cases) == expected
    assert all(0 <= len(text) <= 3 for text in expected)


def test_the_earliest_of_several_stop_strings_counts(talker: Path) -> None:
    tokenizer = reference(talker)[1]
    endings = Endings(tokenizer, [Prompt([], 99, ("box", "les", "app"))], [])
    tokens = tokenizer.encode("12 apples in the box")
    assert endings.text(0, tokens) == "12 "
    assert [endings.ended(0, tokens[:n]) for n in (1, len(tokens))] == [False, True]


def test_a_stop_string_that_never_comes_changes_nothing(talker: Path) -> None:
    cases = [case(i, prompt, stop=("never in the text",)) for i, prompt in enumerate(PROMPTS)]
    assert texts(talker, cases) == [decoded(talker, oracle(talker, prompt)) for prompt in PROMPTS]


def forward_sizes(directory: Path, cases: Sequence[GoldenCase], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each forward pass had that the answers took."""
    sizes = []

    def load(*arguments, **named):
        model = load_model(*arguments, **named)
        model.register_forward_pre_hook(
            lambda _, __, named: sizes.append(named["input_ids"].numel()), with_kwargs=True
        )
        return model

    monkeypatch.setattr("pytest_muscle.models.checkpoint.load_model", load)
    texts(directory, cases)
    return sizes


def test_generation_ends_as_soon_as_every_row_has(talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = PROMPTS[:3]
    stops = [decoded(talker, oracle(talker, prompt))[:2] for prompt in prompts]
    cases = [
        case(i, p, stop=(stop,), max_new_tokens=100)
        for i, (p, stop) in enumerate(zip(prompts, stops, strict=True))
    ]
    # One of the passes compares the loop with a plain one.
    assert len(forward_sizes(talker, cases, monkeypatch)) <= 1 + 4


def test_a_special_token_can_be_a_stop_string(talker: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(talker, tmp_path / "special"))
    tokens = oracle(talker, PROMPTS[0])
    tokenizer = load_tokenizer(resolve_checkpoint(str(directory)))
    stop = tokenizer.convert_ids_to_tokens(tokens[4])
    tokenizer.add_special_tokens({"additional_special_tokens": [stop]})
    tokenizer.save_pretrained(directory)
    kept = tokens[: tokens.index(tokens[4])]
    asked = case(0, PROMPTS[0], stop=(stop,))
    assert texts(directory, [asked]) == [tokenizer.decode(kept, skip_special_tokens=True)]


@pytest.mark.parametrize("loop", [True, False])
def test_the_checkpoints_sampling_defaults_are_ignored(
    talker: Path, tmp_path: Path, loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "suits", lambda _: loop)
    directory = Path(shutil.copytree(talker, tmp_path / "sampling"))
    file = directory / "generation_config.json"
    suggested = {
        "do_sample": True,
        "temperature": 5.0,
        "top_p": 0.9,
        "repetition_penalty": 9.0,
        "num_beams": 1,
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | suggested))
    cases = [case(i, prompt) for i, prompt in enumerate(PROMPTS)]
    assert texts(directory, cases) == [decoded(talker, oracle(talker, prompt)) for prompt in PROMPTS]


def test_further_end_tokens_of_the_checkpoint_count(talker: Path, tmp_path: Path) -> None:
    tokens = oracle(talker, PROMPTS[0])
    directory = Path(shutil.copytree(talker, tmp_path / "ends"))
    file = directory / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [1, tokens[4]]}))
    kept = tokens[: tokens.index(tokens[4]) + 1]
    assert texts(directory, [case(0, PROMPTS[0])]) == [decoded(talker, kept)]


@pytest.mark.parametrize(("new", "kept"), [(20, 236), (255, 1), (300, 1)])
def test_a_long_prompt_is_cut_on_the_left(talker: Path, new: int, kept: int) -> None:
    prompt = "the customer was not happy about the order. " * 40
    expected = oracle(talker, prompt, min(new, 256 - kept), kept)
    assert texts(talker, [case(0, prompt, max_new_tokens=new)]) == [decoded(talker, expected)]


def test_messages_go_through_the_chat_template(talker: Path) -> None:
    said = ({"role": "user", "content": "where is it?"},)
    expected = oracle(talker, "<|user|>where is it?<|end|><|assistant|>")
    assert texts(talker, [case(0, "", messages=said)]) == [decoded(talker, expected)]


def test_choices_and_texts_may_be_asked_together(talker: Path) -> None:
    choice = GoldenCase(
        id="c", dataset="g", task="multiple_choice", answer=(0,), prompt="Is it?", choices=("yes", "no")
    )
    first, second = responses(talker, [case(0, PROMPTS[0]), choice])
    assert first.text == decoded(talker, oracle(talker, PROMPTS[0]))
    assert len(second.loglikelihoods) == 2


def test_batches_are_halved_when_memory_runs_out(talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = 0
    longest = max(len(reference(talker)[1].encode(prompt)) for prompt in PROMPTS)

    def load(*arguments, **named):
        model = load_model(*arguments, **named)

        def check(_: object, __: object, named: dict[str, torch.Tensor]) -> None:
            nonlocal failures
            if named["input_ids"].numel() > longest:
                failures += 1
                raise torch.OutOfMemoryError("CUDA out of memory")

        model.register_forward_pre_hook(check, with_kwargs=True)
        return model

    monkeypatch.setattr("pytest_muscle.models.checkpoint.load_model", load)
    cases = [case(i, prompt) for i, prompt in enumerate(PROMPTS)]
    assert texts(talker, cases) == [decoded(talker, oracle(talker, prompt)) for prompt in PROMPTS]
    assert 0 < failures < 6


def test_a_prompt_too_large_for_the_memory_is_an_error_and_the_others_are_answered(
    talker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = max(len(reference(talker)[1].encode(prompt)) for prompt in PROMPTS)

    def load(*arguments, **named):
        model = load_model(*arguments, **named)

        def check(_: object, __: object, named: dict[str, torch.Tensor]) -> None:
            if named["input_ids"].numel() >= longest:
                raise torch.OutOfMemoryError("CUDA out of memory")

        model.register_forward_pre_hook(check, with_kwargs=True)
        return model

    monkeypatch.setattr("pytest_muscle.models.checkpoint.load_model", load)
    found = responses(talker, [case(i, prompt) for i, prompt in enumerate(PROMPTS)])
    assert [bool(response.error) for response in found] == [prompt == PROMPTS[2] for prompt in PROMPTS]
    assert found[0].text == decoded(talker, oracle(talker, PROMPTS[0]))


def test_texts_move_into_slots_as_others_end(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [40, 40, *([3] * 20)]
    cases = [case(i, f"{PROMPTS[0]} {i}", max_new_tokens=limit) for i, limit in enumerate(limits)]
    slots = []
    real = decoding._Slots.open
    monkeypatch.setattr(decoding._Slots, "open", lambda self: slots.append(len(self.lengths)) or real(self))
    monkeypatch.setattr(generation, "_plain", lambda *_: pytest.fail("not in slots"))
    expected = [oracle(tiny_model, each.prompt, each.max_new_tokens) for each in cases]
    assert texts(tiny_model, cases, batch_tokens=400) == [decoded(tiny_model, tokens) for tokens in expected]
    assert 4 < max(slots) < 12
    # The short texts are written beside the long ones, so that they take no steps of their own.
    assert len(slots) == max(map(len, expected)) - 1


def test_finished_batches_are_handed_over_at_once(talker: Path) -> None:
    model = open_model(str(talker), ModelOptions(device="cpu", batch_tokens=1))
    batches = model.respond([case(i, prompt) for i, prompt in enumerate(PROMPTS)])
    ((first, _),) = next(batches)
    assert first.prompt == PROMPTS[2]
    model.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_precision_works(talker: Path, dtype: str) -> None:
    (text,) = texts(talker, [case(0, PROMPTS[0])], dtype=dtype)
    assert isinstance(text, str)
