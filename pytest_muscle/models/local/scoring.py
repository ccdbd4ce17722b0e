"""Log-likelihoods of choices by plain padded batches: the path that every causal LM takes."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING

import torch

from pytest_muscle.models.local.batching import Budget, run_in_batches
from pytest_muscle.models.local.transfers import sent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedModel

    from pytest_muscle.models.local.encoding import Choices
    from pytest_muscle.models.local.linear import PackedLinear

Scores = tuple[float, ...]
ScoredBatch = list[tuple[int, Scores | None]]

# The positions whose logits are looked at together: whole ones, and those made block by block.
_BLOCK = 64
_POSITIONS = 256


@torch.inference_mode()
def score(model: PreTrainedModel, requests: Sequence[Choices], budget: Budget) -> Iterator[ScoredBatch]:
    """Yield ``(index of the request, log-likelihood of each choice in nats)``, longest requests first.

    None stands for a request that does not fit into memory.
    """
    order = sorted(range(len(requests)), key=lambda i: -_length(requests[i]))

    def take(start: int, tokens: int) -> tuple[int, int]:
        longest, used, end = _length(requests[order[start]]), 0, start
        while end < len(order):
            more = len(requests[order[end]]) * longest
            if end > start and used + more > tokens:
                break
            used, end = used + more, end + 1
        return end, used

    def run(start: int, end: int) -> list[Scores]:
        return _forward(model, [requests[i] for i in order[start:end]])

    for batch in run_in_batches(len(order), budget, take, run):
        yield [(order[item], scores) for item, scores in batch]


def output_logprobs(
    output: PackedLinear, states: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor
) -> torch.Tensor:
    """As ``token_logprobs``, of the logits that an output layer makes of final states [positions, width].

    The logits never exist whole: a block of them stays in the processor's caches while it is worked through.
    """
    found = torch.empty(len(tokens))
    for start in range(0, len(states), _POSITIONS):
        inside = (rows >= start) & (rows < start + _POSITIONS)
        places, wanted = rows[inside] - start, tokens[inside]
        asked, totals, first = torch.empty(len(wanted)), list[torch.Tensor](), 0
        for block in output.blocks(states[start : start + _POSITIONS]):
            end = first + block.shape[-1]
            here = (wanted >= first) & (wanted < end)
            asked[here] = block[places[here], wanted[here] - first]
            totals.append(_logsumexp_in_place(block))
            first = end
        found[inside] = asked - torch.stack(totals).logsumexp(0)[places]
    return found


def token_logprobs(logits: torch.Tensor, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of ``tokens`` [n] in the ``rows`` [n] of logits [positions, vocabulary].

    In float32, or float64 where the logits are; by blocks of rows, so that the copies stay small.
    """
    precision = torch.promote_types(logits.dtype, torch.float32)
    found = torch.empty(len(tokens), device=logits.device, dtype=precision)
    for start in range(0, len(logits), _BLOCK):
        # Not log_softmax: over a large vocabulary it errs on a CPU, always to the same side.
        block = logits[start : start + _BLOCK].to(precision)
        totals = block.logsumexp(-1)
        inside = (rows >= start) & (rows < start + _BLOCK)
        places = rows[inside] - start
        found[inside] = block[places, tokens[inside]] - totals[places]
    return found


def _logsumexp_in_place(logits: torch.Tensor) -> torch.Tensor:
    # In place because PyTorch's own takes half as long again.
    peaks = logits.amax(-1, keepdim=True)
    return logits.sub_(peaks).exp_().sum(-1).log_().add_(peaks.squeeze(-1))


def _forward(model: PreTrainedModel, batch: Sequence[Choices]) -> list[Scores]:
    rows = [choice for choices in batch for choice in choices]
    # Padding on the right needs no mask in a causal model and leaves every position where it was.
    inputs = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(row.tokens[:-1]) for row in rows], batch_first=True
    )
    first = min(len(row.tokens) - 1 - row.scored for row in rows)
    logits = _logits_from(model, sent(inputs, model.device), first)
    sums = []
    for row, scores in zip(rows, logits, strict=True):
        end = len(row.tokens) - 1 - first
        targets = sent(torch.tensor(row.tokens[-row.scored :]), logits.device)
        positions = torch.arange(row.scored, device=logits.device)
        sums.append(math.fsum(token_logprobs(scores[end - row.scored : end], positions, targets).tolist()))
    values = iter(sums)
    return [tuple(next(values) for _ in choices) for choices in batch]


def _logits_from(model: PreTrainedModel, inputs: torch.Tensor, first: int) -> torch.Tensor:
    """The logits [rows, tokens - first, vocabulary] after the tokens from ``first`` on."""
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        # A checkpoint's own code may always make all of them.
        whole: torch.Tensor = model(input_ids=inputs, use_cache=False).logits
        return whole[:, first:]
    kept: torch.Tensor = model(
        input_ids=inputs, use_cache=False, logits_to_keep=inputs.shape[1] - first
    ).logits
    return kept


def _length(choices: Choices) -> int:
    return max(len(choice.tokens) for choice in choices)
