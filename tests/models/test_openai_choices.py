"""Multiple choice on a server: the local model's log-likelihoods, or a letter, and never both."""

import dataclasses
import json
import ssl
from pathlib import Path

import pytest
from servers import Loopback, Reply, Scorer, chat, completion, one_context

from pytest_muscle import compare
from pytest_muscle.errors import MuscleError
from pytest_muscle.evaluation import check_methods, choice_methods
from pytest_muscle.golden import GoldenCase
from pytest_muscle.grading import Grade, grade
from pytest_muscle.models import ModelOptions, Response, open_model
from pytest_muscle.models.openai.choosing import chosen

CASES = [
    GoldenCase(
        f"c{i}", "d.jsonl", "multiple_choice", (0,), prompt=prompt, choices=choices, delimiter=delimiter
    )
    for i, (prompt, choices, delimiter) in enumerate(
        [
            ("Where is the parcel?", ("on its way", "lost", "it is not known, please ask again"), " "),
            ("The customer was", ("happy", "not happy about it"), " "),
            ("Spaces end it:   ", ("apples", "12 apples"), " "),
            ("How many apples are le", ("ft", "ss of them"), ""),
            ("Grüße aus K", ("öln", "iel 🚀"), ""),
        ]
    )
]
LETTERED = (
    "The customer was\n\nA. happy\nB. not happy about it\n\n"
    "Answer with the letter of the right choice alone.\nAnswer:"
)


@pytest.fixture(autouse=True)
def fast_clients(monkeypatch):
    monkeypatch.setattr(ssl, "create_default_context", one_context)


