import pytest
import torch
from small import records

from pytest_muscle.adapter.config import CompatibilityConfig
from pytest_muscle.adapter.data import (
    Collator,
    Example,
    LengthGroupedSampler,
    encode_cases,
    read_cases,
    split_cases,
)
from pytest_muscle.adapter.loss import IGNORED
from pytest_muscle.errors import MuscleError
from pytest_muscle.models.checkpoint import load_tokenizer, resolve_checkpoint
from pytest_muscle.models.local.encoding import Encoder


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return Encoder(load_tokenizer(resolve_checkpoint(str(tiny_model))), 10**9, None)


def encode(encoder, *raw, max_length=100, **settings):
    cases = read_cases(raw)
    return encode_cases(cases, encoder, CompatibilityConfig(**settings), max_length)


def test_the_right_choice_and_its_end(encoder):
    record = {"id": "a", "prompt": "Where is the parcel?", "choices": ["late", "on its way"], "answer": 1}
    (text,) = encode(encoder, record).texts
    decode = encoder.tokenizer.decode
    assert decode(text.tokens[: text.answer_start]) == "Where is the parcel?"
    assert decode(text.tokens[text.answer_start :]) == " on its way<|end|>"
    assert text.truthful
    assert text.where == "training record:1 (a)"


def test_all_choices_with_the_wrong_ones_marked(encoder):
    record = {"prompt": "Where?", "choices": ["late", "paid", "left"], "answer": [0, 2]}
    texts = encode(encoder, record, texts="choices").texts
    assert [text.truthful for text in texts] == [True, False, True]
    assert [text.index for text in texts] == [0, 1, 2]
    assert {text.case for text in texts} == {0}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("How?", " 12<|end|>"), ("How? ", " 12<|end|>"), ("A:\n", "\n12<|end|>")],
)
def test_text_answers_follow_one_space(encoder, prompt, expected):
    (text,) = encode(encoder, {"prompt": prompt, "answer": "12"}).texts
    assert encoder.tokenizer.decode(text.tokens[text.answer_start :]) == expected


def test_messages_go_through_the_chat_template(encoder):
    messages = [{"role": "user", "content": "Where is it?"}]
    (text,) = encode(encoder, {"messages": messages, "answer": "on its way"}).texts
    decode = encoder.tokenizer.decode
    assert decode(text.tokens[: text.answer_start]) == "<|user|>Where is it?<|end|><|assistant|>"
    assert decode(text.tokens[text.answer_start :]) == "on its way<|end|>"


def test_long_text_loses_the_beginning_of_its_prompt(encoder):
    record = {"prompt": "the customer asks " * 30, "answer": "paid"}
    whole = encode(encoder, record, max_length=1000)
    assert whole.truncated == 0
    answer = len(whole.texts[0].tokens) - whole.texts[0].answer_start
    cut = encode(encoder, record, max_length=20)
    assert cut.truncated == 1
    (text,) = cut.texts
    assert text.tokens == whole.texts[0].tokens[-20:]
    assert len(text.tokens) - text.answer_start == answer


def test_an_answer_longer_than_the_context_keeps_one_token_of_the_prompt(encoder):
    record = {"prompt": "the customer asks", "answer": "money back " * 20}
    (text,) = encode(encoder, record, max_length=10).texts
    assert (len(text.tokens), text.answer_start) == (10, 1)


def test_long_text_can_be_dropped(encoder):
    short, long = {"prompt": "How?", "answer": "late"}, {"prompt": "customer " * 99, "answer": "late"}
    result = encode(encoder, short, long, overlong="drop", max_length=50)
    assert (len(result.texts), result.dropped, result.truncated) == (1, 1, 0)
    with pytest.raises(MuscleError, match="none of the 1 training records fits into 50 tokens"):
        encode(encoder, long, overlong="drop", max_length=50)


def test_bad_records_are_named():
    with pytest.raises(MuscleError, match="training record 2: field 'answer' is missing"):
        read_cases([{"prompt": "a", "answer": "b"}, {"prompt": "a"}])
    with pytest.raises(MuscleError, match="no training records"):
        read_cases([])


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("")
    with pytest.raises(MuscleError, match=r"train\.jsonl: the file holds no records"):
        read_cases(path)
    path.write_text('{"prompt": "a", "answer": "b"}\n{"answer": "b"}\n')
    with pytest.raises(MuscleError, match=r"train\.jsonl:2: .*'prompt'"):
        read_cases(str(path))


def test_the_split_is_seeded_and_whole():
    cases = read_cases(records(20))
    train, validation = split_cases(cases, 0.25, 1)
    assert (len(train), len(validation)) == (15, 5)
    assert sorted(case.id for case in train + validation) == sorted(case.id for case in cases)
    assert split_cases(cases, 0.25, 1) == (train, validation)
    assert split_cases(cases, 0.25, 2) != (train, validation)
    assert split_cases(cases, 0.0, 1) == (cases, [])
    with pytest.raises(MuscleError, match="1 training records cannot be split"):
        split_cases(cases[:1], 0.2, 0)


def test_padding_and_counted_tokens():
    examples = [Example(7, 0, "a", (5, 6, 7, 8), 2, True), Example(9, 1, "b", (5, 6), 1, False)]
    whole, answer = Collator(0, False)(examples), Collator(0, True)(examples)
    assert whole["input_ids"].tolist() == [[5, 6, 7, 8], [5, 6, 0, 0]]
    assert whole["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert whole["labels"].tolist() == [[IGNORED, 6, 7, 8], [IGNORED, 6, IGNORED, IGNORED]]
    assert answer["labels"].tolist() == [[IGNORED, IGNORED, 7, 8], [IGNORED, 6, IGNORED, IGNORED]]
    assert whole["example"].tolist() == [7, 9]
    assert whole["truthful"].dtype is torch.bool


def test_batches_are_of_similar_length_and_depend_on_the_epoch_alone():
    lengths = [number % 50 for number in range(403)]
    sampler = LengthGroupedSampler(lengths, 8, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(403))
    batches = [[lengths[i] for i in first[start : start + 8]] for start in range(0, 403, 8)]
    assert sum(max(batch) - min(batch) for batch in batches) / len(batches) < 10
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(LengthGroupedSampler(lengths, 8, seed=4)) != first
