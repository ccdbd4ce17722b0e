"""``lm-eval:PATH``: responses that lm-evaluation-harness logged with ``--log_samples``."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import SIMILARITIES, GoldenCase, Record, read_records
from pytest_muscle.models import Batch, ModelOptions, Response
from pytest_muscle.models.lookup import Index, NotFoundError, stripped
from pytest_muscle.models.recorded import file_digest, missing_notice


class LmEvalModel:
    """The logged samples of a file, or of every ``samples_*.jsonl`` below a folder.

    A case is found by what the model was given: the prompt and, for multiple choice, the choices.
    Where a task put its own text around the prompt, the document's ``id``, else the ``doc_id``, serves
    if it names one document only, and the choices must still be the same. A task with several filters
    logs a document several times with the same responses; the first record counts.
    """

    stored = True

    def __init__(self, spec: str, options: ModelOptions) -> None:
        """Find the files; raises MuscleError where there are none or a task was logged twice."""
        self.spec = spec
        self.notices: list[str] = []
        self.path = Path(spec.partition(":")[2])
        self.files = logs_in(self.path) if self.path.is_dir() else [self.path]
        if not self.files or not self.files[0].is_file():
            raise MuscleError(
                f"model '{spec}': no samples_*.jsonl there; run lm_eval with --log_samples --output_path DIR"
            )
        self.fingerprint = hashlib.sha256("".join(map(file_digest, self.files)).encode()).hexdigest()

    def request_digest(self, case: GoldenCase) -> str:
        """Return the digest of the request, which no store needs."""
        return case.request_digest()

    def respond(self, cases: Sequence[GoldenCase]) -> Iterator[Batch]:
        """Look every case up; raises MuscleError naming the line of a bad sample."""
        samples = Index[Record]("lm-eval")
        for file in self.files:
            for line, sample in read_records(file):
                with _named_line(file, line):
                    prompt, choices = _request(sample)
                    samples.add(_document(sample), _name(sample), [(prompt, stripped(choices))], sample)
        batch = [(case, _find(case, samples)) for case in cases]
        self.notices += missing_notice(self.path, batch)
        yield batch

    def close(self) -> None:
        """Nothing is held."""


def _refuse_two_runs(files: Sequence[Path]) -> None:
    tasks: dict[str, Path] = {}
    for file in files:
        task = file.stem.removeprefix("samples_").rpartition("_")[0]
        first = tasks.setdefault(task, file)
        if first is not file:
            raise MuscleError(
                f"task '{task}' was logged twice, in {first} and {file}; name the folder of one model and run"
            )


def golden_records(path: Path) -> Iterator[tuple[int, Record]]:
    """Make golden records of the logged samples: the same prompts, choices and targets.

    The task's own filters are not in the log: where a text is to be extracted before it is compared, the
    dataset's ``extract`` says how. Raises MuscleError naming the line of a sample that makes no case.
    """
    seen = set()
    samples = list(read_records(path))
    names = _unique_names(path, samples)
    for line, sample in samples:
        with _named_line(path, line):
            document = _document(sample)
            if document not in seen:
                seen.add(document)
                yield line, {"id": names[document], **_record(path, line, sample)}


def logs_in(folder: Path) -> list[Path]:
    """The files of samples below a folder; raises MuscleError where a task was logged twice."""
    files = sorted(folder.rglob("samples_*.jsonl"))
    _refuse_two_runs(files)
    return files


@contextmanager
def _named_line(file: Path, line: int) -> Iterator[None]:
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise MuscleError(
            f"{file}:{line}: not a sample of lm-evaluation-harness (doc_id, doc, arguments and "
            "resps are expected)"
        ) from None


def _unique_names(path: Path, samples: Sequence[tuple[int, Record]]) -> dict[bytes, str]:
    """The documents' own ids where each has another, else their numbers."""
    named: dict[bytes, tuple[str, str]] = {}
    for line, sample in samples:
        with _named_line(path, line):
            named[_document(sample)] = _name(sample), str(sample["doc_id"])
    is_unique = len({name for name, _ in named.values()}) == len(named)
    return {document: name if is_unique else number for document, (name, number) in named.items()}


