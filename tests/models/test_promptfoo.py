"""``promptfoo:OUTPUT.json``: outputs as ``promptfoo eval --output`` writes them."""

import json
from pathlib import Path

import pytest

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import GoldenCase, read_golden
from pytest_muscle.grading import grade
from pytest_muscle.models import Response, golden_reader, open_model

EQUALS = ({"type": "equals", "value": "4"},)


def row(test, prompt, output, provider="old", asserts=EQUALS, **changes):
    """One provider's output to one test; 'failureReason' is 0 for passed, 1 for failed, 2 for an error."""
    variables = changes.pop("vars", {"question": prompt})
    metadata = changes.pop("metadata", {})
    return {
        "testIdx": test,
        "promptIdx": 0 if provider == "old" else 1,
        "promptId": "a" * 64,
        "prompt": {"raw": prompt, "label": "{{question}}"},
        "provider": {"id": f"exec:{provider}.sh", "label": provider},
        "vars": variables,
        "testCase": {"vars": variables, "assert": list(asserts), "metadata": metadata},
        "response": {"output": output},
        "success": output == "4",
        "failureReason": 0 if output == "4" else 1,
        **changes,
    }


@pytest.fixture
def write(tmp_path):
    def write(*rows, **summary):
        path = tmp_path / "out.json"
        results = {"version": 3, "results": list(rows), "prompts": [], "stats": {}, **summary}
        path.write_text(json.dumps({"evalId": "eval-x", "results": results, "config": {}}))
        return path

    return write


def case(name, prompt, **more):
    return GoldenCase(name, "d.jsonl", "exact_match", ("4",), prompt=prompt, **more)


def respond(spec, *cases):
    model = open_model(f"promptfoo:{spec}")
    return [response for batch in model.respond(cases) for _, response in batch]


def golden(path):
    return read_golden(path, "d.jsonl", records=golden_reader("promptfoo"))


def test_outputs_of_one_provider_are_found_by_prompt_whatever_their_order(write):
    path = write(
        row(1, "2+3?", "5", "new"), row(0, "2+2?", "no"), row(1, "2+3?", "6"), row(0, "2+2?", "4", "new")
    )
    cases = case("a", "2+2?"), case("b", "2+3?")
    assert respond(f"{path}#old", *cases) == [Response("no"), Response("6")]
    assert respond(f"{path}#new", *cases) == [Response("4"), Response("5")]
    assert respond(f"{path}#exec:new.sh", *cases) == [Response("4"), Response("5")]
    assert open_model(f"promptfoo:{path}#old").fingerprint != open_model(f"promptfoo:{path}#new").fingerprint


@pytest.mark.parametrize("suffix", ["", "#other"])
def test_of_several_providers_one_must_be_named(write, suffix):
    path = write(row(0, "2+2?", "4"), row(0, "2+2?", "5", "new"))
    with pytest.raises(MuscleError) as caught:
        respond(f"{path}{suffix}", case("a", "2+2?"))
    assert str(caught.value) == (
        f"{path}: holds the providers 'old', 'new'; name one of them: promptfoo:out.json#old"
    )


def test_errors_stay_errors_and_failed_assertions_are_answers(write):
    path = write(
        row(0, "a", "5", error='Expected output "5" to equal "4"'),
        row(1, "b", "4", failureReason=2, error="API error: 500\n    at provider.js"),
        row(2, "c", None, error="timeout"),
        row(3, "d", "", response={"error": "refused by the vendor"}, failureReason=1),
        row(4, "e", "", response=None, failureReason=0),
        row(5, "f", ""),
    )
    answers = respond(path, *(case(name, name) for name in "abcdef"))
    assert answers == [
        Response("5"),
        Response(error="promptfoo: API error: 500"),
        Response(error="promptfoo: timeout"),
        Response(error="promptfoo: refused by the vendor"),
        Response(error="promptfoo: no output"),
        Response(""),
    ]


def test_structured_outputs_are_their_json(write):
    path = write(row(0, "a", {"ü": [1]}), row(1, "b", 4), row(2, "c", False))
    assert [each.text for each in respond(path, *(case(n, n) for n in "abc"))] == ['{"ü": [1]}', "4", "false"]


def test_another_prompt_is_found_by_the_tests_id(write):
    path = write(
        row(0, "Say 2+2", "4", metadata={"id": "sum"}),
        row(1, "Say 2+3", "5", vars={"id": 17}),
        row(2, "x", "6"),
    )
    found = respond(path, case("sum", "?"), case("17", "?"), case("y", "?"), case("z", "x"))
    assert found == [
        Response("4"),
        Response("5"),
        Response(error="promptfoo logged no sample with this prompt or id"),
        Response("6"),
    ]


def test_chat_prompts_are_chats(write):
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2+2?"}]
    path = write(row(0, json.dumps(chat), "4"), row(1, "[not a chat", "5"))
    first, second = golden(path)
    assert (first.prompt, list(first.messages)) == ("", chat)
    assert (second.prompt, second.messages) == ("[not a chat", ())
    assert respond(path, first, second) == [Response("4"), Response("5")]


