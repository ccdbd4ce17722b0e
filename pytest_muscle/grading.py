"""Response -> Grade: is the answer right, what is it, and how near does it come."""

from __future__ import annotations

import hashlib
import heapq
import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import GoldenCase, compile_expression
from pytest_muscle.models import Response

Similarity = Callable[[str, Sequence[tuple[str, Sequence[str]]]], list[float]]
"""``similarity(metric, [(text, references), ...])`` gives the best score of each text in [0, 1]."""

Scorer = Callable[[Sequence[tuple[str, Sequence[str]]]], list[float]]
"""The same for one metric."""

EXTRACTION_SECONDS = 2.0

FRAGILE_MARGIN = 1e-4
"""What rounding may do to a log-likelihood in float32, by batch and hardware, in nats."""


@dataclass(frozen=True, slots=True)
class Grade:
    """What a response is worth.

    ``correct`` is None for generation, which has a ``score`` instead. ``answer`` is what is compared
    between the models: the index of the choice, the extracted and normalised answer, or the text, of
    which a long one is kept as its beginning and a digest; None when the model gave none. ``error``
    says why a response could not be judged at all.
    """

    correct: bool | None
    answer: str | int | None
    score: float | None
    error: str | None = None


def grade(
    cases: Sequence[GoldenCase], responses: Sequence[Response | None], similarity: Similarity
) -> list[Grade]:
    """Grade one model's responses; ``responses[i]`` answers ``cases[i]``, None being a missing one."""
    grades: list[Grade | None] = [None] * len(cases)
    similar: dict[str, list[int]] = defaultdict(list)
    for i, (case, response) in enumerate(zip(cases, responses, strict=True)):
        if response is None:
            grades[i] = _unjudged("no response to this case")
        elif response.error is not None:
            grades[i] = _unjudged(response.error)
        elif case.task == "multiple_choice":
            grades[i] = _grade_choice(case, response)
        elif response.text is None:
            grades[i] = _unjudged("the response has no text")
        elif case.task == "exact_match":
            grades[i] = _grade_exact(case, response.text)
        else:
            similar[case.metric].append(i)
    for metric, indices in similar.items():
        for part in _texts(indices, responses):
            pairs = [(text, cases[i].answer) for i, text in part.items()]
            scores = similarity(metric, pairs)  # type: ignore[arg-type]
            for (i, text), score in zip(part.items(), scores, strict=True):
                grades[i] = Grade(None, _kept(text), score)
    return [each for each in grades if each is not None]


_TOGETHER = 2**24
"""Characters of responses that are held at once to be scored."""


def _texts(indices: Sequence[int], responses: Sequence[Response | None]) -> Iterator[dict[int, str]]:
    part: dict[int, str] = {}
    held = 0
    for i in indices:
        response = responses[i]
        part[i] = (response.text if response else None) or ""
        held += len(part[i])
        if held > _TOGETHER:
            yield part
            part, held = {}, 0
    if part:
        yield part


LONG = 1000
"""Characters of an answer, or of a recorded text, above which it is not kept in memory."""


