"""``inspect:LOG``: samples that inspect_ai logged."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_muscle.errors import MuscleError
from pytest_muscle.golden import GoldenCase, Record
from pytest_muscle.models import Batch, ModelOptions, Response
from pytest_muscle.models.lookup import Index, Messages, NotFoundError, Request, stripped
from pytest_muscle.models.recorded import file_digest, missing_notice

SUFFIXES = (".eval", ".json")


class InspectModel:
    """The samples of a log (``.json`` or ``.eval``), or of every log in a folder.

    A case is found by the sample's input and choices, else by its id. The epochs of a sample are its
    draws. A sample with an error, or one that was invalidated, gives a response with an error.
    A multiple choice is answered by what a scorer took the answer to be.
    """

    stored = True

    def __init__(self, spec: str, options: ModelOptions) -> None:
        """Find the logs; raises MuscleError where there are none."""
        self.spec = spec
        self.notices: list[str] = []
        self.path = Path(spec.partition(":")[2])
        self.files = [self.path] if self.path.is_file() else logs_in(self.path)
        if not self.files:
            raise MuscleError(f"model '{spec}': no log of inspect_ai there (*.eval or *.json)")
        self.fingerprint = hashlib.sha256("".join(map(file_digest, self.files)).encode()).hexdigest()

    def request_digest(self, case: GoldenCase) -> str:
        """Return the digest of the request, which no store needs."""
        return case.request_digest()

    def respond(self, cases: Sequence[GoldenCase]) -> Iterator[Batch]:
        """Look every case up; raises MuscleError naming a log that cannot be read."""
        index = Index[Record]("inspect_ai")
        tasks: dict[str, Path] = {}
        for file in self.files:
            log = _read(file)
            _refuse_second_run(tasks, log["eval"]["task"], file)
            if log["status"] != "success":
                self.notices.append(f"{file}: the run ended as {log['status']!a}; samples may be missing")
            for number, sample in enumerate(log["samples"], 1):
                try:
                    if not isinstance(sample["epoch"], int):
                        raise TypeError
                    index.add((file, sample["id"]), str(sample["id"]), _requests(sample), sample)
                except (KeyError, TypeError, AttributeError):
                    raise _not_a_sample(file, number) from None
        batch = [(case, _find(case, index)) for case in cases]
        self.notices += missing_notice(self.path, batch)
        yield batch

    def close(self) -> None:
        """Nothing is held."""


def golden_records(path: Path) -> Iterator[tuple[int, Record]]:
    """Make golden records of a log's samples: input, choices and target, each sample once.

    What solvers made of an input is not part of it. Texts are compared as a whole unless the scorer was
    ``includes`` or the dataset's ``extract`` says otherwise. Raises MuscleError naming the sample that
    makes no case.
    """
    log = _read(path)
    seen = set()
    for number, sample in enumerate(log["samples"], 1):
        try:
            name = str(sample["id"])
            if name in seen:
                continue
            seen.add(name)
            record = {"id": name, "messages": _messages(sample), **_truth(sample, _is_by_inclusion(log))}
        except (KeyError, TypeError, AttributeError):
            raise _not_a_sample(path, number) from None
        except ValueError as error:
            raise MuscleError(f"{path}: sample {name!a}: {error}") from None
        yield number, record


def logs_in(folder: Path) -> list[Path]:
    """The logs directly in a folder."""
    return sorted(file for file in folder.glob("*") if file.suffix in SUFFIXES and file.is_file())


def _read(path: Path) -> Record:
    try:
        log = _read_zip(path) if path.suffix == ".eval" else json.loads(path.read_bytes())
        if isinstance(log["eval"]["task"], str) and isinstance(log["status"], str):
            return {**log, "samples": list(log.get("samples") or ())}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    except OSError as error:
        raise MuscleError(f"{path}: cannot be read: {error.strerror or error}") from None
    raise MuscleError(f"{path}: not a log of inspect_ai (eval, status and samples are expected)")


def _read_zip(path: Path) -> Any:
    try:
        from inspect_ai.log import read_eval_log  # type: ignore[import-not-found]
    except ImportError:
        raise MuscleError(
            f"{path}: reading an .eval log needs inspect_ai: pip install inspect-ai, or convert the log "
            "where that is installed: inspect log convert --to json --output-dir DIR LOG"
        ) from None
    from zipfile import BadZipFile

    try:
        return read_eval_log(str(path)).model_dump(mode="json")
    except BadZipFile as error:
        raise ValueError(str(error)) from None


def _not_a_sample(path: Path, number: int) -> MuscleError:
    return MuscleError(
        f"{path}: sample {number} is none of inspect_ai's (id, epoch, input and target are expected)"
    )


def _refuse_second_run(tasks: dict[str, Path], task: str, file: Path) -> None:
    first = tasks.setdefault(task, file)
    if first is not file:
        raise MuscleError(f"task '{task}' was logged twice, in {first} and {file}; name one of the logs")


# What was asked -----------------------------------------------------------------------------------


def _requests(sample: Record) -> list[Request]:
    choices = stripped(sample.get("choices") or ())
    given: str | list[Any] = sample["input"]
    if isinstance(given, str):
        # A model is given a text as a chat of one message.
        return [(given, choices), ((("user", given),), choices)]
    try:
        return [(tuple((m["role"], m["content"]) for m in _messages(sample)), choices)]
    except ValueError:
        # A picture, say: such a sample is found by its id.
        no_request: Messages = ()
        return [(no_request, choices)]


def _messages(sample: Record) -> list[dict[str, str]]:
    given = sample["input"]
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return [{"role": message["role"], "content": _text(message["content"])} for message in given]


def _text(content: str | Sequence[Mapping[str, str]]) -> str:
    if isinstance(content, str):
        return content
    other = next((part["type"] for part in content if part["type"] != "text"), None)
    if other is not None:
        raise ValueError(f"its input holds {other!a}, and golden cases are texts only")
    return "\n".join(part["text"] for part in content)


# What is right ------------------------------------------------------------------------------------


def _truth(sample: Record, by_inclusion: bool) -> Record:
    target = sample["target"]
    targets = [str(each) for each in (target if isinstance(target, list) else [target])]
    choices = sample.get("choices")
    if choices:
        right = [_position(letter) for each in targets for letter in re.findall(r"\d+|[^\W\d_]", each)]
        if len(right) != 1 or not 0 <= right[0] < len(choices):
            raise ValueError(f"its target {target!a} is not the letter of one choice")
        return {"choices": choices, "answer": right[0]}
    if by_inclusion:
        wanted = "|".join(map(re.escape, targets))
        return {"answer": targets, "extract": f"(?i)({wanted})", "ignore_case": True}
    return {"answer": targets}


def _is_by_inclusion(log: Record) -> bool:
    scorers = log["eval"].get("scorers") or ()
    return [scorer["name"].rpartition("/")[2] for scorer in scorers] == ["includes"]


def _position(letter: str) -> int:
    # After Z, inspect_ai counts 1, 2, 3 ...
    return 25 + int(letter) if letter.isdigit() else ord(letter.upper()) - ord("A")


# What was answered --------------------------------------------------------------------------------


def _find(case: GoldenCase, index: Index[Record]) -> Response:
    try:
        epochs = {sample["epoch"]: sample for sample in index.find(case)}
    except NotFoundError as error:
        return Response(error=str(error))
    sample = epochs.get(case.draw + 1)
    if sample is None:
        return Response(error=f"inspect_ai logged {len(epochs)} epochs of the sample {case.id!a}")
    try:
        return _answer(case, sample)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return Response(error=f"inspect_ai's sample {sample['id']!a} cannot be read")


def _answer(case: GoldenCase, sample: Record) -> Response:
    failure = sample.get("error") or sample.get("invalidation")
    if failure:
        return Response(error=f"inspect_ai: {failure.get('message') or 'the sample was invalidated'}")
    output = sample["output"]
    if output.get("error"):
        return Response(error=f"inspect_ai: {output['error']}")
    if not output["choices"]:
        return Response(error="inspect_ai logged no output of the model")
    if case.choices:
        return _chosen(case, sample)
    return Response(text=_completion(output))


def _completion(output: Record) -> str:
    return _text([p for p in _parts(output["choices"][0]["message"]["content"]) if p["type"] == "text"])


def _parts(content: str | list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _chosen(case: GoldenCase, sample: Record) -> Response:
    scores = (sample.get("scores") or {}).values()
    answers = {score["answer"].strip() for score in scores if isinstance(score.get("answer"), str)}
    if len(answers) != 1:
        what = "different answers" if answers else "no answer"
        return Response(error=f"inspect_ai's scorers noted {what} to the sample {sample['id']!a}")
    (answer,) = answers
    said = _completion(sample["output"])
    if not answer:
        return Response(text=said, method="letter")
    if re.fullmatch(r"[^\W\d_]|\d+", answer) and 0 <= _position(answer) < len(case.choices):
        return Response(text=said, choice=_position(answer), method="letter")
    if answer in stripped(case.choices):
        return Response(text=said, choice=stripped(case.choices).index(answer), method="letter")
    return Response(error=f"inspect_ai's scorer noted {answer!a}, which is not one of the choices")
