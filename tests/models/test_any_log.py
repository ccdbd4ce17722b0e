"""Files of responses with anything in them: a clear error, or each case answered once, by its own record."""

import json

import pytest
from anything import JSON, TEXT, attempt, changed
from hypothesis import given
from hypothesis import strategies as st

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import GoldenCase
from pytest_muscle.grading import grade
from pytest_muscle.models import Response, golden_reader, open_model
from pytest_muscle.models.recorded import FIELDS

CHOICES = ("yes", "no")
CASES = (
    GoldenCase("a", "d.jsonl", "exact_match", ("4",), prompt="2+2?"),
    GoldenCase("b", "d.jsonl", "exact_match", ("5",), prompt="2+3?"),
    GoldenCase("c", "d.jsonl", "multiple_choice", (0,), prompt="Is it?", choices=CHOICES),
)
IDS = [case.id for case in CASES]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    return lambda name: folder / name


def answers(spec):
    """What a model answers, each case once, or its error."""

    def respond():
        found = [pair for batch in open_model(spec).respond(CASES) for pair in batch]
        assert [case.id for case, _ in found] == IDS
        assert all(isinstance(response, Response) for _, response in found)
        return {case.id: response for case, response in found}

    return attempt(respond)


# Recordings


RECORD = st.fixed_dictionaries(
    {"id": st.sampled_from(IDS) | TEXT},
    optional={
        "text": TEXT,
        "sample": st.integers(0, 2),
        "dataset": st.sampled_from(["d.jsonl", "e.jsonl"]),
        "choice": st.integers(-1, 2),
        "loglikelihoods": st.lists(st.floats(), max_size=3),
        "error": TEXT,
    },
)
ANY_RECORD = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=3), JSON, max_size=5)


@given(st.lists(RECORD | ANY_RECORD, max_size=6))
def test_any_recording(file, records):
    path = file("any.jsonl")
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    found = answers(f"recorded:{path}")
    if isinstance(found, MuscleError):
        assert str(found).startswith(str(path))
        return
    for name, response in found.items():
        own = [record for record in records if record.get("id") == name]
        if response.text is not None:
            assert response.text in [record.get("text") for record in own]
        elif response.choice is None and not response.loglikelihoods:
            (graded,) = grade([case for case in CASES if case.id == name], [response], lambda *_: [])
            assert graded.error is not None


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=5, unique_by=lambda each: each[:2]))
def test_any_ids_and_datasets_get_their_own_response(file, said):
    path = file("own.jsonl")
    records = [{"id": name, "dataset": dataset, "text": text} for name, dataset, text in said]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    cases = [GoldenCase(name, dataset, "exact_match", ("4",)) for name, dataset, _ in said]
    found = {
        case.key: response.text
        for batch in open_model(f"recorded:{path}").respond(cases)
        for case, response in batch
    }
    assert found == {(dataset, name): text for name, dataset, text in said}


# Other tools' logs


def lm_eval_samples():
    from test_lm_eval import choice_sample, text_samples

    written = [*text_samples(0, "2+2?", "4"), *text_samples(1, "2+3?", "6")]
    return {"samples_sums_2026-01-02T03-04-05.678901.jsonl": written}, {
        "samples_yes_2026-01-02T03-04-05.678901.jsonl": [choice_sample(0, "Is it?", ["yes", "no"], [-1, -2])]
    }


@pytest.mark.parametrize("kind", [0, 1], ids=["texts", "choices"])
@given(data=st.data())
def test_any_log_of_lm_eval(file, kind, data):
    ((name, samples),) = lm_eval_samples()[kind].items()
    samples = data.draw(changed(samples))
    path = file(name)
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    found = answers(f"lm-eval:{path}")
    assert isinstance(found, MuscleError | dict)
    attempt(lambda: list(golden_reader("lm-eval")(path)))


@given(data=st.data())
def test_any_log_of_inspect(file, data):
    from test_inspect_log import choosing, sample

    header = {"task": "sums", "scorers": [{"name": "match", "options": {}}]}
    samples = [sample("a", "2+2?", "4"), sample("b", "2+3?", "6"), choosing("c", "Is it?", "A")]
    log = {"version": 2, "status": "success", "eval": header, "samples": samples}
    path = file("inspect.json")
    path.write_text(json.dumps(data.draw(changed(log))))
    found = answers(f"inspect:{path}")
    assert isinstance(found, MuscleError | dict)
    attempt(lambda: list(golden_reader("inspect")(path)))


@given(data=st.data())
def test_any_output_of_promptfoo(file, data):
    from test_promptfoo import row

    rows = [row(0, "2+2?", "4"), row(1, "2+3?", "6"), row(0, "2+2?", "5", "new")]
    output = {"evalId": "e", "results": {"version": 3, "results": rows, "prompts": [], "stats": {}}}
    path = file("promptfoo.json")
    path.write_text(json.dumps(data.draw(changed(output))))
    found = answers(f"promptfoo:{path}#old")
    assert isinstance(found, MuscleError | dict)
    attempt(lambda: list(golden_reader("promptfoo")(path)))


@pytest.mark.parametrize("kind", ["lm-eval", "inspect", "promptfoo"])
@given(content=st.binary(max_size=100) | TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_as_a_log(file, kind, content):
    path = file("samples_x_2026-01-02T03-04-05.678901.jsonl" if kind == "lm-eval" else "bytes.json")
    path.write_bytes(content)
    found = answers(f"{kind}:{path}")
    assert isinstance(found, MuscleError)
    assert isinstance(attempt(lambda: list(golden_reader(kind)(path))), MuscleError)
