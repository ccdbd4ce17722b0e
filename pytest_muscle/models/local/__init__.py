"""Local models: transformers causal LMs, GGUF files and PEFT adapters, run on this machine."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, cast

from pytest_muscle.models import Batch, ModelOptions, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from transformers import PreTrainedModel

    from pytest_muscle.golden import GoldenCase
    from pytest_muscle.models.checkpoint import Checkpoint
    from pytest_muscle.models.local.encoding import Encoder, Prompt

T = TypeVar("T")

_PLAIN = (
    "runs in plain padded batches, because its layers do not compute packed ones as they compute each text "
    "alone; the answers are right, and take longer"
)
_TOO_LARGE = "the device ran out of memory even on this case alone; use a smaller dtype or another device"


class LocalModel:
    """A checkpoint on this machine, answering in batches sized to its memory.

    Multiple choice is scored as lm-evaluation-harness's transformers backend does it; texts are generated
    greedily, or drawn at the temperature in the options, whatever sampling the checkpoint itself suggests.
    """

    stored = False

    def __init__(self, spec: str, options: ModelOptions) -> None:
        """Find the checkpoint; raises MuscleError where there is none or a part of it is missing."""
        from pytest_muscle.models.checkpoint import resolve_checkpoint

        self.spec = spec
        self.notices: list[str] = []
        self._options = options
        self._checkpoint: Checkpoint = resolve_checkpoint(
            spec, allow_pickle=options.allow_pickle, revision=options.revision
        )
        self._loaded: tuple[PreTrainedModel, Encoder] | None = None

    @property
    def fingerprint(self) -> str:
        """A digest of the checkpoint, the precision, the system prompt and how texts are drawn.

        ``auto`` precision follows the device, which is therefore part of it.
        """
        options = self._options
        precision = f"auto on {options.device}" if options.dtype == "auto" else options.dtype
        parts: list[object] = [self._checkpoint.fingerprint(), precision, options.system_prompt]
        if options.temperature:
            parts += [options.temperature, options.seed]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def request_digest(self, case: GoldenCase) -> str:
        """Return the digest of the prompt, the choices and where generation ends.

        What is not drawn is the same in each draw.
        """
        is_drawn = self._options.temperature > 0 and case.task != "multiple_choice"
        return (case if is_drawn else replace(case, draw=0)).request_digest()

    def respond(self, cases: Sequence[GoldenCase]) -> Iterator[Batch]:
        """Answer the cases batch by batch: choices first, then texts."""
        if not cases:
            return
        choosing = [case for case in cases if case.task == "multiple_choice"]
        writing = [case for case in cases if case.task != "multiple_choice"]
        if choosing:
            yield from self._choose(choosing)
        if writing:
            yield from self._write(writing)
        if writing and self._options.samples > 1 and not self._options.temperature:
            self.notices.append(f"{self.spec}: greedy, so that every draw is the same; give it a temperature")
        if cut := len(self._load()[1].cut):
            self.notices.append(
                f"{self.spec}: {cut:,} prompts exceed the model's context of {self._load()[1].max_length:,} "
                "tokens; they lost their beginning"
            )

    def close(self) -> None:
        """Free the weights, so that the other model can be loaded."""
        if self._loaded:
            from pytest_muscle.models.local.batching import release_memory
            from pytest_muscle.models.local.cores import regain_cores

            self._loaded = None
            release_memory()
            regain_cores()

    def _load(self) -> tuple[PreTrainedModel, Encoder]:
        if self._loaded is None:
            from pytest_muscle.models.checkpoint import load_model, load_tokenizer
            from pytest_muscle.models.local.cores import share_cores
            from pytest_muscle.models.local.encoding import Encoder, context_length
            from pytest_muscle.models.local.linear import pack_linears

            options = self._options
            share_cores()
            tokenizer = load_tokenizer(self._checkpoint, trust_remote_code=options.trust_remote_code)
            model = load_model(
                self._checkpoint,
                device=options.device,
                dtype=options.dtype,
                trust_remote_code=options.trust_remote_code,
            )
            pack_linears(cast("PreTrainedModel", model))
            encoder = Encoder(tokenizer, context_length(model.config, tokenizer), options.system_prompt)
            self._loaded = (cast("PreTrainedModel", model), encoder)
        return self._loaded

    def _choose(self, cases: Sequence[GoldenCase]) -> Iterator[Batch]:
        from pytest_muscle.models.local.batching import scoring_budget
        from pytest_muscle.models.local.choosing import score

        model, encoder = self._load()
        asked, requests, refused = _encoded(cases, encoder.choices)
        if refused:
            yield refused
        if not requests:
            return
        budget = scoring_budget(model, self._options.batch_tokens)
        for batch in score(model, requests, budget, self._tell_plain):
            yield [(asked[i], _chosen(scores)) for i, scores in batch]

    def _write(self, cases: Sequence[GoldenCase]) -> Iterator[Batch]:
        from pytest_muscle.models.local.batching import generation_budget
        from pytest_muscle.models.local.generation import generate

        model, encoder = self._load()
        asked, prompts, refused = _encoded(cases, encoder.prompt)
        if refused:
            yield refused
        if self._options.temperature:
            prompts = [self._drawing(prompt, case) for prompt, case in zip(prompts, asked, strict=True)]
        budget = generation_budget(model, self._options.batch_tokens)
        for batch in generate(model, encoder.tokenizer, prompts, budget, self._tell_plain):
            yield [(asked[i], _written(text)) for i, text in batch]

    def _tell_plain(self) -> None:
        notice = f"{self.spec}: {_PLAIN}"
        if notice not in self.notices:
            self.notices.append(notice)

    def _drawing(self, prompt: Prompt, case: GoldenCase) -> Prompt:
        name = f"{self._options.seed}/{case.request_digest()}"
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
        return replace(prompt, temperature=self._options.temperature, seed=seed)


def _encoded(
    cases: Sequence[GoldenCase], encode: Callable[[GoldenCase], T]
) -> tuple[list[GoldenCase], list[T], list[tuple[GoldenCase, Response]]]:
    from pytest_muscle.models.local.encoding import UnaskableError

    asked, requests, refused = [], [], []
    for case in cases:
        try:
            requests.append(encode(case))
            asked.append(case)
        except UnaskableError as error:
            refused.append((case, Response(error=str(error))))
    return asked, requests, refused


def _chosen(scores: tuple[float, ...] | None) -> Response:
    if scores is None:
        return Response(error=_TOO_LARGE)
    if any(math.isnan(score) for score in scores):
        return Response(error="the model returned NaN as a log-likelihood")
    return Response(loglikelihoods=scores)


def _written(text: str | None) -> Response:
    return Response(error=_TOO_LARGE) if text is None else Response(text=text)
