"""Multiple choice against an oracle: one choice at a time through the model, in float64."""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from threading import get_ident

import pytest
import torch
from tiny import save_other_model, save_tiny_model

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import GoldenCase
from pytest_muscle.models import ModelOptions, Response, open_model
from pytest_muscle.models.checkpoint import load_model, load_tokenizer, resolve_checkpoint
from pytest_muscle.models.local import attention, choosing, packing, scoring
from pytest_muscle.models.local.batching import Budget
from pytest_muscle.models.local.encoding import Choices, Encoder
from pytest_muscle.models.local.linear import pack_linears
from pytest_muscle.models.local.output import find_output_layer
from pytest_muscle.models.local.trie import Row, common_length
from pytest_muscle.models.quiet import quiet

FEW_SHOT = "Question: how many apples are left? Answer: 12 apples are left in the box.\n\n" * 2


def case(
    number: int, prompt: str, choices: Sequence[str] = ("it is on its way", "the box"), **more
) -> GoldenCase:
    return GoldenCase(
        id=f"case-{number}",
        dataset="golden.jsonl",
        task="multiple_choice",
        answer=(0,),
        prompt=prompt,
        choices=tuple(choices),
        **more,
    )


CASES = [
    case(0, "Question: where is the parcel?\nAnswer:"),
    case(
        1, "Question: where is the parcel now?\nAnswer:", ["it is on its way.", "it is on its desk.", "gone"]
    ),
    case(2, "Grüße aus", ["Köln", "Aachen", "Köln!", "K"]),
    case(3, "spaces that end the prompt   ", ["one", " two"]),
    case(4, "", ["nothing before", "the choice"]),
    case(5, "   ", ["only spaces", "before it"]),
    case(6, "no delimiter", ["s at all", "!"], delimiter=""),
    case(7, "<|begin|>has its own begin token", ["yes", "no"]),
    case(8, FEW_SHOT + "Question: how many?\nAnswer:", ["12", "13 apples are left in the box"]),
    case(9, FEW_SHOT + "Question: which?\nAnswer:", ["apples", "the bill"]),
    case(10, FEW_SHOT + "Question: when was it paid?\nAnswer:", ["twice", "late", "late and twice"]),
    case(11, FEW_SHOT * 4 + "longer than the context", ["of the model", "and cut on the left"]),
]


@cache
def exact_model(directory: Path):
    checkpoint = resolve_checkpoint(str(directory))
    return load_model(checkpoint, device="cpu", dtype="float64"), load_tokenizer(checkpoint)


def oracle(directory: Path, asked: GoldenCase, context: str | None = None) -> list[float]:
    """The harness's rule spelt out: every choice alone, in float64, softmax over the vocabulary."""
    model, tokenizer = exact_model(directory)
    limit = model.config.max_position_embeddings
    context = asked.prompt if context is None else context
    spaces = context[len(context.rstrip()) :]
    context = context.rstrip()
    sums = []
    for choice in asked.choices:
        tail = spaces + asked.delimiter + choice
        head = tokenizer(context).input_ids if context else [tokenizer.bos_token_id]
        own = tokenizer(context + tail).input_ids[len(head) if context else 0 :]
        inputs = (head + own)[-(limit + 1) :][:-1]
        with torch.inference_mode():
            logprobs = model(input_ids=torch.tensor([inputs])).logits[0].log_softmax(-1)
        sums.append(
            math.fsum(float(logprobs[len(inputs) - len(own) + i, token]) for i, token in enumerate(own))
        )
    return sums


def answers(directory: Path, cases: Sequence[GoldenCase], **options) -> dict[str, Response]:
    model = open_model(str(directory), ModelOptions(device="cpu", **options))
    found = [pair for batch in model.respond(cases) for pair in batch]
    model.close()
    assert sorted(asked.id for asked, _ in found) == sorted(asked.id for asked in cases)
    return {asked.id: response for asked, response in found}


def assert_matches_oracle(directory: Path, cases: Sequence[GoldenCase], **options) -> None:
    found = answers(directory, cases, **options)
    for asked in cases:
        assert found[asked.id].loglikelihoods == pytest.approx(oracle(directory, asked), abs=2e-4), (
            asked.prompt
        )


def encoded(directory: Path, cases: Sequence[GoldenCase] = CASES) -> list[Choices]:
    encoder = Encoder(load_tokenizer(resolve_checkpoint(str(directory))), 256, None)
    return [encoder.choices(asked) for asked in cases]


