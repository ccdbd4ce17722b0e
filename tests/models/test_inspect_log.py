"""``inspect:LOG``: samples as inspect_ai 0.3 logs them (version 2 of its format)."""

import json
from importlib.util import find_spec

import pytest

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import GoldenCase, read_golden
from pytest_muscle.grading import grade
from pytest_muscle.models import Response, golden_reader, open_model


def sample(name, given, said, target="4", epoch=1, **changes):
    """One sample; ``said`` is what the model answered, None where it was never asked."""
    message = {"role": "assistant", "content": said, "source": "generate"}
    return {
        "id": name,
        "epoch": epoch,
        "input": given,
        "choices": None,
        "target": target,
        "output": {"model": "m", "choices": [{"message": message}] if said is not None else []},
        "scores": {"match": {"value": "C", "answer": said}},
        **changes,
    }


def choosing(name, given, answer, target="A", choices=("yes", "no"), **changes):
    """One sample of multiple choice; ``answer`` is what its scorer took the answer to be."""
    scores = {"choice": {"value": "C" if answer == target else "I", "answer": answer}}
    said = f"ANSWER: {answer}"
    return sample(name, given, said, target, choices=list(choices), scores=scores, **changes)


@pytest.fixture
def write(tmp_path):
    def write(*samples, name="log.json", task="sums", scorer="match", **changes):
        header = {"task": task, "scorers": [{"name": scorer, "options": {}}]}
        log = {"version": 2, "status": "success", "eval": header, "samples": list(samples), **changes}
        (tmp_path / name).write_text(json.dumps(log))
        return tmp_path / name

    return write


def case(name, prompt="", **more):
    return GoldenCase(name, "d.jsonl", "exact_match", ("4",), prompt=prompt, **more)


def choice_case(name, prompt, choices=("yes", "no")):
    return GoldenCase(name, "d.jsonl", "multiple_choice", (0,), prompt=prompt, choices=choices)


def respond(path, *cases):
    model = open_model(f"inspect:{path}")
    return [response for batch in model.respond(cases) for _, response in batch]


def golden(path, **defaults):
    return read_golden(path, "d.jsonl", defaults, records=golden_reader("inspect"))


def test_texts_are_found_by_input_else_by_id(write):
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2+2?"}]
    parts = [{"type": "reasoning", "reasoning": "..."}, {"type": "text", "text": "5"}]
    path = write(sample(1, "2+2?", "4"), sample("x", chat, "four"), sample("y", "Shots. 2+3?", parts))
    cases = [
        case("a", "2+2?"),
        case("b", messages=({"role": "user", "content": "2+2?"},)),
        case("c", messages=tuple(chat)),
        case("y", "2+3?"),
        case("z", "2+3?"),
    ]
    *found, missing = respond(path, *cases)
    assert found == [Response("4"), Response("4"), Response("four"), Response("5")]
    assert missing == Response(error="inspect_ai logged no sample with this prompt or id")


def test_choices_are_what_the_scorer_took_them_to_be(write):
    path = write(
        choosing("a", "Q0?", "A"),
        choosing("b", "Q1?", "B"),
        choosing("c", "Q2?", ""),
        choosing("d", "Q3?", "no"),
        choosing("e", "Q4?", "A, B"),
        choosing("f", "Q5?", "C"),
    )
    first, second, none, by_text, *errors = respond(path, *(choice_case("?", f"Q{i}?") for i in range(6)))
    assert (first.choice, second.choice, by_text.choice) == (0, 1, 1)
    assert {each.choice_method for each in (first, second, by_text)} == {"letter"}
    assert (none.choice, none.text, none.error) == (None, "ANSWER: ", None)
    (graded,) = grade([choice_case("c", "Q2?")], [none], None)
    assert (graded.correct, graded.error) == (False, None)
    assert [each.error for each in errors] == [
        "inspect_ai's scorer noted 'A, B', which is not one of the choices",
        "inspect_ai's scorer noted 'C', which is not one of the choices",
    ]


def test_letters_go_on_in_numbers(write):
    choices = [f"choice {i}" for i in range(30)]
    path = write(choosing("a", "Q?", "2", "2", choices))
    assert respond(path, choice_case("a", "Q?", tuple(choices)))[0].choice == 27
    assert golden(path)[0].answer == (27,)


@pytest.mark.parametrize(
    ("scores", "error"),
    [
        ({}, "no answer"),
        (None, "no answer"),
        ({"judge": {"value": 1.0}}, "no answer"),
        ({"one": {"value": "C", "answer": "A"}, "two": {"value": "C", "answer": "B"}}, "different answers"),
    ],
)
def test_choices_without_one_noted_answer_cannot_be_judged(write, scores, error):
    path = write({**choosing("a", "Q?", "A"), "scores": scores})
    (response,) = respond(path, choice_case("a", "Q?"))
    assert response.error == f"inspect_ai's scorers noted {error} to the sample 'a'"


def test_choices_in_another_order_are_no_match(write):
    path = write(choosing("a", "Q?", "A", choices=("no", "yes")))
    (response,) = respond(path, choice_case("a", "Q?"))
    assert response.error == "inspect_ai's sample with the id 'a' has other choices"


