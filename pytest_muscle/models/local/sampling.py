"""How the next token is picked: the likeliest, or one drawn at a temperature."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_muscle.models.local.encoding import Prompt


class Picker:
    """Picks the next token of each row of a batch.

    Drawing is by the Gumbel-max trick with a random stream for each prompt, so that what is drawn depends
    on its seed alone and not on the batch it happens to be in.
    """

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self._temperatures = [prompt.temperature for prompt in prompts]
        self._streams = [torch.Generator().manual_seed(prompt.seed) for prompt in prompts]

    def __call__(self, rows: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """The tokens [rows] picked by logits [rows, vocabulary]; ``rows`` are places in the batch."""
        return self.perturbed(rows, logits).argmax(-1)

    def perturbed(self, rows: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """The logits with noise whose largest sum is a draw; as they are where all is greedy."""
        if not any(self._temperatures[row] for row in rows):
            return logits
        noisy = logits.float().clone()
        for place, row in enumerate(rows):
            if temperature := self._temperatures[row]:
                waiting = torch.empty(noisy.shape[-1]).exponential_(generator=self._streams[row])
                noisy[place] = noisy[place] / temperature - waiting.log().to(noisy.device)
        return noisy