def _kept(answer: str) -> str:
    if len(answer) <= LONG:
        return answer
    digest = hashlib.sha256(answer.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{answer[:LONG]}... ({len(answer):,} characters, SHA-256 {digest[:16]})"


def _unjudged(reason: str) -> Grade:
    return Grade(None, None, None, reason)


# Multiple choice ----------------------------------------------------------------------------------


def _grade_choice(case: GoldenCase, response: Response) -> Grade:
    if response.loglikelihoods:
        problem = _check_loglikelihoods(case, response.loglikelihoods)
        if problem:
            return _unjudged(problem)
        choice = best_choice(case, response.loglikelihoods)
    elif response.choice is not None:
        choice = response.choice
        if not 0 <= choice < len(case.choices):
            return _unjudged(f"choice {choice} is not one of the {len(case.choices)} choices")
    elif response.choice_method == "letter":
        return Grade(False, None, 0.0)
    else:
        return _unjudged("the response has neither 'loglikelihoods' nor 'choice'")
    correct = choice in case.answer
    return Grade(correct, choice, float(correct))


def _check_loglikelihoods(case: GoldenCase, values: Sequence[float]) -> str | None:
    if len(values) != len(case.choices):
        return f"{len(values)} log-likelihoods for {len(case.choices)} choices"
    if any(math.isnan(value) for value in values):
        return "a log-likelihood is NaN; the model's numbers overflow (try another dtype)"
    return None


def best_choice(case: GoldenCase, loglikelihoods: Sequence[float]) -> int:
    """Return the chosen index; the first of equals, as numpy's argmax and lm-evaluation-harness.

    Under ``acc_norm`` each log-likelihood is divided by its choice's length in characters, under
    ``acc_bytes`` by that in UTF-8 bytes: the names and rules of lm-evaluation-harness 0.4.
    """
    values = choice_values(case, loglikelihoods)
    return max(range(len(values)), key=lambda i: values[i])


def choice_values(case: GoldenCase, loglikelihoods: Sequence[float]) -> Sequence[float]:
    """Return what the case's ``choice_rule`` compares: nats, or nats per character or byte."""
    if case.choice_rule == "acc":
        return loglikelihoods
    return [v / _length(case, choice) for v, choice in zip(loglikelihoods, case.choices, strict=True)]


def margin(case: GoldenCase, loglikelihoods: Sequence[float]) -> float | None:
    """Return the best right choice's value less the best wrong one's: above 0, the answer is right.

    None where there are no log-likelihoods, where every choice is right, and where both are infinite.
    """
    if not loglikelihoods:
        return None
    values = list(enumerate(choice_values(case, loglikelihoods)))
    right = max(value for i, value in values if i in case.answer)
    wrong = max((value for i, value in values if i not in case.answer), default=math.nan)
    return None if math.isnan(right - wrong) else right - wrong


def is_fragile(case: GoldenCase, loglikelihoods: Sequence[float]) -> bool:
    """Return whether the best two choices are so near that rounding may decide between them."""
    best = heapq.nlargest(2, choice_values(case, loglikelihoods)) if loglikelihoods else []
    return len(best) == 2 and best[0] - best[1] < FRAGILE_MARGIN


def _length(case: GoldenCase, choice: str) -> int:
    return len(choice) if case.choice_rule == "acc_norm" else len(choice.encode("utf-8", "surrogatepass"))


# Exact match --------------------------------------------------------------------------------------


def _grade_exact(case: GoldenCase, text: str) -> Grade:
    try:
        extracted = extract(case.extract, text) if case.extract else text
    except TimeoutError:
        return _unjudged(f"expression {case.extract!r} took over {EXTRACTION_SECONDS:g} s on the response")
    try:
        right = {normalise(case, _final(case, str(accepted))) for accepted in case.answer}
    except TimeoutError:
        return _unjudged(f"expression {case.extract!r} took over {EXTRACTION_SECONDS:g} s on the answer")
    answer = normalise(case, extracted)
    correct = answer is not None and answer in right
    return Grade(correct, answer and _kept(answer), float(correct))


def _final(case: GoldenCase, accepted: str) -> str:
    """What is accepted, of an answer that may be written out with the reasoning before it."""
    return (extract(case.extract, accepted) or accepted) if case.extract else accepted


def extract(expression: str, text: str) -> str:
    """Return the first group of the last match of ``expression`` in ``text``, or an empty text.

    Raises TimeoutError when the expression backtracks for more than two seconds.
    """
    found = ""
    for match in compile_expression(expression).finditer(text, timeout=EXTRACTION_SECONDS):
        found = match.group(1) or ""
    return found


def normalise(case: GoldenCase, answer: str) -> str | None:
    """Bring an answer to the form that is compared; None when nothing is left of it.

    Surrounding space never counts. Numbers are compared as numbers: ``$1,000.00`` is ``1000``. Digits
    with a leading zero are left alone: they are codes, not numbers.
    """
    answer = answer.strip()
    if (number := _as_number(answer)) is not None:
        return number
    if case.ignore_space:
        answer = " ".join(answer.split())
    if case.ignore_case:
        answer = answer.casefold()
    return answer or None


_NUMBER = re.compile(r"([-+\u2212]?)[$€£¥]?\s?((?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|0|[1-9][0-9]*)?)(\.[0-9]*)?")


def _as_number(text: str) -> str | None:
    match = _NUMBER.fullmatch(text) if len(text) < 400 else None
    if match is None or not any(character.isdigit() for character in text):
        return None
    sign, whole, fraction = match.groups()
    value = Decimal((whole.replace(",", "") or "0") + (fraction or ""))
    digits = format(value, "f")
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return f"-{digits}" if sign in ("-", "\u2212") and value else digits


# Generation ---------------------------------------------------------------------------------------


def make_similarity(
    bertscore_model: str = "roberta-large", device: str = "auto", own_metrics: Collection[str] = ()
) -> Similarity:
    """Return the scorer for every generation metric; what a metric needs is loaded at its first use.

    ``bertscore_model`` is a name that bert-score knows or an encoder's directory. ``own_metrics`` are the
    ``module:callable`` that may be imported: a record alone must not choose what code is run.
    """
    scorers: dict[str, Scorer] = {}

    def similarity(metric: str, pairs: Sequence[tuple[str, Sequence[str]]]) -> list[float]:
        if metric not in scorers:
            if metric == "rougeL":
                scorers[metric] = _rouge_l()
            elif metric.startswith("rouge"):
                scorers[metric] = _rouge(metric)
            elif metric == "bertscore":
                scorers[metric] = _bertscore(bertscore_model, device)
            elif metric not in own_metrics:
                raise MuscleError(untrusted_metric(metric))
            else:
                scorers[metric] = _own_metric(metric)
        return scorers[metric](pairs)

    return similarity


def _rouge(metric: str) -> Scorer:
    from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

    scorer = RougeScorer([metric])

    def score(pairs: Sequence[tuple[str, Sequence[str]]]) -> list[float]:
        return [float(scorer.score_multi(references, text)[metric].fmeasure) for text, references in pairs]

    return score


def _rouge_l() -> Scorer:
    # rouge-score fills a table of all pairs of words: hours and gigabytes for a runaway response.
    from rouge_score.tokenizers import DefaultTokenizer  # type: ignore[import-untyped]

    tokenize = DefaultTokenizer(use_stemmer=False).tokenize

    def one(words: Sequence[str], reference: Sequence[str]) -> float:
        common = longest_common_subsequence(words, reference)
        if not common:
            return 0.0
        precision, recall = common / len(words), common / len(reference)
        return 2 * precision * recall / (precision + recall)

    def score(pairs: Sequence[tuple[str, Sequence[str]]]) -> list[float]:
        scores = []
        for text, references in pairs:
            words = tokenize(text)
            scores.append(max(one(words, tokenize(reference)) for reference in references))
        return scores

    return score


def longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of words.

    A row of the usual table is the bits of one whole number, as its values rise by at most 1 from
    column to column (Hyyrö 2004).
    """
    shorter, longer = sorted((one, other), key=len)
    places: dict[str, int] = {}
    for i, word in enumerate(shorter):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(shorter)) - 1
    row = full
    for word in longer:
        if matches := row & places.get(word, 0):
            row = (row + matches | row - matches) & full
    return len(shorter) - row.bit_count()


def _bertscore(model: str, device: str) -> Scorer:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scorer = _open_bertscore(model, device)

    def score(pairs: Sequence[tuple[str, Sequence[str]]]) -> list[float]:
        # An empty text scores 0, but bert-score cannot encode one with the tokenizers of transformers 5.
        full = {}
        for i, (text, references) in enumerate(pairs):
            text, *references = map(_encodable, (text, *references))
            if text and any(references):
                full[i] = text, [reference for reference in references if reference]
        scores = [0.0] * len(pairs)
        if full:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _, _, f1 = scorer.score(*map(list, zip(*full.values(), strict=True)))
            for i, value in zip(full, f1, strict=True):
                scores[i] = float(value)
        return scores

    return score


def _encodable(text: str) -> str:
    # Tokenizers take UTF-8, which has no lone surrogates.
    return text.encode("utf-8", "replace").decode().strip()


def _open_bertscore(model: str, device: str):  # type: ignore[no-untyped-def]
    from bert_score import BERTScorer  # type: ignore[import-untyped]
    from bert_score.utils import model2layers  # type: ignore[import-untyped]
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        layers = model2layers.get(model) or AutoConfig.from_pretrained(model).num_hidden_layers
        return BERTScorer(
            model_type=model,
            num_layers=layers,
            device=None if device == "auto" else device,
            use_fast_tokenizer=True,
        )
    except (OSError, ValueError) as error:
        raise MuscleError(
            f"bertscore_model {model!r} cannot be loaded: {str(error).splitlines()[0]}; set "
            "bertscore_model in [tool.pytest-muscle] to an encoder's directory or a model name"
        ) from None


def untrusted_metric(metric: str) -> str:
    """Say why a record's own metric is not run, and what makes it run."""
    return (
        f"metric {metric} is code that a record names; if it is yours, add it to [tool.pytest-muscle]: "
        f'metrics = ["{metric}"]'
    )


def _own_metric(metric: str) -> Scorer:
    from pytest_muscle.models.python import load_callable

    function = load_callable(metric)

    def one(text: str, reference: str) -> float:
        try:
            value = function(text, reference)
        except Exception as error:
            raise MuscleError(f"metric {metric}: raised {type(error).__name__}: {error}") from error
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise MuscleError(f"metric {metric}: must return a finite number, not {value!r}")
        return float(value)

    def score(pairs: Sequence[tuple[str, Sequence[str]]]) -> list[float]:
        return [max(one(text, reference) for reference in references) for text, references in pairs]

    return score
