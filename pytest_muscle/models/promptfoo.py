"""``promptfoo:OUTPUT.json``: what ``promptfoo eval --output OUTPUT.json`` wrote."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import GoldenCase, Record
from pytest_muscle.models import Batch, ModelOptions, Response
from pytest_muscle.models.lookup import Index, Messages, NotFoundError
from pytest_muscle.models.recorded import file_digest, missing_notice

_ERROR = 2
"""promptfoo's failure reason for what could not be had or graded; 1 is an assertion that does not hold."""

_ANSWERS = ("equals", "contains", "icontains")
_OF_NO_ACCOUNT = ("latency", "cost", "perplexity", "perplexity-score", "finish-reason")


class PromptfooModel:
    """One provider's outputs: ``promptfoo:OUTPUT.json``, or ``promptfoo:OUTPUT.json#PROVIDER`` of several.

    A provider is named by its label or its id. A case is found by the prompt as it was sent, else by the
    ``id`` in the test's metadata or variables. Repeats are draws. What promptfoo calls an error
    gives a response with an error.
    """

    stored = True

    def __init__(self, spec: str, options: ModelOptions) -> None:
        """Note file and provider; raises MuscleError where there is no such file."""
        self.spec = spec
        self.notices: list[str] = []
        path, self.provider = split_provider(spec.partition(":")[2])
        self.path = Path(path)
        if not self.path.is_file():
            raise MuscleError(f"model '{spec}': no such file; promptfoo eval --output FILE.json writes one")
        content = f"{file_digest(self.path)}#{self.provider}"
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()

    def request_digest(self, case: GoldenCase) -> str:
        """Return the digest of the request, which no store needs."""
        return case.request_digest()

    def respond(self, cases: Sequence[GoldenCase]) -> Iterator[Batch]:
        """Look every case up; raises MuscleError naming the provider or the row that is amiss."""
        rows = _read(self.path)
        index = Index[Record]("promptfoo")
        for number, row in _of_provider(self.path, rows, self.provider):
            try:
                asked = row["prompt"]["raw"]
                given = _chat(asked) or asked
                name = _name(row)
                index.add((given, name), name, [(given, ())], row)
            except (KeyError, TypeError, AttributeError):
                raise _not_a_row(self.path, number) from None
        batch = [(case, _find(case, index)) for case in cases]
        self.notices += missing_notice(self.path, batch)
        yield batch

    def close(self) -> None:
        """Nothing is held."""


def golden_records(path: Path) -> Iterator[tuple[int, Record]]:
    """Make golden records of the tests: the prompts as they were sent, and what is asserted of the output.

    The same prompt to several providers is one case; a test's id under several prompts is told apart by a
    digest of the prompt. Each test needs one assertion of the kinds
    ``equals``, ``contains`` and ``icontains``; raises MuscleError naming a test without.
    """
    made: dict[str, tuple[int, str, str, Record]] = {}
    prompts: dict[str, set[str]] = {}
    for number, row in enumerate(_read(path), 1):
        try:
            asked = str(row["prompt"]["raw"])
            record = {**_prompt(asked), **_truth(row["testCase"].get("assert") or [])}
            name = _name(row)
        except (KeyError, TypeError, AttributeError):
            raise _not_a_row(path, number) from None
        except ValueError as error:
            raise MuscleError(f"{path}: result {number} (test {row.get('testIdx')}): {error}") from None
        made.setdefault(json.dumps([name, record]), (number, name, asked, record))
        prompts.setdefault(name, set()).add(asked)
    for number, name, asked, record in made.values():
        yield number, {"id": f"{name}-{_digest(asked)}" if len(prompts[name]) > 1 else name, **record}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def logs_in(folder: Path) -> list[Path]:
    """The outputs directly in a folder."""
    return sorted(folder.glob("*.json"))


def split_provider(target: str) -> tuple[str, str]:
    """Split ``FILE#PROVIDER``; a file that has the sign in its name is taken as it is."""
    if Path(target).exists():
        return target, ""
    file, _, provider = target.partition("#")
    return file, provider