Score = Callable[..., object]


def scores(
    path: Score, model: object, requests: Sequence[Choices], tokens: int
) -> list[tuple[float, ...] | None]:
    found = dict(pair for batch in path(model, requests, Budget(tokens)) for pair in batch)
    assert sorted(found) == list(range(len(requests)))
    return [found[i] for i in range(len(requests))]


@pytest.mark.parametrize("batch_tokens", [None, 1, 60, 500])
def test_every_choice_scores_as_it_does_alone(tiny_model: Path, batch_tokens: int | None) -> None:
    assert_matches_oracle(tiny_model, CASES, batch_tokens=batch_tokens)


@pytest.mark.parametrize("path", [scoring.score, packing.score])
@pytest.mark.parametrize("tokens", [1, 60, 100_000])
def test_both_paths_match_the_oracle(tiny_model: Path, path: Score, tokens: int) -> None:
    model = load_model(resolve_checkpoint(str(tiny_model)), device="cpu")
    for asked, found in zip(CASES, scores(path, model, encoded(tiny_model), tokens), strict=True):
        assert found == pytest.approx(oracle(tiny_model, asked), abs=2e-4), asked.prompt


def test_one_case_alone(tiny_model: Path) -> None:
    assert_matches_oracle(tiny_model, CASES[:1])