@pytest.fixture(scope="module")
def tiny(tiny_model):
    """The tiny model and its tokenizer, loaded by transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return AutoModelForCausalLM.from_pretrained(tiny_model).eval(), AutoTokenizer.from_pretrained(tiny_model)


def ask(server, cases=CASES, **options) -> tuple[list[Response], list[str]]:
    model = open_model("openai:tiny", ModelOptions(base_url=server.url, **options))
    try:
        responses = {case.id: response for batch in model.respond(cases) for case, response in batch}
    finally:
        model.close()
    return [responses[case.id] for case in cases], model.notices


# Log-likelihoods ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["prompt_logprobs", "echo"])
@pytest.mark.parametrize("system_prompt", [None, "Be kind."])
def test_a_server_scores_choices_as_the_local_model_does(tiny_model, tiny, kind, system_prompt):
    local = open_model(str(tiny_model), ModelOptions(dtype="float32", system_prompt=system_prompt))
    expected = {case.id: response for batch in local.respond(CASES) for case, response in batch}
    local.close()
    with Loopback(Scorer(*tiny, "tiny", (kind,))) as server:
        responses, notices = ask(server, system_prompt=system_prompt)
    assert notices == []
    for case, response in zip(CASES, responses, strict=True):
        assert response.loglikelihoods == pytest.approx(expected[case.id].loglikelihoods, abs=1e-3)
        assert (response.error is None) is (expected[case.id].error is None) is (case.id != "c3")
        assert response.method == (None if response.error else kind)


def test_one_request_holds_all_choices_of_a_case(tiny):
    with Loopback(Scorer(*tiny, "tiny", ("prompt_logprobs", "echo"))) as server:
        ask(server, CASES[1:2])
    probe, asked = (body for _, body in server.asked)
    assert asked == {
        "model": "tiny",
        "prompt": ["The customer was", "The customer was happy", "The customer was not happy about it"],
        "prompt_logprobs": 0,
        "max_tokens": 1,
        "temperature": 0.0,
    }
    assert probe.keys() == asked.keys()


def test_what_cannot_be_scored_is_unanswered(tiny):
    empty = dataclasses.replace(CASES[0], id="empty", prompt=" ")
    nothing = dataclasses.replace(CASES[0], id="nothing", choices=("", "a"), delimiter="")
    talk = dataclasses.replace(CASES[0], id="talk", prompt="", messages=({"role": "user", "content": "?"},))
    with Loopback(Scorer(*tiny, "tiny", ("prompt_logprobs",))) as server:
        responses, _ = ask(server, [empty, nothing, talk, CASES[1]], choices="log-likelihood")
    errors = [response.error or "" for response in responses]
    assert "its prompt is empty" in errors[0]
    assert "a choice adds no token to the prompt" in errors[1]
    assert "messages are a chat, which has no log-likelihoods; set choices = 'letter'" in errors[2]
    assert errors[3] == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda choice: choice.pop("prompt_logprobs"),
        lambda choice: choice.update(prompt_logprobs=None),
        lambda choice: choice.update(prompt_logprobs=[{"1": {"logprob": -1}}] * 9),
        lambda choice: choice.update(prompt_logprobs=[None, None, None, None]),
        lambda choice: choice.update(prompt_logprobs=[None, {"1": {"rank": 1}}]),
        lambda choice: choice.update(index=7),
    ],
)
def test_log_probabilities_that_go_missing_leave_the_case_unanswered(tiny, change):
    scorer = Scorer(*tiny, "tiny", ("prompt_logprobs",))

    def reply(path, body):
        answer = scorer(path, body)
        if body["prompt"][0] == CASES[1].prompt:
            change(answer["choices"][1])
        return answer

    with Loopback(reply) as server:
        (bad, good), _ = ask(server, CASES[1:3])
    assert "the log-probabilities cannot be used" in (bad.error or "")
    assert good.loglikelihoods


def test_a_server_that_makes_up_zeros_scores_nothing():
    def reply(path, body):
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        token = {"1": {"logprob": 0.0}}
        return {
            "choices": [
                {
                    "index": i,
                    "text": "A",
                    "finish_reason": "stop",
                    "prompt_logprobs": [None, *[token] * len(p)],
                }
                for i, p in enumerate(prompts)
            ]
        }

    with Loopback(reply) as server:
        responses, _ = ask(server)
    assert {response.method for response in responses} == {"letter"}


# Letters ------------------------------------------------------------------------------------------


def test_without_log_probabilities_the_letter_is_asked_for_and_said_to_be():
    def reply(path, body):
        if "prompt_logprobs" in body:
            return Reply({"detail": "Unexpected fields in the request"}, 422)
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        return (
            completion(" B\n\nQuestion: and", model="tiny") if len(prompts) == 1 else completion("x", "tiny")
        )

    with Loopback(reply) as server:
        (response,), (notice,) = ask(server, CASES[1:2])
    assert response == Response(text=" B\n\nQuestion: and", choice=1, method="letter")
    assert server.asked[-1] == (
        "/v1/completions",
        {"model": "tiny", "prompt": LETTERED, "temperature": 0.0, "max_tokens": 16},
    )
    assert notice.endswith("no log-probabilities of a prompt to be had; choices are asked for by letter")


def test_a_chat_is_asked_for_the_letter_without_trying():
    talk = dataclasses.replace(
        CASES[1], id="talk", prompt="", messages=({"role": "user", "content": "The customer was"},)
    )
    with Loopback(lambda path, body: chat("**B**", model="tiny")) as server:
        responses, notices = ask(server, [CASES[1], talk], api="chat", choices="letter", concurrency=1)
    assert [response.choice for response in responses] == [1, 1]
    assert notices == []
    contents = [body["messages"] for _, body in server.asked]
    assert contents == [[{"role": "user", "content": LETTERED}]] * 2


def test_log_likelihoods_that_are_demanded_and_cannot_be_had():
    with (
        Loopback(lambda path, body: completion("A", model="tiny")) as server,
        pytest.raises(
            MuscleError, match="tells no log-probabilities of a prompt, neither by prompt_logprobs"
        ),
    ):
        ask(server, choices="log-likelihood")


def test_a_server_that_fails_is_not_one_that_cannot_score():
    with (
        Loopback(lambda path, body: Reply({}, 500)) as server,
        pytest.raises(MuscleError, match=r"HTTP 500: .*asked for the log-probabilities"),
    ):
        ask(server, retries=0)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B", 1),
        (" b", None),
        ("(C)", 2),
        ("**A**", 0),
        ("A.", 0),
        ("D", 3),
        ("E", None),
        ("A parcel may be lost.", None),
        ("The answer is B.", 1),
        ("Answer: (C) because A is wrong", 2),
        ("I would say the right option is D", 3),
        ("It could be A. or B.", None),
        ("\\boxed{B}", None),
        ("lost", 1),
        ("Lost.", 1),
        ("", None),
        ("\x1b[2J", None),
        ("B\nC\nD", 1),
    ],
)
def test_the_letter_in_what_a_model_said(text, choice):
    case = GoldenCase("c", "d", "multiple_choice", (1,), prompt="?", choices=("here", "lost", "C", "A plan"))
    response = chosen(case, text)
    assert response == Response(text=text, choice=choice, method="letter")
    right = Grade(choice == 1, choice, float(choice == 1))
    assert grade([case], [response], lambda metric, pairs: []) == [right]


def test_more_choices_than_letters():
    many = dataclasses.replace(CASES[0], choices=tuple(str(i) for i in range(27)))
    with Loopback(lambda path, body: completion("A")) as server:
        (response,), _ = ask(server, [many], choices="letter")
    assert "it has 27 choices, more than there are letters" in (response.error or "")


# Never both ---------------------------------------------------------------------------------------


def test_methods_of_responses():
    letter, scored, plain = (
        Response(choice=1, method="letter"),
        Response(loglikelihoods=(-1.0,)),
        Response("4"),
    )
    a, b, c = ("d", "a"), ("d", "b"), ("d", "c")
    mixed = choice_methods([{a: letter, b: scored, c: plain}])
    assert mixed == {a: "letter", b: "log-likelihood"}
    assert choice_methods([{a: Response(error="no")}, {a: letter}, {b: Response(choice=1)}]) == {a: "letter"}
    check_methods(mixed, mixed)
    check_methods(mixed, {c: "letter"})
    with pytest.raises(MuscleError, match=r"old model's .* by letter, the new one's by log-.*\('a' of d\)"):
        check_methods(mixed, {a: "log-likelihood"})


def test_two_methods_are_not_compared_and_one_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    records = [{"id": str(i), "prompt": f"{i}?", "choices": ["yes", "no"], "answer": 0} for i in range(3)]
    Path("golden.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    scored = [{"id": str(i), "loglikelihoods": [-1.0, -2.0]} for i in range(3)]
    Path("scored.jsonl").write_text("".join(json.dumps(record) + "\n" for record in scored))
    with Loopback(lambda path, body: completion("A" if "1?" in body["prompt"] else "none")) as server:
        table = {"spec": "openai:desk", "base_url": server.url, "choices": "letter"}
        options = {"models": {"desk": table}}
        with pytest.raises(
            MuscleError, match=r"by log-likelihood, the new one's by letter .'0' of golden.jsonl.: a"
        ):
            compare("recorded:scored.jsonl", "desk", "golden.jsonl", **options)
        compared = compare("desk", "desk", "golden.jsonl", json="r.json", record="recorded", **options)
    assert compared.metrics.accuracy_new == pytest.approx(1 / 3)
    told = json.loads(Path("r.json").read_text())
    assert told["old"]["choices"] == told["new"]["choices"] == ["letter"]
    assert [case["new"].get("choice") for case in told["cases"]] == [None, 0, None]
    again = compare("recorded:recorded/old.jsonl", "recorded:recorded/new.jsonl", "golden.jsonl")
    assert [result.new for result in again.results] == [result.new for result in compared.results]
    with pytest.raises(MuscleError, match="by log-likelihood, the new one's by letter"):
        compare("recorded:scored.jsonl", "recorded:recorded/new.jsonl", "golden.jsonl")
