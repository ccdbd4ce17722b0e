"""Responses already computed: resume, reuse, sharing between workers."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pytest_muscle.errors import MuscleError
from pytest_muscle.models import Response

if TYPE_CHECKING:
    from filelock import BaseFileLock

T = TypeVar("T")
VERSION = 1
_CHUNK = 500


class Store:
    """A SQLite file of responses, keyed by the model's fingerprint and the request's digest.

    Both keys are digests of content, so one model can never be given another's responses. Each batch
    is one transaction: a killed run keeps every batch that was put. Each row carries a checksum over
    its keys and its content; a row that does not match is dropped and asked again. A file that is found
    damaged is set aside, and a new one begun. A response with an error is held for the run of this id only:
    the processes of one run agree on it, and the next run asks again.
    """

    def __init__(self, folder: Path, run_id: str = "") -> None:
        """Open or create ``folder/responses.sqlite``.

        Raises MuscleError where the folder cannot be written or comes from a newer version.
        """
        self.path = folder / "responses.sqlite"
        self.notices: list[str] = []
        self._run = run_id
        try:
            folder.mkdir(parents=True, exist_ok=True)
            ignore = folder / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
            self._connection = self._connect()
        except (OSError, sqlite3.Error) as error:
            raise MuscleError(
                f"{self.path}: the store of responses cannot be opened: {error}; "
                "use --muscle-cache-dir DIR or --muscle-no-cache"
            ) from None

    def _connect(self) -> sqlite3.Connection:
        try:
            return self._open()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            self._set_aside(error)
            return self._open()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        try:
            # SQLite does not wait for another process where the journal's mode is set.
            with self.lock("opening"):
                self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._inode = self.path.stat().st_ino
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        # Bytes that are no UTF-8 any more must reach the checksum, which refuses them.
        connection.text_factory = lambda value: value.decode("utf-8", "replace")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            raise MuscleError(
                f"{self.path}: written by a newer pytest-muscle (format {version}, this one reads "
                f"{VERSION}); upgrade, or use --muscle-cache-dir DIR"
            )
        connection.execute(
            "CREATE TABLE IF NOT EXISTS responses (model TEXT, request TEXT, response TEXT, checksum TEXT, "
            "PRIMARY KEY (model, request)) WITHOUT ROWID"
        )
        connection.execute(
            "CREATE TABLE IF NOT EXISTS failures (run TEXT, model TEXT, request TEXT, response TEXT, "
            "PRIMARY KEY (run, model, request)) WITHOUT ROWID"
        )
        connection.execute(f"PRAGMA user_version={VERSION}")

    def _set_aside(self, error: sqlite3.DatabaseError) -> None:
        aside = self.path.with_name(f"damaged-{time.time_ns()}.sqlite")
        self.path.replace(aside)
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self.notices.append(f"{self.path}: damaged ({error}); set aside as {aside.name}, starting afresh")

    def _do(self, action: Callable[[sqlite3.Connection], T]) -> T:
        try:
            try:
                return action(self._connection)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                self._connection.close()
                # Another process may have found the same damage and begun a new file.
                if self.path.exists() and self.path.stat().st_ino == self._inode:
                    self._set_aside(error)
                self._connection = self._connect()
                return action(self._connection)
        except (sqlite3.Error, OSError) as error:
            raise MuscleError(
                f"{self.path}: the store of responses failed: {error}; free some space or delete the file, "
                "or use --muscle-cache-dir DIR or --muscle-no-cache"
            ) from None

    def get(self, model: str, requests: Sequence[str]) -> dict[str, Response]:
        """Return the responses held for these request digests."""
        held = self._failures(model, requests)
        damaged = []
        for start in range(0, len(requests), _CHUNK):
            chunk = requests[start : start + _CHUNK]
            marks = ",".join("?" * len(chunk))
            query = (
                f"SELECT request, response, checksum FROM responses WHERE model = ? AND request IN ({marks})"
            )
            for request, text, checksum in self._do(partial(_fetch, query, (model, *chunk))):
                if checksum == _checksum(model, request, text):
                    held[request] = decode_response(json.loads(text))
                else:
                    damaged.append(request)
        if damaged:
            self.notices.append(
                f"{self.path}: {len(damaged)} damaged responses dropped; they are asked again"
            )
            statement = "DELETE FROM responses WHERE model = ? AND request = ?"
            self._do(partial(_change, statement, [(model, request) for request in damaged]))
        return held

    def _failures(self, model: str, requests: Sequence[str]) -> dict[str, Response]:
        query = "SELECT request, response FROM failures WHERE run = ? AND model = ?"
        rows = self._do(partial(_fetch, query, (self._run, model)))
        wanted = set(requests) if rows else ()
        return {request: decode_response(json.loads(text)) for request, text in rows if request in wanted}

    def put(self, model: str, responses: Iterable[tuple[str, Response]]) -> None:
        """Keep a batch of ``(request digest, response)``; on return it is on disk."""
        rows, failures = [], []
        for request, response in responses:
            text = json.dumps(encode_response(response))
            if response.error is None:
                rows.append((model, request, text, _checksum(model, request, text)))
            else:
                failures.append((self._run, model, request, text))
        for table, values in (("responses", rows), ("failures", failures)):
            if values:
                self._do(partial(_change, f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?)", values))

    def forget_failures(self) -> None:
        """Drop the responses with an error, at the end of the run."""
        self._do(partial(_change, "DELETE FROM failures WHERE run = ?", [(self._run,)]))

    def lock(self, model: str) -> BaseFileLock:
        """Return a lock between processes on asking this model."""
        from filelock import FileLock

        name = hashlib.sha256(model.encode()).hexdigest()[:16]
        return FileLock(self.path.with_name(f"{name}.lock"))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    # Its subclasses stand for what may pass, such as a full disk or a file that is locked.
    return type(error) is sqlite3.DatabaseError


def _fetch(query: str, values: tuple[str, ...], connection: sqlite3.Connection) -> list[tuple[str, ...]]:
    return connection.execute(query, values).fetchall()


def _change(statement: str, rows: Sequence[tuple[str, ...]], connection: sqlite3.Connection) -> None:
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(statement, rows)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
        raise


def encode_response(response: Response) -> dict[str, object]:
    """Return plain data for JSON; an infinite log-likelihood is written as JSON's ``-Infinity``."""
    plain: dict[str, object] = {}
    if response.text is not None:
        plain["text"] = response.text
    if response.choice is not None:
        plain["choice"] = response.choice
    if response.loglikelihoods:
        plain["loglikelihoods"] = list(response.loglikelihoods)
    if response.error is not None:
        plain["error"] = response.error
    if response.method is not None:
        plain["method"] = response.method
    return plain


def decode_response(plain: Mapping[str, object]) -> Response:
    """The inverse of :func:`encode_response`, for data this package wrote."""
    return Response(
        text=plain.get("text"),  # type: ignore[arg-type]
        choice=plain.get("choice"),  # type: ignore[arg-type]
        loglikelihoods=tuple(plain.get("loglikelihoods", ())),  # type: ignore[arg-type]
        error=plain.get("error"),  # type: ignore[arg-type]
        method=plain.get("method"),  # type: ignore[arg-type]
    )


def _checksum(model: str, request: str, text: str) -> str:
    return hashlib.sha256(f"{model}\0{request}\0{text}".encode()).hexdigest()[:16]