def test_no_case_loads_nothing(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_muscle.models.checkpoint.load_model", lambda *_, **__: pytest.fail("loaded"))
    assert list(open_model(str(tiny_model)).respond([])) == []


def rows_run(
    model: torch.nn.Module, path: Score, requests: Sequence[Choices], budget: int
) -> list[tuple[int, int]]:
    """The thread and the tokens of each forward pass."""
    seen = []
    hook = model.register_forward_pre_hook(
        lambda _, __, named: seen.append((get_ident(), named["input_ids"].numel())), with_kwargs=True
    )
    scores(path, model, requests, budget)
    hook.remove()
    return seen


def tokens_run(model: torch.nn.Module, path: Score, requests: Sequence[Choices], budget: int) -> int:
    return sum(tokens for _, tokens in rows_run(model, path, requests, budget))


def test_what_requests_share_is_run_once(tiny_model: Path) -> None:
    model = load_model(resolve_checkpoint(str(tiny_model)), device="cpu")
    requests = encoded(tiny_model, [case(i, FEW_SHOT + f"Question: {i}?\nAnswer:") for i in range(20)])
    shared = common_length(requests[0][0].tokens, requests[-1][0].tokens)
    every = sum(len(choice.tokens) - 1 for choices in requests for choice in choices)
    assert shared > 60
    for budget in (1, 80, 400):
        # The block goes through the first row, where nothing is known about the second, and the cache.
        assert tokens_run(model, packing.score, requests, budget) <= every - shared * (2 * len(requests) - 2)


def test_a_long_prefix_is_run_in_pieces(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(resolve_checkpoint(str(tiny_model)), device="cpu")
    cases = [case(i, FEW_SHOT * 2 + f"Question: {i}?\nAnswer:") for i in range(4)]
    requests = encoded(tiny_model, cases)
    whole = rows_run(model, packing.score, requests, 40)
    monkeypatch.setattr(attention, "_PIECE", 16)
    pieces = rows_run(model, packing.score, requests, 40)
    assert sum(tokens for _, tokens in pieces) == sum(tokens for _, tokens in whole)
    assert max(tokens for _, tokens in pieces) < 60 < max(tokens for _, tokens in whole)
    for asked, found in zip(cases, scores(packing.score, model, requests, 40), strict=True):
        assert found == pytest.approx(oracle(tiny_model, asked), abs=2e-4)


def test_the_cache_moves_from_block_to_block(tiny_model: Path) -> None:
    model = load_model(resolve_checkpoint(str(tiny_model)), device="cpu")
    other = "Summary: the order came late, and the customer was not happy about it.\n\n" * 2
    cases = [case(i, block + f"Question: {i}?\nAnswer:") for i in range(6) for block in (FEW_SHOT, other, "")]
    requests = encoded(tiny_model, cases)
    for asked, found in zip(cases, scores(packing.score, model, requests, 40), strict=True):
        assert found == pytest.approx(oracle(tiny_model, asked), abs=2e-4)
    blocks = [len(requests[i][0].tokens) for i in (0, 1)]
    assert tokens_run(model, packing.score, requests, 40) < 2 * sum(blocks) + 18 * 40


@pytest.mark.parametrize("kind", ["window", "long window", "gpt2", "mamba"])
def test_other_architectures_match_the_oracle_too(tmp_path: Path, kind: str) -> None:
    directory = save_other_model(tmp_path / kind, kind)
    cases = [
        case(i, f"Question: {text}?\nAnswer:")
        for i, text in enumerate(["where", "where is it", "when and why"])
    ]
    assert_matches_oracle(directory, cases)


@pytest.mark.parametrize("kind", ["llama", "window", "gpt2", "mamba"])
@pytest.mark.parametrize("shared", ["", FEW_SHOT])
def test_choices_of_one_token_do_not_see_the_cases_before_them(
    tmp_path: Path, kind: str, shared: str
) -> None:
    directory = tmp_path / kind
    save_tiny_model(directory, seed=0) if kind == "llama" else save_other_model(directory, kind)
    texts = ["where", "where is it", "when and why", "how"]
    cases = [case(i, f"{shared}{text}", ("!", "?"), delimiter="") for i, text in enumerate(texts)]
    assert all(
        len(choice.tokens) > choice.scored == 1 for asked in encoded(directory, cases) for choice in asked
    )
    assert_matches_oracle(directory, cases)


@pytest.mark.parametrize(
    ("kind", "packed"),
    [("llama", True), ("window", False), ("long window", True), ("gpt2", True), ("mamba", False)],
)
def test_packing_is_used_where_it_gives_the_same_numbers(
    tmp_path: Path, kind: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / kind
    save_tiny_model(directory, seed=0) if kind == "llama" else save_other_model(directory, kind)
    paths = []
    for name, module in (("packed", packing), ("plain", scoring)):
        real = module.score
        monkeypatch.setattr(
            module, "score", lambda *a, real=real, name=name: paths.append((name, len(a[1]))) or real(*a)
        )
    model = open_model(str(directory), ModelOptions(device="cpu"))
    list(model.respond(CASES[:3]))
    assert paths[0] == ("packed", 3)
    assert (("plain", 3) in paths) is not packed
    assert bool(model.notices) is not packed
    assert all("plain padded batches" in notice for notice in model.notices)


@pytest.fixture
def undivided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows as they are made elsewhere than on a CPU."""
    monkeypatch.setattr(Row, "behind", lambda prefix, device: Row(len(prefix.tokens), divided=False))


@pytest.mark.usefixtures("undivided")
@pytest.mark.parametrize("tokens", [1, 300, 100_000])
def test_one_attention_for_a_whole_row_matches_the_oracle(tiny_model: Path, tokens: int) -> None:
    model = load_model(resolve_checkpoint(str(tiny_model)), device="cpu")
    made = []
    real = Row.segments
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Row, "segments", lambda self: made.append(real(self)) or made[-1])
        found = scores(packing.score, model, encoded(tiny_model, MANY[:9]), tokens)
    assert {len(segments) for segments in made} == {1}
    # Nothing is looked up for a layer: the one segment sees the row as it lies.
    assert all(segment.seen is None for (segment,) in made)
    for asked, values in zip(MANY, found, strict=False):
        assert values == pytest.approx(oracle(tiny_model, asked), abs=2e-4), asked.prompt


@pytest.mark.parametrize("width", [1, 15, 16, 17])
def test_a_masks_rows_are_aligned(width: int) -> None:
    hidden = torch.ones((width, width), dtype=torch.bool).triu(1)
    mask = attention._additive(hidden, 3, 2, torch.zeros(1, dtype=torch.bfloat16))
    assert mask.shape == (2 * width, 3 + width)
    assert mask.stride(0) % 16 == 0
    expected = torch.cat([torch.zeros(width, 3, dtype=torch.bool), hidden], dim=1).repeat(2, 1)
    assert torch.equal(mask < -1e30, expected)
    assert torch.equal(mask == 0, ~expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("kind", "packed"), [("llama", True), ("mamba", False)])
def test_half_precision_is_packed_where_it_suits(tmp_path: Path, dtype: str, kind: str, packed: bool) -> None:
    directory = tmp_path / kind
    save_tiny_model(directory, seed=0) if kind == "llama" else save_other_model(directory, kind)
    model = load_model(resolve_checkpoint(str(directory)), device="cpu", dtype=dtype)
    with torch.no_grad():  # So that logits are as large as those of real models.
        model.lm_head.weight.mul_(8)
    told: list[str] = []
    requests = encoded(directory, CASES[:6])
    found = scores(partial(choosing.score, on_plain=lambda: told.append("plain")), model, requests, 300)
    assert told == ([] if packed else ["plain"])
    expected = scores(scoring.score, model.double(), requests, 300)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=0.02, abs=0.5)


@pytest.mark.parametrize(
    ("found", "plain", "dtype", "close"),
    [
        # What SmolLM2 gave for two unlikely tokens in a row and alone, and where a row leaked into another.
        (-38.02, -38.50, torch.bfloat16, True),
        (-41.59, -41.51, torch.float16, True),
        (-32.77, -41.70, torch.bfloat16, False),
        (-41.59, -41.51, torch.float32, False),
        (-41.2838, -41.2839, torch.float32, True),
        (math.nan, math.nan, torch.float32, True),
        (math.nan, -1.0, torch.float32, False),
    ],
)
def test_rounding_explains_small_differences_only(
    found: float, plain: float, dtype: torch.dtype, close: bool
) -> None:
    assert choosing._close(found, plain, 2, dtype) is close


def test_a_window_shorter_than_a_text_is_refused_by_itself(tmp_path: Path) -> None:
    directory = save_other_model(tmp_path / "window", "window")
    model = load_model(resolve_checkpoint(str(directory)), device="cpu")
    with pytest.raises(NotImplementedError, match="plain softmax attention"):
        list(packing.score(model, encoded(directory, CASES[:3]), Budget(1000)))


@pytest.mark.parametrize("keeps", [True, False])
def test_the_plain_path_makes_the_logits_it_needs(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, keeps: bool
) -> None:
    model = load_model(resolve_checkpoint(str(tiny_model)), device="cpu")
    requests = encoded(tiny_model, CASES[:3])
    expected = [oracle(tiny_model, asked) for asked in CASES[:3]]
    made = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda _, __, logits: made.append(logits.shape[1]))
    if not keeps:  # As in a checkpoint's own code that has no such argument.
        real = model.forward
        monkeypatch.setattr(
            model, "forward", lambda input_ids, use_cache: real(input_ids, use_cache=use_cache)
        )
    found = scores(scoring.score, model, requests, 1)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=2e-4)
    longest = max(len(choice.tokens) - 1 for asked in requests for choice in asked)
    assert (max(made) == longest) is not keeps
    if keeps:
        needed = [
            max(len(c.tokens) for c in asked) - min(len(c.tokens) - c.scored for c in asked)
            for asked in requests
        ]
        assert sorted(made) == sorted(needed)


@pytest.mark.parametrize("failure", [lambda *_: iter([[(0, (0.0, 0.0))]]), lambda *_: 1 / 0])
def test_a_packed_path_that_fails_or_differs_is_not_used(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, failure: Callable[..., object]
) -> None:
    monkeypatch.setattr(packing, "score", failure)
    assert_matches_oracle(tiny_model, CASES)


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch, set_threads: Callable[[int], None]) -> None:
    monkeypatch.setattr(packing, "_SHORTEST", 32)
    set_threads(3)


MANY = [case(i, FEW_SHOT * (i % 3) + f"Question: what of {i}?\nAnswer:") for i in range(40)]


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("tokens", [1, 300, 1200, 100_000])
def test_rows_side_by_side_match_the_oracle(tiny_model: Path, tokens: int) -> None:
    model = load_model(resolve_checkpoint(str(tiny_model)), device="cpu")
    pack_linears(model)
    requests = encoded(tiny_model, MANY)
    by_blocks = partial(packing.score, output=find_output_layer(model))
    first, again = (scores(by_blocks, model, requests, tokens) for _ in range(2))
    assert first == again
    for asked, found in zip(MANY, first, strict=True):
        assert found == pytest.approx(oracle(tiny_model, asked), abs=2e-4), asked.prompt
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_each_thread_has_its_share_of_a_batch(tiny_model: Path) -> None:
    model = load_model(resolve_checkpoint(str(tiny_model)), device="cpu")
    rows = rows_run(model, packing.score, encoded(tiny_model, MANY[::3]), 100_000)
    shares = [tokens for thread, tokens in rows if thread != get_ident()]
    assert len(shares) == 3
    assert max(shares) - min(shares) < 60


@pytest.mark.usefixtures("three_threads")
def test_what_rows_side_by_side_share_is_run_once(tiny_model: Path) -> None:
    model = load_model(resolve_checkpoint(str(tiny_model)), device="cpu")
    requests = encoded(tiny_model, MANY[2::3])
    shared = common_length(requests[0][0].tokens, requests[-1][0].tokens)
    rows = rows_run(model, packing.score, requests, 100_000)
    own = [tokens for thread, tokens in rows if thread != get_ident()]
    assert len(own) == 3
    assert sum(own) <= sum(len(choice.tokens) - shared for choices in requests for choice in choices)


@pytest.mark.usefixtures("three_threads")
def test_a_model_is_as_it_was_when_a_row_fails(tiny_model: Path) -> None:
    model = load_model(resolve_checkpoint(str(tiny_model)), device="cpu")
    pack_linears(model)
    requests = encoded(tiny_model, MANY)
    by_blocks = partial(packing.score, output=find_output_layer(model))
    expected = scores(by_blocks, model, requests, 1000)
    failing = Memory(model, 0, RuntimeError("a defect"))
    with pytest.raises(RuntimeError, match="a defect"):
        list(by_blocks(model, requests, Budget(1000)))
    failing.stop()
    assert scores(by_blocks, model, requests, 1000) == expected
    for whole, blocks in zip(scores(packing.score, model, requests, 1000), expected, strict=True):
        assert whole == pytest.approx(blocks, abs=1e-4)


class Memory:
    """Lets a model's forward pass fail above a number of tokens, as a full device would."""

    def __init__(self, model: torch.nn.Module, tokens: int, error: Exception) -> None:
        self.failures = 0

        def check(_: object, __: object, named: dict[str, torch.Tensor]) -> None:
            if named["input_ids"].numel() > tokens:
                self.failures += 1
                raise error

        self.stop = model.register_forward_pre_hook(check, with_kwargs=True).remove


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("path", [scoring.score, packing.score, choosing.score])
@pytest.mark.parametrize("threads", [1, 2])
def test_batches_are_halved_when_memory_runs_out(
    tiny_model: Path, path: Score, error: Exception, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    model = load_model(resolve_checkpoint(str(tiny_model)), device="cpu")
    requests = encoded(tiny_model, CASES[:8])
    expected = scores(path, model, requests, 100_000)
    memory = Memory(model, 125, error)
    budget = Budget(100_000)
    found = dict(pair for batch in path(model, requests, budget) for pair in batch)
    assert memory.failures > 0
    assert budget.tokens < 100_000
    for index, values in enumerate(expected):
        assert found[index] == pytest.approx(values, abs=1e-4)


def test_a_case_too_large_for_the_memory_is_an_error_and_the_others_are_answered(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = load_model

    def load(*arguments, **named):
        model = real(*arguments, **named)
        Memory(model, 100, torch.OutOfMemoryError("CUDA out of memory"))
        return model

    monkeypatch.setattr("pytest_muscle.models.checkpoint.load_model", load)
    found = answers(tiny_model, CASES)
    failed = {name for name, response in found.items() if response.error}
    assert failed == {"case-11"}
    assert "ran out of memory even on this case alone" in found["case-11"].error
    assert all(found[f"case-{i}"].loglikelihoods for i in range(11))


def test_other_errors_are_not_swallowed(tiny_model: Path) -> None:
    model = load_model(resolve_checkpoint(str(tiny_model)), device="cpu")
    Memory(model, 0, RuntimeError("a defect"))
    with pytest.raises(RuntimeError, match="a defect"):
        scores(choosing.score, model, encoded(tiny_model), 100)


def test_nan_is_an_error_of_the_case(tmp_path: Path) -> None:
    directory = save_tiny_model(tmp_path / "nan", seed=0)
    model = load_model(resolve_checkpoint(str(directory)), device="cpu")
    with torch.no_grad(), quiet():
        model.lm_head.weight.fill_(math.nan)
        model.save_pretrained(directory)
    found = answers(directory, CASES[:3])
    assert {response.error for response in found.values()} == {"the model returned NaN as a log-likelihood"}


def test_messages_go_through_the_chat_template(tiny_model: Path) -> None:
    said = ({"role": "user", "content": "where is it?"},)
    asked = case(0, "", ["on its way", "gone"], delimiter="", messages=said)
    rendered = "<|user|>where is it?<|end|><|assistant|>"
    assert answers(tiny_model, [asked])["case-0"].loglikelihoods == pytest.approx(
        oracle(tiny_model, asked, rendered), abs=2e-4
    )


@pytest.mark.parametrize(
    ("messages", "rendered"),
    [
        ([("user", "hi")], "<|system|>Be brief.<|end|><|user|>hi<|end|><|assistant|>"),
        (
            [("system", "Old."), ("user", "hi")],
            "<|system|>Be brief.\n\nOld.<|end|><|user|>hi<|end|><|assistant|>",
        ),
        ([("user", "hi"), ("assistant", "so")], "<|system|>Be brief.<|end|><|user|>hi<|end|><|assistant|>so"),
    ],
)
def test_a_system_prompt_comes_first(
    tiny_model: Path, messages: list[tuple[str, str]], rendered: str
) -> None:
    encoder = Encoder(load_tokenizer(resolve_checkpoint(str(tiny_model))), 256, "Be brief.")
    said = tuple({"role": role, "content": content} for role, content in messages)
    assert encoder.text(case(0, "", messages=said)) == rendered
    assert encoder.text(case(0, "plain")) == "Be brief.\n\nplain"


def test_a_template_without_a_place_for_the_system_message(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(resolve_checkpoint(str(tiny_model)))
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    said = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"})
    assert Encoder(tokenizer, 256, None).text(case(0, "", messages=said)) == "hi"


def test_messages_need_a_chat_template(tiny_model: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(tiny_model, tmp_path / "plain"))
    (directory / "chat_template.jinja").unlink()
    asked = case(0, "", messages=({"role": "user", "content": "hi"},), line=7)
    with pytest.raises(
        MuscleError, match=r"golden\.jsonl:7: case 'case-0' has messages, .* no chat template"
    ):
        answers(directory, [asked])


def test_a_choice_that_cannot_be_asked_is_an_error_of_its_case(tiny_model: Path) -> None:
    found = answers(
        tiny_model, [*CASES[:2], case(20, "empty", ["", "x"], delimiter=""), case(21, "x", ["y", "z " * 400])]
    )
    assert "adds no token" in found["case-20"].error
    assert "the model's context 256" in found["case-21"].error
    assert found["case-0"].loglikelihoods


def test_lone_surrogates_are_replaced(tiny_model: Path) -> None:
    bad, good = case(0, "a \ud800 b", ["\udfff", "x"]), case(1, "a � b", ["�", "x"])
    found = answers(tiny_model, [bad, good])
    assert found["case-0"].loglikelihoods == pytest.approx(found["case-1"].loglikelihoods)


def test_prompts_that_were_cut_are_told(tiny_model: Path) -> None:
    model = open_model(str(tiny_model), ModelOptions(device="cpu"))
    for _ in model.respond(CASES):
        assert model.notices == []
    assert model.notices == [
        f"{tiny_model}: 1 prompts exceed the model's context of 256 tokens; they lost their beginning"
    ]


def test_duplicate_requests_get_equal_answers(tiny_model: Path) -> None:
    found = answers(tiny_model, [replace(CASES[1], id=str(i)) for i in range(5)])
    for response in found.values():
        assert response.loglikelihoods == pytest.approx(found["0"].loglikelihoods, abs=1e-5)


def test_the_fingerprint_names_what_can_change_a_response(
    tiny_model: Path, tiny_model_b: Path, tmp_path: Path
) -> None:
    def fingerprint(directory: Path, **options) -> str:
        return open_model(str(directory), ModelOptions(**options)).fingerprint

    plain = fingerprint(tiny_model)
    copy = Path(shutil.copytree(tiny_model, tmp_path / "copy"))
    assert fingerprint(copy) == plain == fingerprint(tiny_model, batch_tokens=7)
    others = [
        fingerprint(tiny_model_b),
        fingerprint(tiny_model, dtype="bfloat16"),
        fingerprint(tiny_model, system_prompt="Be brief."),
    ]
    assert len({plain, *others}) == 4


def test_an_adapter_answers_as_adapter(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = load_model(resolve_checkpoint(str(tiny_model)), device="cpu")
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(5)
        tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        tuned.save_pretrained(tmp_path / "adapter")
        merged = tuned.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        load_tokenizer(resolve_checkpoint(str(tiny_model))).save_pretrained(tmp_path / "merged")
    found = answers(tmp_path / "adapter", CASES)
    base = answers(tiny_model, CASES)
    for asked in CASES:
        expected = oracle(tmp_path / "merged", asked)
        assert found[asked.id].loglikelihoods == pytest.approx(expected, abs=1e-3)
        assert found[asked.id].loglikelihoods != pytest.approx(base[asked.id].loglikelihoods, abs=1e-2)
