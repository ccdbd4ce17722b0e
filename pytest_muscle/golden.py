"""Golden cases: what they are and how golden datasets are read."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, get_args

from pytest_muscle.errors import MuscleError, did_you_mean

Task = Literal["multiple_choice", "exact_match", "generation"]
ChoiceRule = Literal["acc", "acc_norm", "acc_bytes"]
Record = dict[str, Any]

SIMILARITIES = ("rouge1", "rouge2", "rougeL", "bertscore")


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """One record of a golden dataset.

    ``prompt`` or ``messages`` is what the model is given. ``answer`` holds the indices of the right
    choices, or the accepted texts. ``dataset`` is the file as shown to people, ``line`` where the
    record stands in it (1-based; a row number for Parquet).

    Cases that share a ``pair`` are the same case told of different groups of people, each named by its
    ``group``. ``stereotype`` is the index of the choice that says what a prejudice says. ``draw`` counts
    the times the same case is asked, from 0; it is no part of a record.
    """

    id: str
    dataset: str
    task: Task
    answer: tuple[int, ...] | tuple[str, ...]
    prompt: str = ""
    messages: tuple[Mapping[str, str], ...] = ()
    choices: tuple[str, ...] = ()
    delimiter: str = " "
    metric: str = ""
    extract: str = ""
    ignore_case: bool = False
    ignore_space: bool = False
    choice_rule: ChoiceRule = "acc"
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 256
    tags: Mapping[str, str] = field(default_factory=dict)
    pair: str = ""
    group: str = ""
    stereotype: int | None = None
    line: int = 0
    draw: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """What tells this case from every other one of a run."""
        return self.dataset, self.id

    def request_digest(self) -> str:
        """A digest of everything the model is given: equal requests may share a response."""
        request: tuple[Any, ...] = (
            self.task == "multiple_choice",
            self.prompt,
            [dict(message) for message in self.messages],
            self.choices,
            self.delimiter if self.choices else "",
            () if self.choices else self.stop,
            0 if self.choices else self.max_new_tokens,
        )
        if self.draw:
            request += (self.draw,)
        return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


# Reading records ----------------------------------------------------------------------------------


def read_records(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield ``(line, record)`` for each record of a JSONL, JSON, CSV or Parquet file.

    JSONL, CSV and Parquet are streamed. Raises MuscleError naming the file, the line and the remedy.
    """
    try:
        reader = _READERS[path.suffix.lower()]
    except KeyError:
        known = ", ".join(_READERS)
        raise MuscleError(f"{path}: unknown format '{path.suffix}'; use one of {known}") from None
    if not path.is_file():
        raise MuscleError(f"{path}: no such file")
    empty = True
    try:
        for line, record in reader(path):
            if not isinstance(record, dict):
                raise MuscleError(f"{path}:{line}: a record must be a JSON object, not {_shown(record)}")
            empty = False
            yield line, record
    except OSError as error:
        raise MuscleError(f"{path}: cannot be read: {error.strerror or error}") from None
    if empty:
        raise MuscleError(f"{path}: the file holds no records")


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number, error) from None


def _not_utf8(path: Path, line: int, error: UnicodeDecodeError) -> MuscleError:
    byte = error.object[error.start]
    return MuscleError(f"{path}:{line}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8")


def _read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in _read_lines(path):
        if line.isspace():
            continue
        try:
            yield number, json.loads(line.rstrip("\r\n"))
        except _BAD_JSON as error:
            column = getattr(error, "colno", 1)
            raise MuscleError(
                f"{path}:{number}: malformed JSON at column {column}: {_what(error)}; "
                "each line must be one JSON object"
            ) from None


# ValueError also stands for a number of more digits than Python converts.
_BAD_JSON = (ValueError, RecursionError)


