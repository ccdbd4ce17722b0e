"""Everything that can be set, and how each value is read.

Every pytest run imports this module, also one that compares no models: it imports next to nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

from pytest_muscle.settings import parsing as read

Decision = Literal["point", "significant", "assured"]
AdapterMode = Literal["off", "auto", "always"]
Inconclusive = Literal["fail", "warn", "pass"]


class Option(NamedTuple):
    """One setting: its key in pyproject.toml and, with ``--muscle-`` before it, on the command line."""

    key: str
    parse: Callable[[Any], Any]
    help: str
    metavar: str | None = "PATH"
    repeatable: bool = False

    @property
    def flag(self) -> str:
        """The option on the command line."""
        return f"--muscle-{self.key.replace('_', '-')}"

    @property
    def dest(self) -> str:
        """The option's attribute among pytest's."""
        return f"muscle_{self.key}"


_decision = read.one_of(*get_args(Decision))


OPTIONS = (
    Option("old", read.text, "the old model, whose users are to keep what works", "SPEC"),
    Option("new", read.text, "the new model, the release to be judged", "SPEC"),
    Option(
        "golden",
        read.texts,
        "a golden dataset, or lm-eval:, inspect: or promptfoo: and its log; may be repeated",
        repeatable=True,
    ),
    Option(
        "adapter",
        read.one_of(*get_args(AdapterMode)),
        "train a compatibility adapter: off (default), auto (when a gate is exceeded) or always",
        "WHEN",
    ),
    Option("train", read.text, "training records for the adapter, in the golden format"),
    Option("adapter_output", read.text, "where the adapter is written (default: in the cache folder)", "DIR"),
    Option("allow_overlap", read.flag, "let training records repeat golden cases", None),
    Option("json", read.text, "write the result as JSON"),
    Option("report", read.text, "write a report for people, one HTML file"),
    Option("markdown", read.text, "write a summary in Markdown"),
    Option("history", read.text, "append this run to a JSONL file, whose trend the report draws"),
    Option("accept", read.flag, "accept today's flips: write them to muscle-accepted.toml", None),
    Option("record", read.text, "write both models' responses as JSONL, to be used as recorded:FILE", "DIR"),
    Option("limit", read.count, "take the first N cases of each dataset only", "N"),
    Option("samples", read.count, "ask each model N times; report what flips by itself", "N"),
    Option(
        "inconclusive",
        read.one_of(*get_args(Inconclusive)),
        "what becomes of a gate that the cases are too few to decide: fail, warn or pass",
        "WHAT",
    ),
    Option("device", read.text, "where local models run: auto, cpu, cuda, cuda:1, mps ...", "DEVICE"),
    Option("dtype", read.text, "their number format: auto, float32, bfloat16, float16", "DTYPE"),
    Option("batch_tokens", read.count, "tokens in one batch of a local model", "N"),
    Option("cache_dir", read.text, "where responses are kept (default: .pytest-muscle)", "DIR"),
    Option("no_cache", read.flag, "neither use nor keep responses of other runs", None),
)
PYPROJECT_ONLY: dict[str, Callable[[Any], Any]] = {
    "decision": _decision,
    "slice_pairs": read.flag,
    "tolerance": read.fraction,
    "bertscore_model": read.text,
    "metrics": read.texts,
    "launcher": read.text,
    "strict_accepted": read.flag,
}
TABLES = ("thresholds", "datasets", "models", "training")
THRESHOLDS = (
    "max_nfr",
    "max_nfr_mc",
    "max_accuracy_drop",
    "max_mean_regression",
    "max_error_rate",
    "max_excess_nfr",
    "max_inherited_error_rate",
)
SERVER_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "base_url": read.text,
    "api_key_env": read.text,
    "api": read.one_of("chat", "completions"),
    "choices": read.one_of("log-likelihood", "letter"),
    "concurrency": read.count,
    "timeout": read.seconds,
    "retries": read.whole,
    "time_budget": read.seconds,
    "extra_body": read.table,
    "answers_as": read.text,
}
MODEL_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "device": read.text,
    "dtype": read.text,
    "batch_tokens": read.count,
    "system_prompt": read.text,
    "trust_remote_code": read.flag,
    "allow_pickle": read.flag,
    "revision": read.text,
    "temperature": read.positive,
    "seed": read.whole,
    **SERVER_OPTIONS,
}
