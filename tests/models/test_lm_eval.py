"""``lm-eval:PATH``: samples as lm-evaluation-harness 0.4 logs them."""

import json
import random
from pathlib import Path

import pytest

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import GoldenCase, read_golden
from pytest_muscle.models import Response, golden_reader, open_model

PIQA = "samples_piqa_2026-01-02T03-04-05.678901.jsonl"
GSM8K = "samples_gsm8k_cot_2026-01-02T03-04-05.678901.jsonl"


def choice_sample(doc_id: int, prompt: str, choices: list[str], values: list[float], **doc: object):
    """One document of a multiple-choice task; each request's result is (log-likelihood, is greedy)."""
    results = [[str(value), "False"] for value in values]
    return {
        "doc_id": doc_id,
        "doc": {"goal": prompt, **doc},
        "target": "0",
        "arguments": {
            f"gen_args_{i}": {"arg_0": prompt, "arg_1": f" {choice}"} for i, choice in enumerate(choices)
        },
        "resps": [[result] for result in results],
        "filtered_resps": results,
        "filter": "none",
        "metrics": ["acc", "acc_norm"],
        "doc_hash": f"{doc_id:064x}",
        "prompt_hash": "0" * 64,
        "target_hash": "1" * 64,
        "acc": 1.0,
        "acc_norm": 0.0,
    }


def text_samples(doc_id: int, prompt: str, text: str, **doc: object):
    """One document of a generation task: a record for each of its two filters."""
    arguments = {"gen_args_0": {"arg_0": prompt, "arg_1": {"until": ["\n\n"], "do_sample": False}}}
    record = {
        "doc_id": doc_id,
        "doc": {"question": prompt, **doc},
        "target": "#### 4",
        "arguments": arguments,
        "resps": [[text]],
        "metrics": ["exact_match"],
        "doc_hash": f"{doc_id:064x}",
        "prompt_hash": "0" * 64,
        "target_hash": "1" * 64,
        "exact_match": 1.0,
    }
    return [
        {**record, "filter": "strict-match", "filtered_resps": ["[invalid]"]},
        {**record, "filter": "flexible-extract", "filtered_resps": ["4"]},
    ]


def log(path: Path, *samples: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples))
    return path


def choice_case(name: str, prompt: str, choices: tuple[str, ...] = ("yes", "no")) -> GoldenCase:
    return GoldenCase(name, "d.jsonl", "multiple_choice", (0,), prompt=prompt, choices=choices)


def text_case(name: str, prompt: str) -> GoldenCase:
    return GoldenCase(name, "d.jsonl", "exact_match", ("4",), prompt=prompt)


def respond(path: Path, *cases: GoldenCase) -> list[Response]:
    model = open_model(f"lm-eval:{path}")
    found = dict(pair for batch in model.respond(cases) for pair in [(c.id, r) for c, r in batch])
    return [found[each.id] for each in cases]


def test_choices_are_found_by_prompt_whatever_the_order(tmp_path):
    samples = [choice_sample(i, f"Q{i}?", ["yes", "no"], [-i - 0.5, -3.25]) for i in range(9)]
    random.Random(1).shuffle(samples)
    cases = [choice_case(f"case-{i}", f"Q{i}?") for i in range(9)]
    responses = respond(log(tmp_path / PIQA, *samples), *cases)
    assert responses == [Response(loglikelihoods=(-i - 0.5, -3.25)) for i in range(9)]


def test_unconditional_scores_of_mutual_information_are_left_out(tmp_path):
    sample = choice_sample(0, "Q?", ["yes", "no"] * 2, [-1.0, -2.0, -3.0, -4.0])
    for i in (2, 3):
        sample["arguments"][f"gen_args_{i}"]["arg_0"] = ""
    assert respond(log(tmp_path / PIQA, sample), choice_case("a", "Q?")) == [
        Response(loglikelihoods=(-1.0, -2.0))
    ]


def test_ten_choices_keep_their_order(tmp_path):
    choices = [f"choice {i}" for i in range(12)]
    sample = choice_sample(0, "Q?", choices, [float(-i) for i in range(12)])
    sample["arguments"] = dict(sorted(sample["arguments"].items()))
    assert list(sample["arguments"])[2] == "gen_args_10"
    (response,) = respond(log(tmp_path / PIQA, sample), choice_case("a", "Q?", tuple(choices)))
    assert response.loglikelihoods == tuple(float(-i) for i in range(12))