def test_repeats_are_draws(write):
    path = write(row(0, "a", "4"), row(1, "a", "5"), row(2, "b", "6"))
    cases = case("x", "a"), case("x", "a", draw=1), case("y", "b", draw=1)
    first, second, none = respond(path, *cases)
    assert (first, second) == (Response("4"), Response("5"))
    assert none.error == "promptfoo wrote 1 outputs to the prompt of 'y'"


def test_tests_as_golden_cases_once_for_all_providers(write):
    asserts = ({"type": "icontains", "value": "Four (4)"}, {"type": "latency", "threshold": 9})
    path = write(
        row(0, "2+2?", "4"),
        row(0, "2+2?", "5", "new"),
        row(1, "Two and two?", "It is four (4).", asserts=asserts, metadata={"id": "words"}),
        row(2, "a", "b", asserts=({"type": "contains", "value": 1.5},)),
        row(3, "Two and two?", "It is five.", "new", asserts=asserts, metadata={"id": "words"}),
    )
    first, second, third = golden(path)
    assert (first.prompt, first.answer, first.extract, first.task) == ("2+2?", ("4",), "", "exact_match")
    assert (second.id, second.answer, second.ignore_case) == ("words", ("Four (4)",), True)
    assert (third.answer, third.ignore_case) == (("1.5",), False)
    texts = {"It is four (4).": True, "It is Four(4)": False, "Four (4)": True}
    graded = grade([second] * 3, [Response(text) for text in texts], None)
    assert [each.correct for each in graded] == list(texts.values())
    assert [each.correct for each in grade([third] * 2, [Response("is 1.5!"), Response("1x5")], None)] == [
        1,
        0,
    ]


def test_a_tests_id_under_several_prompts_is_several_cases(write):
    path = write(
        *(
            row(0, f"{how}: 2+2?", output, provider, metadata={"id": "sum"})
            for how, output in (("Say", "4"), ("Repeat", "5"))
            for provider in ("old", "new")
        )
    )
    cases = golden(path)
    assert [each.prompt for each in cases] == ["Say: 2+2?", "Repeat: 2+2?"]
    assert len({each.id for each in cases}) == 2
    assert all(each.id.startswith("sum-") for each in cases)
    assert [each.text for each in respond(f"{path}#new", *cases)] == ["4", "5"]


@pytest.mark.parametrize(
    ("asserts", "message"),
    [
        ((), "there are: none"),
        (({"type": "latency"},), "there are: none"),
        (({"type": "llm-rubric", "value": "polite"},), "there are: llm-rubric"),
        (({"type": "contains", "value": "a"}, {"type": "contains", "value": "b"}), "are: contains, contains"),
        (({"type": "equals", "value": {"a": 1}},), "equals of {'a': 1} makes no golden case"),
    ],
)
def test_a_test_that_makes_no_case_is_named(write, asserts, message):
    path = write(row(0, "a", "4"), row(5, "b", "4", asserts=asserts))
    with pytest.raises(MuscleError) as caught:
        golden(path)
    assert str(caught.value).startswith(f"{path}: result 2 (test 5): ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"results": []}',
        '{"results": {"results": []}}',
        '{"results": [{"a": 1}]}',
        "[" * 9999,
    ],
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "out.json"
    path.write_text(content)
    for read in (lambda: respond(path, case("a", "a")), lambda: golden(path)):
        with pytest.raises(MuscleError, match="not an output of promptfoo eval"):
            read()


@pytest.mark.parametrize("name", ["prompt", "provider", "testCase"])
def test_a_row_without_what_is_needed_is_named(write, name):
    broken = row(1, "b", "4")
    broken[name] = None
    path = write(row(0, "a", "4"), broken)
    with pytest.raises(MuscleError, match=r"out\.json: result 2 is none of promptfoo's"):
        respond(path, case("a", "a"))


def test_no_file(tmp_path):
    with pytest.raises(MuscleError, match="no such file; promptfoo eval"):
        open_model(f"promptfoo:{tmp_path / 'out.json'}#old")


def test_a_file_with_the_sign_in_its_name(write, tmp_path):
    path = write(row(0, "a", "4")).rename(tmp_path / "out#1.json")
    assert respond(path, case("a", "a")) == [Response("4")]
    assert isinstance(path, Path)


def test_an_id_under_two_prompts_of_any_text_makes_two_cases(write):
    rows = [row(0, prompt, "4", vars={"id": "one"}) for prompt in ("2+2?", "\ud800?")]
    names = [case.id for case in golden(write(*rows))]
    assert len(set(names)) == 2


def test_an_output_that_is_none_is_an_error_of_its_case(write):
    path = write(row(0, "2+2?", "4", response="4"), row(1, "2+3?", "5"))
    broken, whole = respond(f"{path}#old", case("a", "2+2?"), case("b", "2+3?"))
    assert (broken.text, broken.error) == (None, "promptfoo's output to the prompt of 'a' cannot be read")
    assert whole == Response("5")


@pytest.mark.parametrize("provider", [{"id": ""}, {"id": "x", "label": {"a": 1}}])
def test_a_provider_without_a_name_is_refused(write, provider):
    path = write(row(0, "2+2?", "4"), row(1, "2+3?", "5") | {"provider": provider})
    with pytest.raises(MuscleError, match="result 2"):
        respond(f"{path}#old", case("a", "2+2?"))
