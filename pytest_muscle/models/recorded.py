"""``recorded:FILE.jsonl``: responses recorded earlier; no model is needed."""

from __future__ import annotations

import hashlib
import json
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import LINED, GoldenCase, Record, check_fields, read_records
from pytest_muscle.grading import LONG
from pytest_muscle.models import Batch, ModelOptions, Response

FIELDS = ("id", "dataset", "sample", "text", "choice", "loglikelihoods", "error", "method")


Draws = Mapping[int, Response]


class RecordedModel:
    """Responses of a file, found by the case's id; draws of one case are told apart by ``sample``.

    ``dataset`` in a record counts only where several golden datasets use the same id. A case without
    a record gets a response with an error; records without a case are told in ``notices``. Long texts
    of a JSONL file stay there.
    """

    stored = True

    def __init__(self, spec: str, options: ModelOptions) -> None:
        """Note the file; raises MuscleError where there is none."""
        self.spec = spec
        self.path = Path(spec.partition(":")[2])
        self.notices: list[str] = []
        if not self.path.is_file():
            raise MuscleError(f"model '{spec}': no such file; record one with --muscle-record DIR")
        self.fingerprint = file_digest(self.path)
        self._samples = options.samples

    def request_digest(self, case: GoldenCase) -> str:
        """Return the digest of the request, which no store needs."""
        return case.request_digest()

    def respond(self, cases: Sequence[GoldenCase]) -> Iterator[Batch]:
        """Look every case up; raises MuscleError naming the line of a bad record."""
        responses = self._read()
        uses = Counter(case.id for case in cases)
        batch = [(case, self._find(responses.get(case.id, {}), case, uses[case.id])) for case in cases]
        most = max((len(draws) for found in responses.values() for draws in found.values()), default=0)
        if most > self._samples:
            self.notices.append(
                f"{self.path}: up to {most} draws of a case; --muscle-samples={most} uses them"
            )
        self.notices += missing_notice(self.path, batch)
        if unused := sorted(set(responses) - set(uses)):
            self.notices.append(f"{self.path}: {len(unused):,} responses have no golden case{_some(unused)}")
        yield batch

    def _find(self, found: Mapping[str | None, Draws], case: GoldenCase, uses: int) -> Response:
        if case.dataset in found:
            return self._pick(found[case.dataset], case)
        if not found:
            return Response(error=f"{self.path.name} holds no response with id {case.id!a}")
        if uses > 1 or len(found) > 1:
            return Response(
                error=f"several datasets use the id {case.id!a}, and {self.path.name} holds no response "
                "with it and this 'dataset'"
            )
        return self._pick(next(iter(found.values())), case)

    def _pick(self, draws: Draws, case: GoldenCase) -> Response:
        numbers = sorted(draws)
        first = draws[numbers[0]]
        if case.draw < len(numbers):
            return draws[numbers[case.draw]]
        # What is computed and not drawn is the same each time.
        if first.loglikelihoods:
            return first
        return Response(
            error=f"{self.path.name} holds {len(numbers)} of {self._samples} draws of id {case.id!a}"
        )

    def _read(self) -> dict[str, dict[str | None, dict[int, Response]]]:
        responses: dict[str, dict[str | None, dict[int, Response]]] = {}
        file = Lines(self.path) if self.path.suffix.lower() in LINED else None
        lines: dict[tuple[str | None, str, int], int] = {}
        for line, record in read_records(self.path):
            try:
                case_id, dataset, sample, response = _parse(record)
            except MuscleError as error:
                raise MuscleError(f"{self.path}:{line}: {error}") from None
            first = lines.setdefault((dataset, case_id, sample), line)
            if first != line:
                raise MuscleError(
                    f"{self.path}:{line}: a second response with id {case_id!a}, the first is on line "
                    f"{first}; give each draw of a case a 'sample' of its own"
                )
            if file is not None and len(response.text or "") > LONG:
                response = FiledResponse(file, line, response)
            responses.setdefault(case_id, {}).setdefault(dataset, {})[sample] = response
        return responses

    def close(self) -> None:
        """Nothing is held."""