def _read(path: Path) -> list[Any]:
    try:
        rows = json.loads(path.read_bytes())["results"]
        # Older versions wrote the summary alone.
        rows = rows["results"] if isinstance(rows, dict) else rows
        if isinstance(rows, list) and rows:
            return sorted(rows, key=lambda row: (row["testIdx"], row["promptIdx"]))
    except OSError as error:
        raise MuscleError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise MuscleError(f"{path}: not an output of promptfoo eval (results.results with testIdx is expected)")


def _of_provider(path: Path, rows: Sequence[Record], provider: str) -> Iterator[tuple[int, Record]]:
    found: dict[str, None] = {}
    for number, row in enumerate(rows, 1):
        try:
            names = [name for name in (row["provider"].get("label"), row["provider"]["id"]) if name]
            found[names[0]] = None
        except (KeyError, IndexError, TypeError, AttributeError):
            raise _not_a_row(path, number) from None
        if not provider or provider in names:
            yield number, row
    if (not provider and len(found) > 1) or (provider and not _is_among(rows, provider)):
        some = ", ".join(map(ascii, found))
        raise MuscleError(
            f"{path}: holds the providers {some}; name one of them: promptfoo:{path.name}#{next(iter(found))}"
        )


def _is_among(rows: Sequence[Record], provider: str) -> bool:
    return any(provider in (row["provider"].get("label"), row["provider"]["id"]) for row in rows)


def _not_a_row(path: Path, number: int) -> MuscleError:
    return MuscleError(
        f"{path}: result {number} is none of promptfoo's (prompt, provider, vars and testCase are expected)"
    )


# What was asked and what is right -----------------------------------------------------------------


def _name(row: Record) -> str:
    for place in (row["testCase"].get("metadata") or {}, row.get("vars") or {}):
        if isinstance(place.get("id"), str | int) and not isinstance(place["id"], bool):
            return str(place["id"])
    return _digest(str(row["prompt"]["raw"]))


def _chat(prompt: str) -> Messages:
    """The chat that a prompt in JSON stands for, as promptfoo's chat providers read it; else nothing."""
    try:
        messages = json.loads(prompt) if prompt.lstrip().startswith("[") else None
        return tuple((str(m["role"]), str(m["content"])) for m in messages or ())
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()


def _prompt(raw: str) -> Record:
    messages = [{"role": role, "content": content} for role, content in _chat(raw)]
    return {"messages": messages} if messages else {"prompt": raw}


def _truth(assertions: Sequence[Record]) -> Record:
    counted = [each for each in assertions if each["type"] not in _OF_NO_ACCOUNT]
    if len(counted) != 1 or counted[0]["type"] not in _ANSWERS:
        kinds = ", ".join(str(each["type"]) for each in counted) or "none"
        raise ValueError(
            f"a golden case needs one assertion of the kinds {', '.join(_ANSWERS)}; there are: {kinds}"
        )
    kind, value = counted[0]["type"], counted[0]["value"]
    if isinstance(value, bool | dict | list | None):
        raise ValueError(f"{kind} of {ascii(value)[:60]} makes no golden case; a text or a number does")
    if kind == "equals":
        return {"answer": value}
    folding = kind == "icontains"
    expression = f"({re.escape(str(value))})"
    return {"answer": str(value), "extract": "(?i)" * folding + expression, "ignore_case": folding}


# What was answered --------------------------------------------------------------------------------


def _find(case: GoldenCase, index: Index[Record]) -> Response:
    try:
        rows = index.find(case)
    except NotFoundError as error:
        return Response(error=str(error))
    if case.draw >= len(rows):
        return Response(error=f"promptfoo wrote {len(rows)} outputs to the prompt of {case.id!a}")
    try:
        return _answer(rows[case.draw])
    except (AttributeError, TypeError):
        return Response(error=f"promptfoo's output to the prompt of {case.id!a} cannot be read")


def _answer(row: Record) -> Response:
    response = row.get("response") or {}
    if row.get("failureReason") == _ERROR or response.get("error"):
        return Response(error=f"promptfoo: {_first_line(row.get('error') or response.get('error'))}")
    output = response.get("output")
    if output is None:
        return Response(error=f"promptfoo: {_first_line(row.get('error') or 'no output')}")
    return Response(text=output if isinstance(output, str) else json.dumps(output, ensure_ascii=False))


def _first_line(error: object) -> str:
    return next(iter(str(error).strip().splitlines()), "an error without a text")[:500]
