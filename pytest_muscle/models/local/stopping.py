"""Where a generated text ends: end tokens, stop strings, its number of new tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from pytest_muscle.models.local.encoding import Prompt


class Endings:
    """Says when each row of a batch has ended, and what its text is."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], end_tokens: Iterable[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._prompts = prompts
        self.end_tokens = frozenset(end_tokens)
        # A token holds a byte at least, so this many cover any stop string that ends in the last one.
        self._tails = [max((len(s.encode()) for s in p.stop), default=0) + 4 for p in prompts]

    def of(self, rows: Sequence[int]) -> Endings:
        """The same for a batch of some of the rows."""
        return Endings(self._tokenizer, [self._prompts[row] for row in rows], self.end_tokens)

    def ended(self, row: int, tokens: Sequence[int]) -> bool:
        """Whether the row's new tokens are all that it gets."""
        prompt = self._prompts[row]
        if len(tokens) >= prompt.limit or tokens[-1] in self.end_tokens:
            return True
        if not prompt.stop:
            return False
        # Special tokens are kept here, so that they can be stop strings.
        tail = str(self._tokenizer.decode(list(tokens[-self._tails[row] :])))
        return any(stop in tail for stop in prompt.stop)

    def text(self, row: int, tokens: Sequence[int]) -> str:
        """The text of the row's new tokens, cut before the first stop string."""
        text = str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))
        found = (text.find(stop) for stop in self._prompts[row].stop)
        return text[: min((at for at in found if at >= 0), default=None)]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a text: the tokenizer's and those that the checkpoint names for generation."""
    named = getattr(model.generation_config, "eos_token_id", None)
    ends = {tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])}
    return sorted(end for end in ends if isinstance(end, int))
