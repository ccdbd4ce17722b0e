"""``lm-eval:PATH``: responses that lm-evaluation-harness logged with ``--log_samples``."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import GoldenCase, Record, read_records
from pytest_muscle.models import Batch, ModelOptions, Response
from pytest_muscle.models.recorded import file_digest, missing_notice

Request = tuple[str, tuple[str, ...]]
"""What was asked: the prompt and, for multiple choice, the choices without the space around them."""


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
        self.files = sorted(self.path.rglob("samples_*.jsonl")) if self.path.is_dir() else [self.path]
        if not self.files or not self.files[0].is_file():
            raise MuscleError(
                f"model '{spec}': no samples_*.jsonl there; run lm_eval with --log_samples --output_path DIR"
            )
        _refuse_two_runs(self.files)
        self.fingerprint = hashlib.sha256("".join(map(file_digest, self.files)).encode()).hexdigest()

    def request_digest(self, case: GoldenCase) -> str:
        """Return the digest of the request, which no store needs."""
        return case.request_digest()

    def respond(self, cases: Sequence[GoldenCase]) -> Iterator[Batch]:
        """Look every case up; raises MuscleError naming the line of a bad sample."""
        by_request: dict[Request, Record] = {}
        by_name: dict[str, dict[bytes, Record]] = defaultdict(dict)
        for file in self.files:
            for line, sample in read_records(file):
                try:
                    by_request.setdefault(_request(sample), sample)
                    by_name[_name(sample)].setdefault(_document(sample), sample)
                except (KeyError, IndexError, TypeError, ValueError, AttributeError):
                    raise MuscleError(
                        f"{file}:{line}: not a sample of lm-evaluation-harness (doc_id, doc, arguments and "
                        "resps are expected)"
                    ) from None
        batch = [(case, _find(case, by_request, by_name)) for case in cases]
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


def _request(sample: Record) -> Request:
    arguments = sample["arguments"]
    numbered = sorted(arguments.items(), key=lambda item: int(item[0].rpartition("_")[2]))
    prompt = numbered[0][1]["arg_0"]
    continuations = [request["arg_1"] for _, request in numbered]
    if not isinstance(prompt, str):
        raise TypeError
    if not isinstance(continuations[0], str):
        return prompt, ()
    # With mutual information each choice is asked again without its context, after all the others.
    half = len(continuations) // 2
    if half > 1 and continuations[:half] == continuations[half:]:
        continuations = continuations[:half]
    return prompt, tuple(text.strip() for text in continuations)


def _name(sample: Record) -> str:
    document, number = sample["doc"], sample["doc_id"]
    return str(document["id"] if isinstance(document, dict) and "id" in document else number)


def _document(sample: Record) -> bytes:
    # Every filter logs the document again.
    content = json.dumps([sample["doc_id"], sample["doc"], sample["arguments"]], sort_keys=True)
    return hashlib.sha256(content.encode()).digest()


def _find(
    case: GoldenCase, by_request: Mapping[Request, Record], by_name: Mapping[str, Mapping[bytes, Record]]
) -> Response:
    choices = tuple(choice.strip() for choice in case.choices)
    sample = None if case.messages else by_request.get((case.prompt, choices))
    if sample is None:
        named = list(by_name.get(case.id, {}).values())
        if len(named) > 1:
            return Response(error=f"{len(named)} of lm-eval's documents have the id {case.id!a}")
        if not named:
            return Response(error="lm-eval logged no sample with this prompt or id")
        sample = named[0]
        if _request(sample)[1] != choices:
            return Response(error=f"lm-eval's sample of doc_id {sample['doc_id']!a} has other choices")
    try:
        return _answer(case, sample)
    except (KeyError, IndexError, TypeError, ValueError):
        return Response(error=f"lm-eval's sample of doc_id {sample['doc_id']!a} cannot be read")


def _answer(case: GoldenCase, sample: Record) -> Response:
    if case.choices:
        values = [float(value) for value, *_ in sample["filtered_resps"][: len(case.choices)]]
        return Response(loglikelihoods=tuple(values))
    drawn = sample["resps"][0]
    if case.draw >= len(drawn):
        return Response(error=f"lm-eval logged {len(drawn)} draws of doc_id {sample['doc_id']!a}")
    text = drawn[case.draw]
    if not isinstance(text, str):
        raise TypeError
    return Response(text=text)