def test_two_documents_may_ask_the_same_and_offer_other_choices(tmp_path):
    path = log(
        tmp_path / PIQA,
        choice_sample(0, "Q?", ["yes", "no"], [-1.0, -2.0]),
        choice_sample(1, "Q?", ["left", "right"], [-3.0, -4.0]),
        choice_sample(2, "", ["she", "he"], [-5.0, -6.0]),
    )
    cases = [
        choice_case("a", "Q?", ("left", "right")),
        choice_case("b", "Q?"),
        choice_case("c", "", ("she", "he")),
        choice_case("d", "Q?", ("yes", "no", "maybe")),
    ]
    *found, other = respond(path, *cases)
    assert [response.loglikelihoods for response in found] == [(-3.0, -4.0), (-1.0, -2.0), (-5.0, -6.0)]
    assert other.error == "lm-eval logged no sample with this prompt or id"


def test_generations_give_the_whole_text_whichever_filter_comes_first(tmp_path):
    first, second = (text_samples(i, f"Q{i}?", f"It is {i}.\nSo: {i}") for i in range(2))
    path = log(tmp_path / GSM8K, second[1], first[0], second[0], first[1])
    responses = respond(path, text_case("a", "Q0?"), text_case("b", "Q1?"))
    assert responses == [Response(text="It is 0.\nSo: 0"), Response(text="It is 1.\nSo: 1")]


def test_a_prompt_in_the_tasks_own_words_is_found_by_id(tmp_path):
    samples = [
        *text_samples(0, "Shots. Q0?", "zero", id="x"),
        *text_samples(1, "Shots. Q1?", "one", id=0),
        *text_samples(2, "Shots. Q2?", "two"),
    ]
    cases = [text_case("x", "Q0?"), text_case("0", "Q1?"), text_case("2", "Q2?"), text_case("1", "Q3?")]
    *found, missing = respond(log(tmp_path / GSM8K, *samples), *cases)
    assert [response.text for response in found] == ["zero", "one", "two"]
    assert missing.error == "lm-eval logged no sample with this prompt or id"


def test_chat_messages_are_found_by_id_alone(tmp_path):
    path = log(tmp_path / GSM8K, *text_samples(0, "", "unasked"), *text_samples(1, "<|user|>Q", "asked"))
    messages = ({"role": "user", "content": "Q"},)
    case = GoldenCase("1", "d.jsonl", "exact_match", ("4",), messages=messages)
    assert respond(path, case) == [Response(text="asked")]


def test_an_id_of_two_documents_names_neither(tmp_path):
    log(tmp_path / "run" / GSM8K, *text_samples(0, "Shots. Sum?", "4"))
    log(tmp_path / "run" / "samples_other_2026.jsonl", *text_samples(0, "Shots. Capital?", "Paris"))
    (response,) = respond(tmp_path / "run", text_case("0", "Sum?"))
    assert response == Response(error="2 of lm-eval's samples have the id '0'")


def test_an_id_does_not_outweigh_other_choices(tmp_path):
    path = log(tmp_path / PIQA, choice_sample(0, "Shots. Q?", ["yes", "no"], [-1.0, -2.0]))
    good, other, fewer = respond(
        path, choice_case("0", "Q?", ("yes ", "no")), choice_case("x", "Q?"), choice_case("y", "Q?")
    )
    assert good.loglikelihoods == (-1.0, -2.0)
    assert other.error == fewer.error == "lm-eval logged no sample with this prompt or id"
    for choices in (("no", "yes"), ("yes", "no", "maybe"), ("yes",)):
        (response,) = respond(path, choice_case("0", "Q?", choices))
        assert response.error == "lm-eval's sample with the id '0' has other choices"


def test_another_kind_of_task_is_no_match(tmp_path):
    path = log(tmp_path / GSM8K, *text_samples(0, "Q?", "4"), choice_sample(1, "C?", ["yes", "no"], [-1, -2]))
    choice, text = respond(path, choice_case("0", "Q?"), text_case("1", "C?"))
    assert choice.error == "lm-eval's sample with the id '0' has other choices"
    assert text.error == "lm-eval's sample with the id '1' has other choices"