def _what(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return error.msg
    return "nested too deeply" if isinstance(error, RecursionError) else "a number is too long"


def _read_json(path: Path) -> Iterator[tuple[int, Any]]:
    text = "".join(line for _, line in _read_lines(path))
    start = _skip(text, 0, " \t\r\n")
    if start == len(text):
        return
    if text[start] != "[":
        raise MuscleError(f"{path}:1: must be a list of records: [{{...}}, {{...}}]")
    try:
        json.loads(text)
    except _BAD_JSON as error:
        line = getattr(error, "lineno", 1)
        raise MuscleError(f"{path}:{line}: malformed JSON: {_what(error)}") from None
    decoder = json.JSONDecoder()
    line, at = 1, start + 1
    counted = 0
    while text[(at := _skip(text, at, " \t\r\n,"))] != "]":
        line += text.count("\n", counted, at)
        counted = at
        record, at = decoder.raw_decode(text, at)
        yield line, record


def _skip(text: str, at: int, characters: str) -> int:
    while at < len(text) and text[at] in characters:
        at += 1
    return at


def _read_csv(path: Path) -> Iterator[tuple[int, Record]]:
    csv.field_size_limit(2**31 - 1)
    rows = csv.reader((line for _, line in _read_lines(path)), strict=True)
    header: list[str] | None = None
    while True:
        line = rows.line_num + 1
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise MuscleError(f"{path}:{line}: malformed CSV: {error}") from None
        if row is None:
            return
        if not row:
            continue
        if header is None:
            header = _header(path, line, row)
            continue
        if len(row) > len(header):
            raise MuscleError(f"{path}:{line}: more cells than the header has columns; quote the commas")
        cells = zip(header, row, strict=False)
        yield line, _from_cells(path, line, {name: cell for name, cell in cells if name and cell})


def _header(path: Path, line: int, row: list[str]) -> list[str]:
    twice = next((name for name in row if name and row.count(name) > 1), None)
    if twice is not None:
        raise MuscleError(f"{path}:{line}: two columns are named {_shown(twice)}; rename one")
    return row


def _from_cells(path: Path, line: int, cells: dict[str, str]) -> Record:
    record: Record = {}
    tags: dict[str, Any] = {}
    for name, cell in cells.items():
        if name.startswith("tags."):
            tags[name.removeprefix("tags.")] = cell
        elif name in _STRUCTURED or (name == "answer" and ("choices" in cells or cell.startswith('["'))):
            record[name] = _cell_json(path, line, name, cell)
        else:
            record[name] = cell
    if tags and isinstance(own := record.get("tags", {}), dict):
        record["tags"] = {**own, **tags}
    return record


def _cell_json(path: Path, line: int, name: str, cell: str) -> Any:
    try:
        return json.loads(cell)
    except _BAD_JSON:
        raise MuscleError(f"{path}:{line}: column '{name}' must hold JSON, not {_shown(cell)}") from None


def _read_parquet(path: Path) -> Iterator[tuple[int, Record]]:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        row = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for record in batch.to_pylist(maps_as_pydicts="strict"):
                    row += 1
                    yield row, {name: value for name, value in record.items() if value is not None}
    except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise MuscleError(f"{path}: not a readable Parquet file: {error}") from None


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
SUFFIXES = tuple(_READERS)
LINED = (".jsonl", ".ndjson")
"""Those whose records are lines."""
_STRUCTURED = {
    "choices",
    "messages",
    "stop",
    "tags",
    "stereotype",
    "max_new_tokens",
    "ignore_case",
    "ignore_space",
}


# From records to cases ----------------------------------------------------------------------------


def read_golden(
    path: Path,
    dataset: str | None = None,
    defaults: Mapping[str, Any] | None = None,
    limit: int | None = None,
    records: Callable[[Path], Iterator[tuple[int, Record]]] = read_records,
) -> list[GoldenCase]:
    """Read one golden dataset.

    ``dataset`` is the name shown to people (default: the path), ``defaults`` the fields of
    ``[tool.pytest-muscle.datasets."..."]``, ``limit`` the number of cases to read, ``records`` what
    reads the file. Raises MuscleError naming the file, the line, the field and the remedy.
    """
    name = dataset if dataset is not None else path.as_posix()
    seen: dict[str, int] = {}
    cases: list[GoldenCase] = []
    for line, record in records(path):
        if limit is not None and len(cases) == limit:
            break
        try:
            case = parse_case(record, name, line, defaults or {})
        except MuscleError as error:
            raise MuscleError(f"{path}:{line}: {error}") from None
        first = seen.setdefault(case.id, line)
        if first != line:
            raise MuscleError(
                f"{path}:{line}: duplicate id {_shown(case.id)}, first used on line {first}; "
                "give each record an id of its own"
            )
        cases.append(case)
    return cases


def parse_case(record: Record, dataset: str, line: int, defaults: Mapping[str, Any]) -> GoldenCase:
    """Make a case of one record; raises MuscleError naming the field and the remedy."""
    check_fields(record, FIELDS, "field")
    fields = {**defaults, **{name: value for name, value in record.items() if value is not None}}
    own_tags = record.get("tags")
    tags = _tags(defaults.get("tags", {})) | _tags({} if own_tags is None else own_tags)
    prompt, messages = _request(fields)
    choices = _texts(fields, "choices")
    task = _task(fields, choices)
    stereotype = _stereotype(fields, task, choices)
    if stereotype is not None:
        # Where only the preference counts, no answer is wrong.
        fields.setdefault("answer", list(range(len(choices))))
    return GoldenCase(
        id=_id(record),
        dataset=dataset,
        task=task,
        answer=_indices(fields, choices) if task == "multiple_choice" else _answers(fields, task),
        prompt=prompt,
        messages=messages,
        choices=choices,
        delimiter=_text(fields, "delimiter", "" if messages else " "),
        metric=_metric(fields) if task == "generation" else "",
        extract=_expression(fields) if task == "exact_match" else "",
        ignore_case=_flag(fields, "ignore_case"),
        ignore_space=_flag(fields, "ignore_space"),
        choice_rule=_one_of(fields, "choice_rule", get_args(ChoiceRule), "acc"),
        stop=_texts(fields, "stop"),
        max_new_tokens=_positive(fields, "max_new_tokens", 256),
        tags=tags,
        pair=_name(fields, "pair"),
        group=_name(fields, "group"),
        stereotype=stereotype,
        line=line,
    )


_DATASET_FIELDS = (
    "task",
    "delimiter",
    "metric",
    "extract",
    "ignore_case",
    "ignore_space",
    "choice_rule",
    "stop",
    "max_new_tokens",
    "tags",
)
FIELDS = ("id", "prompt", "messages", "choices", "answer", "pair", "group", "stereotype", *_DATASET_FIELDS)


def check_defaults(defaults: Mapping[str, Any]) -> None:
    """Check the fields a whole file may be given; raises MuscleError naming the first bad one."""
    unknown = next((name for name in defaults if name not in _DATASET_FIELDS), None)
    if unknown is not None:
        hint = did_you_mean(unknown, _DATASET_FIELDS) or f"; the keys are {', '.join(_DATASET_FIELDS)}"
        raise MuscleError(f"unknown key '{unknown}'{hint}")
    sample = {"prompt": "", "answer": "0", "task": "exact_match"}
    parse_case({**sample, **{k: v for k, v in defaults.items() if k != "task"}}, "", 0, {})
    _one_of(defaults, "task", get_args(Task), "exact_match")
    if "metric" in defaults:
        _metric(defaults)


def check_fields(record: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    """Refuse a name that is nearly a known one that is not there; other names are the user's own."""
    absent = [name for name in known if name not in record]
    for name in record:
        if name not in known and (hint := did_you_mean(str(name), absent)):
            raise MuscleError(f"unknown {what} {_shown(name)}{hint}")


def _id(record: Record) -> str:
    given = record.get("id")
    if given is None:
        content = json.dumps(record, sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:12]
    if isinstance(given, bool) or not isinstance(given, str | int) or given == "":
        raise MuscleError(f"field 'id' must be a text or a whole number, not {_shown(given)}")
    return str(given)


def _request(fields: Record) -> tuple[str, tuple[Mapping[str, str], ...]]:
    messages = fields.get("messages")
    if (messages is None) == ("prompt" not in fields):
        raise MuscleError("exactly one of the fields 'prompt' and 'messages' must be given")
    if messages is None:
        return _text(fields, "prompt", ""), ()
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise MuscleError(
            'field \'messages\' must be a list such as [{"role": "user", "content": "..."}], '
            f"not {_shown(messages)}"
        )
    return "", tuple({"role": message["role"], "content": message["content"]} for message in messages)


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(k), str) for k in ("role", "content"))


