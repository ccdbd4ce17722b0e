"""From the command line and ``[tool.pytest-muscle]`` to one validated ``Settings``."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_muscle.errors import MuscleError, did_you_mean
from pytest_muscle.settings import parsing as read
from pytest_muscle.settings.options import (
    MODEL_OPTIONS,
    OPTIONS,
    PYPROJECT_ONLY,
    SERVER_OPTIONS,
    TABLES,
    THRESHOLDS,
)
from pytest_muscle.settings.values import ACCEPTED, ModelSpec, Settings, Threshold

TABLE = "tool.pytest-muscle"


def read_table(file: Path) -> dict[str, Any]:
    """Return ``[tool.pytest-muscle]`` of a TOML file; empty where there is none.

    Raises MuscleError where the file is not valid TOML.
    """
    try:
        content = file.read_bytes()
    except OSError:
        return {}
    if b"pytest-muscle" not in content:
        return {}
    try:
        table: dict[str, Any] = tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise MuscleError(f"{file}: not valid TOML: {error}") from None
    for name in TABLE.split("."):
        table = table.get(name, {})
        if not isinstance(table, dict):
            raise MuscleError(f"{file}: '{name}' of [{TABLE}] must be a table, not {table!r}")
    return table


def load_settings(
    root: Path,
    cwd: Path,
    given: Mapping[str, Any],
    file: Path | None = None,
    table: Mapping[str, Any] | None = None,
) -> Settings | None:
    """Join the command line (``given``, by key) with the project's table; None where no model is named.

    The table is read from ``file`` (default: ``root/pyproject.toml``) unless it is given. Paths on the
    command line start from ``cwd``, those in the file from its own folder. Raises MuscleError naming
    the key, its place and the remedy.
    """
    file = file or root / "pyproject.toml"
    in_project = table is None
    origin = str(file) if in_project else "the arguments"
    table = read_table(file) if table is None else table
    given = {key: value for key, value in given.items() if value not in (None, False, [])}
    if not ({"old", "new"} & (given.keys() | table.keys())):
        return None
    settings = _Loader(root, cwd, file, origin, table, given).load()
    return replace(settings, accepted=root / ACCEPTED) if in_project else settings


@dataclass(frozen=True, slots=True)
class _Loader:
    root: Path
    cwd: Path
    file: Path
    origin: str
    table: Mapping[str, Any]
    given: Mapping[str, Any]

    def load(self) -> Settings:
        from pytest_muscle.models import absolute_spec

        keys = [option.key for option in OPTIONS] + [*PYPROJECT_ONLY, *TABLES]
        self._check_keys(self.table, keys, TABLE)
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for option in OPTIONS:
            if option.key in self.given:
                values[option.key] = self._parsed(option.parse, self.given[option.key], option.flag)
                sources[option.key] = option.flag
            elif option.key in self.table:
                values[option.key] = self._from_table(option.key, option.parse)
                sources[option.key] = self.file.name
        for key, parse in PYPROJECT_ONLY.items():
            if key in self.table:
                values[key] = self._from_table(key, parse)
                sources[key] = self.file.name
        for missing, other in (("old", "new"), ("new", "old")):
            if missing not in values:
                raise MuscleError(
                    f"the {other} model is given, the {missing} one is not: add --muscle-{missing}=SPEC "
                    f"or '{missing}' in [{TABLE}] of {self.origin}"
                )
        models = self._models()
        for key in ("old", "new"):
            name = values[key]
            values[key] = models.get(name) or ModelSpec(name, absolute_spec(name, self._folder(sources[key])))
        for key in ("json", "record", "report", "markdown", "history", "train", "adapter_output"):
            if key in values:
                values[key] = self._folder(sources[key]) / values[key]
        if "train" in values and not values["train"].is_file():
            raise MuscleError(f"training records {values['train']}: no such file")
        if values.get("adapter", "off") != "off" and "train" not in values:
            raise MuscleError(
                f"adapter = {values['adapter']} needs training records: add --muscle-train=PATH "
                f"or 'train' in [{TABLE}] of {self.origin}"
            )
        golden = self._golden(values.get("golden", ()), sources.get("golden", ""))
        values["golden"] = tuple(golden)
        values["golden_logs"] = {path: kind for path, kind in golden.items() if kind}
        values["cache_dir"] = self._cache_dir(values, sources)
        settings = Settings(
            root=self.root,
            sources=sources,
            thresholds=tuple(self._thresholds(self._subtable(self.table, "thresholds", TABLE))),
            datasets=self._datasets(),
            training=self._training(),
            **values,
        )
        self._check_samples(settings)
        return settings

    def _check_samples(self, settings: Settings) -> None:
        needs = any(threshold.name == "max_excess_nfr" for threshold in settings.thresholds)
        if needs and settings.samples_of(settings.old) < 2:
            raise MuscleError(
                f"'max_excess_nfr' in [{TABLE}.thresholds] of {self.origin} needs the old model to be asked "
                "at least twice: add --muscle-samples=5"
            )

    def _folder(self, source: str) -> Path:
        return self.cwd if source.startswith("--") else self.file.parent

    def _cache_dir(self, values: dict[str, Any], sources: Mapping[str, str]) -> Path | None:
        if values.pop("no_cache", False):
            return None
        folder = values.get("cache_dir")
        return self._folder(sources["cache_dir"]) / folder if folder else self.root / ".pytest-muscle"

    def _golden(self, patterns: Sequence[str], source: str) -> dict[Path, str]:
        """Return the paths in order, each with the kind of log that it is or an empty text."""
        from pytest_muscle.models import LOGS

        found: dict[Path, str] = {}
        named = source if source.startswith("--") else f"'golden' in [{TABLE}] of {self.origin}"
        for pattern in patterns:
            kind, _, rest = pattern.partition(":")
            kind, pattern = (kind, rest) if kind in LOGS and rest else ("", pattern)
            for path in _matches(self._folder(source), pattern, named, kind):
                found.setdefault(path, kind)
        return found

    def _thresholds(
        self, table: Mapping[str, Any], dataset: str = "", slice_name: str = ""
    ) -> Iterator[Threshold]:
        place = f"{TABLE}.thresholds"
        tables = () if slice_name else ("slices",) if dataset else ("slices", "datasets")
        if dataset:
            place += f'.datasets."{dataset}"'
        if slice_name:
            place += f'.slices."{slice_name}"'
            if not all(slice_name.partition("=")):
                raise MuscleError(
                    f'[{place}] in {self.origin}: a slice is named tag=value, such as "lang=de"'
                )
        self._check_keys(table, (*THRESHOLDS, *tables), place)
        for name in THRESHOLDS:
            if name in table:
                yield self._threshold(name, table[name], place, dataset, slice_name)
        for nested in tables:
            for name, inner in self._subtable(table, nested, place).items():
                inner_place = f'{place}.{nested}."{name}"'
                self._check_table(inner, inner_place)
                if nested == "slices":
                    yield from self._thresholds(inner, dataset, name)
                else:
                    yield from self._thresholds(inner, name)

    def _threshold(self, name: str, value: Any, place: str, dataset: str, slice_name: str) -> Threshold:
        full = value if isinstance(value, dict) else {"limit": value}
        if full is value:
            place = f"{place}.{name}"
            self._check_keys(full, ("limit", "decision"), place)
            if "limit" not in full:
                raise MuscleError(f"key 'limit' is missing in [{place}] of {self.origin}; it is the budget")
        named = f"'limit' in [{place}]" if full is value else f"'{name}' in [{place}]"
        limit = self._parsed(read.fraction, full["limit"], f"{named} of {self.origin}")
        decision = full.get("decision", self.table.get("decision", "point"))
        self._parsed(PYPROJECT_ONLY["decision"], decision, f"'decision' in [{place}] of {self.origin}")
        return Threshold(name, limit, dataset, slice_name, decision)

    def _datasets(self) -> dict[str, dict[str, Any]]:
        from pytest_muscle.golden import check_defaults

        datasets = self._subtable(self.table, "datasets", TABLE)
        for name, defaults in datasets.items():
            place = f'{TABLE}.datasets."{name}"'
            self._check_table(defaults, place)
            try:
                check_defaults(defaults)
            except MuscleError as error:
                raise MuscleError(f"[{place}] in {self.origin}: {error}") from None
        return dict(datasets)

    def _training(self) -> Mapping[str, Any]:
        table = self._subtable(self.table, "training", TABLE)
        if table:
            from pytest_muscle.adapter.config import CompatibilityConfig

            try:
                CompatibilityConfig.from_table(table)
            except MuscleError as error:
                raise MuscleError(f"[{TABLE}.training] in {self.origin}: {error}") from None
        return table

    def _models(self) -> dict[str, ModelSpec]:
        from pytest_muscle.models import absolute_spec

        models = {}
        for name, table in self._subtable(self.table, "models", TABLE).items():
            place = f"{TABLE}.models.{name}"
            self._check_table(table, place)
            if "spec" not in table:
                raise MuscleError(f"key 'spec' is missing in [{place}] of {self.origin}; it names the model")
            self._check_keys(table, ("spec", "samples", *MODEL_OPTIONS), place)
            for key, parse in {"spec": read.text, "samples": read.count, **MODEL_OPTIONS}.items():
                if key in table:
                    self._parsed(parse, table[key], f"'{key}' in [{place}] of {self.origin}")
            options = {key: value for key, value in table.items() if key in MODEL_OPTIONS}
            if not table["spec"].startswith("openai:"):
                for key in filter(SERVER_OPTIONS.__contains__, options):
                    raise MuscleError(
                        f"'{key}' in [{place}] of {self.origin} is for servers, but its spec "
                        f"{table['spec']!r} names none; a server's begins with openai:"
                    )
            spec = absolute_spec(table["spec"], self.file.parent)
            models[name] = ModelSpec(name, spec, options, table.get("samples"))
        return models

    def _from_table(self, key: str, parse: Callable[[Any], Any]) -> Any:
        return self._parsed(parse, self.table[key], f"'{key}' in [{TABLE}] of {self.origin}")

    def _parsed(self, parse: Callable[[Any], Any], value: Any, place: str) -> Any:
        try:
            return parse(value)
        except ValueError as error:
            raise MuscleError(f"{place} {error}, not {value!r}") from None

    def _subtable(self, table: Mapping[str, Any], key: str, place: str) -> Mapping[str, Any]:
        inner = table.get(key, {})
        self._check_table(inner, f"{place}.{key}")
        return inner  # type: ignore[no-any-return]

    def _check_table(self, value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise MuscleError(f"[{place}] in {self.origin} must be a table, not {value!r}")

    def _check_keys(self, table: Mapping[str, Any], known: Sequence[str], place: str) -> None:
        for key in table:
            if key not in known:
                hint = did_you_mean(key, known) or f"; the keys are {', '.join(known)}"
                raise MuscleError(f"unknown key '{key}' in [{place}] of {self.origin}{hint}")


def _matches(folder: Path, pattern: str, named: str, kind: str) -> list[Path]:
    from pytest_muscle.models import golden_logs

    path = (folder / pattern).resolve()
    if path.is_file():
        return [path]
    if kind and path.is_dir():
        if logs := golden_logs(kind, path):
            return logs
        raise MuscleError(f"golden dataset {kind}:{pattern}: no log of that kind in {path}; correct {named}")
    if not any(character in pattern for character in "*?["):
        raise MuscleError(f"golden dataset {pattern}: no such file (looked for {path}); correct {named}")
    from glob import glob

    # Path.glob refuses an absolute pattern.
    found = glob(pattern, root_dir=folder, recursive=True)  # noqa: PTH207
    paths = [path for name in found if (path := (folder / name).resolve()).is_file()]
    if not paths:
        raise MuscleError(f"golden dataset {pattern}: no file matches in {folder}; correct {named}")
    return sorted(paths)