def test_a_folder_is_searched_and_missing_cases_are_counted(tmp_path):
    log(tmp_path / "out" / "model" / PIQA, choice_sample(0, "Q?", ["yes", "no"], [-1.0, -2.0]))
    log(tmp_path / "out" / "model" / GSM8K, *text_samples(0, "S?", "4"))
    log(tmp_path / "out" / "model" / "results_2026.jsonl", {"results": {}})
    model = open_model(f"lm-eval:{tmp_path / 'out'}")
    cases = [choice_case("a", "Q?"), text_case("b", "S?"), text_case("c", "?")]
    ((*found, (_, missing)),) = model.respond(cases)
    assert [response.error for _, response in found] == [None, None]
    assert missing.error
    assert model.notices == [f"{tmp_path / 'out'}: no usable response to 1 of 3 cases ('c')"]


def test_two_runs_of_a_task_are_never_mixed(tmp_path):
    one = log(tmp_path / "a" / PIQA, choice_sample(0, "Q?", ["yes", "no"], [-1.0, -2.0]))
    two = log(tmp_path / "b" / PIQA.replace("2026", "2027"), choice_sample(0, "Q?", ["yes", "no"], [-2, -1]))
    with pytest.raises(MuscleError) as caught:
        open_model(f"lm-eval:{tmp_path}")
    assert str(caught.value).startswith(f"task 'piqa' was logged twice, in {one} and {two}; name the folder")
    assert open_model(f"lm-eval:{two.parent}").fingerprint != open_model(f"lm-eval:{one}").fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"arguments": [["Q?", " yes"]]},
        {"arguments": {}},
        {"arguments": {"gen_args_0": {"arg_0": ["Q?"], "arg_1": {}}}},
        {"arguments": {"gen_args_0": {"arg_0": "Q?"}}},
        {"arguments": {"first": {"arg_0": "Q?", "arg_1": " yes"}}},
        {
            "arguments": {
                "gen_args_0": {"arg_0": "Q?", "arg_1": " a"},
                "gen_args_1": {"arg_0": "Q?", "arg_1": 1},
            }
        },
        {"arguments": None},
    ],
)
def test_what_is_no_sample_names_its_line(tmp_path, change):
    good = choice_sample(0, "Q?", ["yes", "no"], [-1.0, -2.0])
    path = log(tmp_path / PIQA, good, {**good, **change})
    with pytest.raises(MuscleError) as caught:
        respond(path, choice_case("a", "Q?"))
    assert str(caught.value).startswith(f"{path}:2: not a sample of lm-evaluation-harness")


@pytest.mark.parametrize("name", ["doc", "doc_id", "arguments"])
def test_a_missing_key_names_its_line(tmp_path, name):
    sample = choice_sample(0, "Q?", ["yes", "no"], [-1.0, -2.0])
    del sample[name]
    with pytest.raises(MuscleError, match=":1: not a sample of lm-evaluation-harness"):
        respond(log(tmp_path / PIQA, sample), choice_case("a", "Q?"))


@pytest.mark.parametrize(
    "change",
    [{"filtered_resps": ["-1.0", "-2.0"]}, {"filtered_resps": [["?", "True"]]}, {"filtered_resps": None}],
)
def test_unreadable_results_make_the_case_unjudgeable(tmp_path, change):
    sample = {**choice_sample(7, "Q?", ["yes", "no"], [-1.0, -2.0]), **change}
    (response,) = respond(log(tmp_path / PIQA, sample), choice_case("a", "Q?"))
    assert response.error == "lm-eval's sample of doc_id 7 cannot be read"


@pytest.mark.parametrize("resps", [[], [[["-1.0", "False"]]], None])
def test_unreadable_generations_make_the_case_unjudgeable(tmp_path, resps):
    sample = {**text_samples(7, "Q?", "4")[0], "resps": resps}
    (response,) = respond(log(tmp_path / GSM8K, sample), text_case("a", "Q?"))
    assert response.error == "lm-eval's sample of doc_id 7 cannot be read"


def test_nothing_logged(tmp_path):
    for path in (tmp_path, tmp_path / "absent", tmp_path / "absent.jsonl"):
        with pytest.raises(MuscleError, match=r"no samples_\*\.jsonl there; run lm_eval with --log_samples"):
            open_model(f"lm-eval:{path}")


def golden(path: Path, **defaults: object) -> list[GoldenCase]:
    return read_golden(path, "d.jsonl", defaults, records=golden_reader("lm-eval"))