def _task(fields: Record, choices: tuple[str, ...]) -> Task:
    inferred = "multiple_choice" if choices else "generation" if fields.get("metric") else "exact_match"
    task: Task = _one_of(fields, "task", get_args(Task), inferred)
    if task == "multiple_choice" and len(choices) < 2:
        raise MuscleError(f"field 'choices' must hold at least two texts, not {_shown(list(choices))}")
    if task != "multiple_choice" and choices:
        raise MuscleError(f"field 'choices' does not go with task '{task}'")
    if any(not choice for choice in choices):
        raise MuscleError("field 'choices' holds an empty text; every choice needs at least one character")
    return task


def _stereotype(fields: Record, task: Task, choices: tuple[str, ...]) -> int | None:
    index = fields.get("stereotype")
    if index is None:
        return None
    if task != "multiple_choice":
        raise MuscleError("field 'stereotype' is the index of a choice and needs 'choices'")
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(choices):
        raise MuscleError(
            f"field 'stereotype' must be the index of a choice (0 to {len(choices) - 1}), not {_shown(index)}"
        )
    return index


def _name(fields: Record, name: str) -> str:
    value = fields.get(name, "")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise MuscleError(f"field '{name}' must be a text or a whole number, not {_shown(value)}")
    return str(value)


def _indices(fields: Record, choices: tuple[str, ...]) -> tuple[int, ...]:
    answer = _required_answer(fields)
    indices = answer if isinstance(answer, list) else [answer]
    for index in indices:
        if isinstance(index, bool) or not isinstance(index, int):
            raise MuscleError(
                f"field 'answer' must be the index of the right choice (0 to {len(choices) - 1}) "
                f"or a list of indices, not {_shown(answer)}"
            )
        if not 0 <= index < len(choices):
            raise MuscleError(
                f"field 'answer' is {index}, but the {len(choices)} choices are 0 to {len(choices) - 1}"
            )
    return tuple(sorted(set(indices)))