def test_errors_stay_errors(write):
    refused = {"model": "m", "choices": [], "error": "content filter"}
    path = write(
        sample("a", "a", "4", error={"message": "timed out", "traceback": "..."}),
        sample("b", "b", "4", invalidation={"author": "x"}),
        sample("c", "c", None),
        sample("d", "d", "4", output=refused),
        sample("e", "e", "4", output={"choices": [{}]}),
    )
    assert [each.error for each in respond(path, *(case(n, n) for n in "abcde"))] == [
        "inspect_ai: timed out",
        "inspect_ai: the sample was invalidated",
        "inspect_ai logged no output of the model",
        "inspect_ai: content filter",
        "inspect_ai's sample 'e' cannot be read",
    ]


def test_epochs_are_draws(write):
    path = write(sample("a", "a", "5", epoch=2), sample("a", "a", "4"), sample("b", "b", "6"))
    assert respond(path, case("a", "a"), case("a", "a", draw=1)) == [Response("4"), Response("5")]
    (response,) = respond(path, case("b", "b", draw=1))
    assert response.error == "inspect_ai logged 1 epochs of the sample 'b'"
    assert [each.id for each in golden(path)] == ["a", "b"]


def test_a_run_that_did_not_end_is_told(write):
    path = write(sample("a", "a", "4"), status="cancelled")
    model = open_model(f"inspect:{path}")
    list(model.respond([case("a", "a"), case("b", "b")]))
    assert model.notices == [
        f"{path}: the run ended as 'cancelled'; samples may be missing",
        f"{path}: no usable response to 1 of 2 cases ('b')",
    ]


def test_a_folder_of_logs_holds_each_task_once(write, tmp_path):
    one = write(sample("a", "a", "4"))
    write(sample("b", "b", "5"), name="other.json", task="other")
    assert respond(tmp_path, case("a", "a"), case("b", "b")) == [Response("4"), Response("5")]
    again = write(sample("a", "a", "6"), name="m.json")
    with pytest.raises(MuscleError) as caught:
        respond(tmp_path, case("a", "a"))
    assert str(caught.value) == f"task 'sums' was logged twice, in {one} and {again}; name one of the logs"


def test_samples_as_golden_cases(write):
    chat = [{"role": "system", "content": [{"type": "text", "text": "Be short."}]}]
    path = write(
        sample(1, "2+2?", "4", ["4", "four"]), sample(2, chat, "5", "5"), choosing("x", "Q?", "A", "B")
    )
    first, second, third = golden(path, extract="A: (.*)")
    assert (first.id, list(first.messages)) == ("1", [{"role": "user", "content": "2+2?"}])
    assert (first.answer, first.task, first.extract) == (("4", "four"), "exact_match", "A: (.*)")
    assert list(second.messages) == [{"role": "system", "content": "Be short."}]
    assert (third.choices, third.answer, third.task) == (("yes", "no"), (1,), "multiple_choice")
    assert respond(path, first, second) == [Response("4"), Response("5")]
    assert respond(path, third)[0].choice == 0


def test_inclusion_is_an_expression(write):
    (made,) = golden(write(sample("a", "2+2?", "4", ["4.0", "four"]), scorer="inspect_ai/includes"))
    texts = {"It is Four, so four.": True, "4.0": True, "410": False, "five": False}
    graded = grade([made] * 4, [Response(text) for text in texts], None)
    assert [each.correct for each in graded] == list(texts.values())


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (choosing("b", "Q?", "A", "C"), "sample 'b': its target 'C' is not the letter of one choice"),
        (choosing("b", "Q?", "A", "AB"), "sample 'b': its target 'AB' is not the letter of one choice"),
        (
            sample("b", [{"role": "user", "content": [{"type": "image", "image": "x"}]}], "4"),
            "sample 'b': its input holds 'image', and golden cases are texts only",
        ),
        ({"id": "b"}, "sample 2 is none of inspect_ai's (id, epoch, input and target are expected)"),
    ],
)
def test_a_sample_that_makes_no_case_is_named(write, made, message):
    path = write(sample("a", "a", "4"), made)
    with pytest.raises(MuscleError) as caught:
        golden(path)
    assert str(caught.value) == f"{path}: {message}"


def test_a_picture_is_found_by_id(write):
    path = write(sample("a", [{"role": "user", "content": [{"type": "image", "image": "x"}]}], "4"))
    assert respond(path, case("a", "?")) == [Response("4")]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"eval": {}}', '{"eval": [], "status": "success"}', "[" * 9999]
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "log.json"
    path.write_text(content)
    for read in (lambda: respond(path, case("a")), lambda: golden(path)):
        with pytest.raises(MuscleError, match="not a log of inspect_ai"):
            read()


def test_no_log(tmp_path):
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(MuscleError, match="no log of inspect_ai there"):
            open_model(f"inspect:{path}")


def test_an_eval_log_needs_inspect_ai(tmp_path):
    if find_spec("inspect_ai"):
        pytest.skip("inspect_ai is installed")
    path = tmp_path / "log.eval"
    path.write_bytes(b"PK")
    with pytest.raises(MuscleError, match=r"reading an \.eval log needs inspect_ai: pip install"):
        respond(path, case("a"))


@pytest.mark.parametrize("answer", ["\u00b2", "9" * 5_000])
def test_a_digit_that_is_no_number_is_no_choice(write, answer):
    (response,) = respond(write(choosing("c", "Is it?", answer)), choice_case("c", "Is it?"))
    assert response.error is not None
    assert response.choice is None
