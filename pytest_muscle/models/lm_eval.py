"""``lm-eval:PATH``: responses that lm-evaluation-harness logged with ``--log_samples``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import GoldenCase, Record, read_records
from pytest_muscle.models import Batch, ModelOptions, Response
from pytest_muscle.models.recorded import file_digest


class LmEvalModel:
    """The logged samples of a file, or of every ``samples_*.jsonl`` below a folder.

    A case is found by what the model was given: the prompt and, for multiple choice, the choices.
    Where a task put its own text around the prompt, the document's ``id`` or the ``doc_id`` serves,
    and the choices must still be the same. A task with several filters logs a document several
    times with the same responses; the first record counts.
    """

    stored = True

    def __init__(self, spec: str, options: ModelOptions) -> None:
        """Find the files; raises MuscleError where there are none."""
        self.spec = spec
        self.notices: list[str] = []
        path = Path(spec.partition(":")[2])
        self.files = sorted(path.rglob("samples_*.jsonl")) if path.is_dir() else [path]
        if not self.files or not self.files[0].is_file():
            raise MuscleError(
                f"model '{spec}': no samples_*.jsonl there; run lm_eval with --log_samples --output_path DIR"
            )
        self.fingerprint = hashlib.sha256("".join(map(file_digest, self.files)).encode()).hexdigest()

    def respond(self, cases: Sequence[GoldenCase]) -> Iterator[Batch]:
        """Look every case up; raises MuscleError naming the line of a bad sample."""
        by_prompt: dict[str, Record] = {}
        by_id: dict[str, Record] = {}
        for file in self.files:
            for line, sample in read_records(file):
                try:
                    context = _requests(sample)[0][0]
                    names = _names(sample)
                except (KeyError, IndexError, TypeError, AttributeError):
                    raise MuscleError(
                        f"{file}:{line}: not a sample of lm-evaluation-harness (doc_id, doc, arguments and "
                        "resps are expected)"
                    ) from None
                by_prompt.setdefault(context, sample)
                for name in names:
                    by_id.setdefault(name, sample)
        yield [(case, self._response(case, by_prompt, by_id)) for case in cases]

    def _response(self, case: GoldenCase, by_prompt: dict[str, Record], by_id: dict[str, Record]) -> Response:
        sample = by_prompt.get(case.prompt) if case.prompt else None
        sample = sample or by_id.get(case.id)
        if sample is None:
            return Response(error="lm-eval logged no sample with this prompt or id")
        try:
            return _choice(case, sample) if case.choices else _text(sample)
        except (KeyError, IndexError, TypeError, ValueError):
            return Response(error=f"lm-eval's sample of doc_id {sample.get('doc_id')} cannot be read")

    def close(self) -> None:
        """Nothing is held."""


def _requests(sample: Record) -> list[tuple[str, Any]]:
    arguments = sample["arguments"]
    numbered = sorted(arguments.items(), key=lambda item: int(item[0].rpartition("_")[2]))
    return [(request["arg_0"], request["arg_1"]) for _, request in numbered]


def _names(sample: Record) -> list[str]:
    document = sample["doc"]
    own = [str(document["id"])] if isinstance(document, dict) and "id" in document else []
    return [*own, str(sample["doc_id"])]


def _choice(case: GoldenCase, sample: Record) -> Response:
    # With mutual information each choice is asked again without its context, after all the others.
    continuations = [text.strip() for _, text in _requests(sample)[: len(case.choices)]]
    if continuations != [choice.strip() for choice in case.choices]:
        return Response(error=f"lm-eval's sample of doc_id {sample['doc_id']} has other choices")
    values = [float(entry[0]) for entry in sample["filtered_resps"][: len(case.choices)]]
    return Response(loglikelihoods=tuple(values))


def _text(sample: Record) -> Response:
    text = sample["resps"][0][0]
    if not isinstance(text, str):
        return Response(error=f"lm-eval's sample of doc_id {sample['doc_id']} is no generated text")
    return Response(text=text)