def _record(path: Path, line: int, sample: Record) -> Record:
    prompt, texts = _request(sample)
    if not texts:
        return _written(prompt, sample)
    if len({request["arg_0"] for request in sample["arguments"].values() if request["arg_0"]}) > 1:
        raise MuscleError(f"{path}:{line}: each choice has a context of its own, which makes no golden case")
    delimiter = " " if all(text.startswith(" ") for text in texts) else ""
    right = _right(sample["target"], texts)
    if not right:
        shown = ascii(sample["target"])[:60]
        raise MuscleError(f"{path}:{line}: its target {shown} names none of the {len(texts)} choices")
    values = _loglikelihoods(sample, len(texts))
    if "acc" in sample and bool(sample["acc"]) != (values.index(max(values)) in right):
        raise MuscleError(f"{path}:{line}: its 'acc' does not follow from its target and log-likelihoods")
    choices = [text.removeprefix(delimiter) for text in texts]
    return {"prompt": prompt, "choices": choices, "delimiter": delimiter, "answer": right}


def _right(target: Any, texts: Sequence[str]) -> list[int]:
    right = []
    for each in _targets(target):
        if str(each).isdigit():
            right.append(int(each))
        elif str(each).strip() in stripped(texts):
            right.append(stripped(texts).index(str(each).strip()))
        else:
            return []
    return right if all(index < len(texts) for index in right) else []


def _targets(target: Any) -> list[Any]:
    if isinstance(target, str) and target.startswith("["):
        try:
            target = ast.literal_eval(target)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return [target]
    return target if isinstance(target, list) else [target]


def _written(prompt: str, sample: Record) -> Record:
    how = next(iter(sample["arguments"].values()))["arg_1"]
    metric = next((name for name in SIMILARITIES if name in sample["metrics"]), None)
    return {
        "prompt": prompt,
        "answer": [str(each) for each in _targets(sample["target"])],
        "metric": metric,
        "stop": how.get("until"),
        "max_new_tokens": how.get("max_gen_toks"),
    }


def _request(sample: Record) -> tuple[str, tuple[str, ...]]:
    """The prompt and, for multiple choice, what was to follow it."""
    arguments = sample["arguments"]
    numbered = sorted(arguments.items(), key=lambda item: int(item[0].rpartition("_")[2]))
    prompt = numbered[0][1]["arg_0"]
    continuations = [request["arg_1"] for _, request in numbered]
    if not isinstance(prompt, str):
        raise TypeError
    if not isinstance(continuations[0], str):
        return prompt, ()
    if not all(isinstance(text, str) for text in continuations):
        raise TypeError
    # With mutual information each choice is asked again without its context, after all the others.
    half = len(continuations) // 2
    if half > 1 and continuations[:half] == continuations[half:]:
        continuations = continuations[:half]
    return prompt, tuple(continuations)


def _name(sample: Record) -> str:
    document, number = sample["doc"], sample["doc_id"]
    return str(document["id"] if isinstance(document, dict) and "id" in document else number)


def _document(sample: Record) -> bytes:
    # Every filter logs the document again.
    content = json.dumps([sample["doc_id"], sample["doc"], sample["arguments"]], sort_keys=True)
    return hashlib.sha256(content.encode()).digest()


def _find(case: GoldenCase, samples: Index[Record]) -> Response:
    try:
        sample = samples.find(case)[0]
    except NotFoundError as error:
        return Response(error=str(error))
    try:
        return _answer(case, sample)
    except (KeyError, IndexError, TypeError, ValueError):
        return Response(error=f"lm-eval's sample of doc_id {sample['doc_id']!a} cannot be read")


def _answer(case: GoldenCase, sample: Record) -> Response:
    if case.choices:
        return Response(loglikelihoods=_loglikelihoods(sample, len(case.choices)))
    drawn = sample["resps"][0]
    if case.draw >= len(drawn):
        return Response(error=f"lm-eval logged {len(drawn)} draws of doc_id {sample['doc_id']!a}")
    text = drawn[case.draw]
    if not isinstance(text, str):
        raise TypeError
    return Response(text=text)


def _loglikelihoods(sample: Record, choices: int) -> tuple[float, ...]:
    return tuple(float(value) for value, *_ in sample["filtered_resps"][:choices])