class Lines:
    """The lines of a JSONL file, read again by their number (from 1)."""

    def __init__(self, path: Path) -> None:
        """Note where each line starts; raises MuscleError where the file cannot be read."""
        self._path = path
        self._starts, self._checks = array("Q"), array("L")
        start = 0
        try:
            with path.open("rb") as file:
                for raw in file:
                    self._starts.append(start)
                    self._checks.append(zlib.crc32(raw))
                    start += len(raw)
        except OSError as error:
            raise MuscleError(f"{path}: cannot be read: {error.strerror or error}") from None

    def record(self, number: int) -> Record:
        """Return a line's record; raises MuscleError where the file has changed."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._starts[number - 1])
                raw = file.readline()
        except OSError as error:
            raise MuscleError(f"{self._path}: cannot be read: {error.strerror or error}") from None
        if zlib.crc32(raw) != self._checks[number - 1]:
            raise MuscleError(f"{self._path}:{number}: the file was changed during the run; run again")
        return json.loads(raw.removeprefix(b"\xef\xbb\xbf"))  # type: ignore[no-any-return]


class FiledResponse(Response):
    """A response whose text is long and stays in its file: it is read whenever it is looked at."""

    __slots__ = ("_line", "_lines")
    _lines: Lines
    _line: int

    def __init__(self, lines: Lines, line: int, response: Response) -> None:
        """Stand for ``response``, which was read from this line."""
        object.__setattr__(self, "_lines", lines)
        object.__setattr__(self, "_line", line)
        for each in fields(response):
            if each.name != "text":
                object.__setattr__(self, each.name, getattr(response, each.name))

    @property
    def text(self) -> str:
        """The text; raises MuscleError where the file has changed."""
        return str(self._lines.record(self._line)["text"])


def missing_notice(path: Path, batch: Batch) -> list[str]:
    """Say how many of the cases have no usable response in a file, and name the first of them."""
    missing = [case.id for case, response in batch if response.error is not None]
    if not missing:
        return []
    return [f"{path}: no usable response to {len(missing):,} of {len(batch):,} cases{_some(missing)}"]


def _some(names: Sequence[str]) -> str:
    return f" ({', '.join(map(ascii, names[:3]))}{', ...' if len(names) > 3 else ''})"


def _parse(record: Record) -> tuple[str, str | None, int, Response]:
    check_fields(record, FIELDS, "field")
    case_id, dataset = record.get("id"), record.get("dataset")
    if isinstance(case_id, bool) or not isinstance(case_id, str | int):
        raise MuscleError("field 'id' must name the golden case")
    if dataset is not None and not isinstance(dataset, str):
        raise MuscleError("field 'dataset' must be a text")
    sample = record.get("sample", 0)
    if isinstance(sample, bool) or not isinstance(sample, int):
        raise MuscleError(f"field 'sample' must be the number of a draw, not {ascii(sample)[:60]}")
    text, choice, values, error, method = (record.get(name) for name in FIELDS[3:])
    if text is None and choice is None and values is None and error is None:
        raise MuscleError("one of the fields 'text', 'choice' and 'loglikelihoods' must be given")
    for name, value in (("text", text), ("error", error), ("method", method)):
        if value is not None and not isinstance(value, str):
            raise MuscleError(f"field '{name}' must be a text, not {ascii(value)[:60]}")
    if choice is not None and (isinstance(choice, bool) or not isinstance(choice, int)):
        raise MuscleError(f"field 'choice' must be the index of a choice, not {ascii(choice)[:60]}")
    return str(case_id), dataset, sample, Response(text, choice, _loglikelihoods(values), error, method)


def _loglikelihoods(values: Any) -> tuple[float, ...]:
    if values is None:
        return ()
    if not isinstance(values, list) or not all(_is_number(value) for value in values):
        raise MuscleError(f"field 'loglikelihoods' must be a list of numbers, not {ascii(values)[:60]}")
    try:
        return tuple(map(float, values))
    except OverflowError:
        raise MuscleError("field 'loglikelihoods' holds a number beyond any log-likelihood") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