def test_the_samples_as_golden_cases(tmp_path):
    samples = [
        {**choice_sample(0, "Q0?", ["yes ", "no"], [-2.0, -1.0]), "target": "1"},
        {**choice_sample(1, "Q1?", ["yes", "no"], [-1.0, -2.0]), "target": "no", "acc": 0.0},
        {**choice_sample(2, "Q2?", ["yes", "no"], [-1.0, -2.0]), "target": "[0, 1]"},
    ]
    path = log(tmp_path / PIQA, *samples)
    cases = golden(path)
    assert [(case.id, case.prompt, case.answer, case.line) for case in cases] == [
        ("0", "Q0?", (1,), 1),
        ("1", "Q1?", (1,), 2),
        ("2", "Q2?", (0, 1), 3),
    ]
    assert {(case.choices, case.delimiter, case.task) for case in cases} == {
        (("yes ", "no"), " ", "multiple_choice"),
        (("yes", "no"), " ", "multiple_choice"),
    }
    assert [response.loglikelihoods for response in respond(path, *cases)] == [(-2, -1), (-1, -2), (-1, -2)]


def test_continuations_without_a_space_have_no_delimiter(tmp_path):
    sample = choice_sample(0, "Q\n", ["yes", "no"], [-1.0, -2.0])
    for i, text in enumerate(("yes", " no")):
        sample["arguments"][f"gen_args_{i}"]["arg_1"] = text
    (case,) = golden(log(tmp_path / PIQA, sample))
    assert (case.choices, case.delimiter) == (("yes", " no"), "")


def test_generations_as_golden_cases(tmp_path):
    samples = [*text_samples(0, "Q0?", "zero", id="x"), *text_samples(1, "Q1?", "one", id="y")]
    samples[2]["target"] = "['one', '1']"
    for sample in samples:
        sample["arguments"]["gen_args_0"]["arg_1"]["max_gen_toks"] = 9
    cases = golden(log(tmp_path / GSM8K, *samples), extract="A: (.*)")
    assert [(case.id, case.prompt, case.answer) for case in cases] == [
        ("x", "Q0?", ("#### 4",)),
        ("y", "Q1?", ("one", "1")),
    ]
    settings = {(case.task, case.stop, case.max_new_tokens, case.extract) for case in cases}
    assert settings == {("exact_match", ("\n\n",), 9, "A: (.*)")}


def test_a_similarity_that_was_logged_is_the_metric(tmp_path):
    sample = {**text_samples(0, "Q0?", "zero")[0], "metrics": ["bleu", "rouge1"]}
    (case,) = golden(log(tmp_path / GSM8K, sample))
    assert (case.task, case.metric) == ("generation", "rouge1")


def test_documents_that_share_an_id_go_by_number(tmp_path):
    samples = [*text_samples(7, "Q0?", "zero", id="x"), *text_samples(8, "Q1?", "one", id="x")]
    path = log(tmp_path / GSM8K, *samples)
    cases = golden(path)
    assert [case.id for case in cases] == ["7", "8"]
    assert [response.text for response in respond(path, *cases)] == ["zero", "one"]


def test_documents_that_ask_the_same_are_told_apart_by_id(tmp_path):
    samples = [*text_samples(0, "Q?", "zero", id="x"), *text_samples(1, "Q?", "one", id="y")]
    path = log(tmp_path / GSM8K, *samples)
    assert [response.text for response in respond(path, *golden(path))] == ["zero", "one"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "2"}, "its target '2' names none of the 2 choices"),
        ({"target": "maybe"}, "its target 'maybe' names none of the 2 choices"),
        ({"target": "[0"}, "its target '[0' names none of the 2 choices"),
        ({"acc": 0.0}, "its 'acc' does not follow from its target and log-likelihoods"),
        ({"filtered_resps": [["?", "True"]]}, "not a sample of lm-evaluation-harness"),
        ({"arguments": {}}, "not a sample of lm-evaluation-harness"),
    ],
)
def test_a_sample_that_makes_no_case_names_its_line(tmp_path, change, message):
    good = choice_sample(0, "Q?", ["yes", "no"], [-1.0, -2.0])
    path = log(tmp_path / PIQA, good, {**choice_sample(1, "R?", ["yes", "no"], [-1.0, -2.0]), **change})
    with pytest.raises(MuscleError) as caught:
        golden(path)
    assert str(caught.value).startswith(f"{path}:2: {message}")


def test_choices_in_contexts_of_their_own_make_no_case(tmp_path):
    sample = choice_sample(0, "Q?", ["yes", "no"], [-1.0, -2.0])
    sample["arguments"]["gen_args_1"]["arg_0"] = "Other?"
    with pytest.raises(MuscleError, match="each choice has a context of its own"):
        golden(log(tmp_path / PIQA, sample))