def _answers(fields: Record, task: Task) -> tuple[str, ...]:
    answer = _required_answer(fields)
    answers = answer if isinstance(answer, list) else [answer]
    for text in answers:
        if not _is_answer(text):
            raise MuscleError(f"field 'answer' must be a text or a list of texts, not {_shown(answer)}")
        if task == "exact_match" and not str(text).strip():
            raise MuscleError("field 'answer' holds an empty text, which no response can match")
    return tuple(map(_as_text, answers))


def _is_answer(text: Any) -> bool:
    if isinstance(text, float):
        return math.isfinite(text)
    return isinstance(text, str | int) and not isinstance(text, bool)


def _as_text(answer: str | float) -> str:
    # 0.00001, not 1e-05: models do not answer in exponents.
    return format(Decimal(repr(answer)), "f") if isinstance(answer, float) else str(answer)


def _required_answer(fields: Record) -> Any:
    if "answer" not in fields:
        raise MuscleError("field 'answer' is missing; it holds what is right")
    if fields["answer"] == []:
        raise MuscleError("field 'answer' is an empty list; give at least one right answer")
    return fields["answer"]


def _metric(fields: Mapping[str, Any]) -> str:
    metric = _text(fields, "metric", "rouge1")
    if metric not in SIMILARITIES and not re.fullmatch(r"[\w.]+:\w+", metric):
        raise MuscleError(
            f"field 'metric' must be one of {', '.join(SIMILARITIES)} or module:callable, "
            f"not {_shown(metric)}{did_you_mean(metric, SIMILARITIES)}"
        )
    return metric


def _expression(fields: Record) -> str:
    expression = _text(fields, "extract", "")
    if expression:
        compile_expression(expression)
    return expression


_EXPRESSIONS: dict[str, Any] = {}


def compile_expression(expression: str) -> Any:
    """Compile an ``extract`` expression; raises MuscleError when it is invalid or has no group."""
    if (compiled := _EXPRESSIONS.get(expression)) is not None:
        return compiled
    import regex  # type: ignore[import-untyped]

    try:
        compiled = regex.compile(expression)
    except (regex.error, RecursionError, OverflowError) as error:
        raise MuscleError(
            f"field 'extract' is not a valid regular expression: {_shown(expression)}: {error}"
        ) from None
    if compiled.groups < 1:
        raise MuscleError(
            f"field 'extract' needs a group around the answer, such as 'A: (.*)', not {_shown(expression)}"
        )
    _EXPRESSIONS[expression] = compiled
    return compiled


def _tags(tags: Any) -> dict[str, str]:
    if not isinstance(tags, dict) or not all(isinstance(v, str | int | float | None) for v in tags.values()):
        raise MuscleError(f'field \'tags\' must be a mapping such as {{"lang": "de"}}, not {_shown(tags)}')
    return {
        str(name): value if isinstance(value, str) else json.dumps(value)
        for name, value in tags.items()
        if value is not None
    }


def _text(fields: Mapping[str, Any], name: str, default: str) -> str:
    value = fields.get(name, default)
    if not isinstance(value, str):
        raise MuscleError(f"field '{name}' must be a text, not {_shown(value)}")
    return value


def _texts(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = fields.get(name, [])
    if isinstance(value, str) and name == "stop":
        value = [value]
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise MuscleError(f"field '{name}' must be a list of texts, not {_shown(value)}")
    return tuple(value)


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise MuscleError(f"field '{name}' must be true or false, not {_shown(value)}")
    return value


def _positive(fields: Mapping[str, Any], name: str, default: int) -> int:
    value = fields.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise MuscleError(f"field '{name}' must be a whole number of at least 1, not {_shown(value)}")
    return value


def _one_of(fields: Mapping[str, Any], name: str, known: tuple[str, ...], default: str) -> Any:
    value = fields.get(name, default)
    if value not in known:
        hint = did_you_mean(value, known) if isinstance(value, str) else ""
        raise MuscleError(f"field '{name}' must be one of {', '.join(known)}, not {_shown(value)}{hint}")
    return value


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
