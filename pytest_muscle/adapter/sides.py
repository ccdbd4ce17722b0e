"""The models of a training before they are in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig

from pytest_muscle.adapter.vocabulary.texts import Reader
from pytest_muscle.adapter.vocabulary.tokens import read_vocabulary
from pytest_muscle.models.checkpoint import Checkpoint, converted_gguf, load_model, load_tokenizer
from pytest_muscle.models.local.encoding import Encoder, UnaskableError, context_length

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from pytest_muscle.golden import GoldenCase
    from pytest_muscle.models import ModelOptions

_COMPARED = 1000


@dataclass(frozen=True, slots=True)
class Side:
    """A model that is not in memory yet."""

    checkpoint: Checkpoint
    options: ModelOptions
    encoder: Encoder

    @classmethod
    def open(cls, checkpoint: Checkpoint, options: ModelOptions) -> Side:
        """Read the tokenizer and the configuration."""
        trust = options.trust_remote_code
        tokenizer = load_tokenizer(checkpoint, trust_remote_code=trust)
        directory = converted_gguf(checkpoint.base) if checkpoint.base.is_file() else checkpoint.base
        length = context_length(AutoConfig.from_pretrained(directory, trust_remote_code=trust), tokenizer)
        return cls(checkpoint, options, Encoder(tokenizer, length, options.system_prompt))

    def reader(self) -> Reader:
        """What is needed to align texts with another model's; raises ``MuscleError`` if they cannot be."""
        return Reader(self.encoder, read_vocabulary(self.encoder.tokenizer, self.checkpoint.spec))

    def load(self, device: torch.device) -> Any:
        """The model, frozen."""
        model = load_model(
            self.checkpoint,
            device=str(device),
            dtype=self.options.dtype,
            trust_remote_code=self.options.trust_remote_code,
        )
        return model.requires_grad_(False)


def read_alike(old: Side, new: Side, cases: Sequence[GoldenCase]) -> bool:
    """Whether both models make the same tokens of the training texts, chat templates included."""
    sides: list[Any] = [old.encoder, new.encoder]
    if sides[0].tokenizer.get_vocab() != sides[1].tokenizer.get_vocab():
        return False
    for case in cases[:_COMPARED]:
        rendered = [_rendered(encoder, case) for encoder in sides]
        texts = (*case.choices, *map(str, case.answer), rendered[0] or "")
        if rendered[0] != rendered[1] or any(
            sides[0].tokenizer.encode(text) != sides[1].tokenizer.encode(text) for text in texts
        ):
            return False
    return True


def _rendered(encoder: Encoder, case: GoldenCase) -> str | None:
    try:
        return encoder.text(case)
    except UnaskableError:
        return None  # Said with the record's name when the texts are made.


def vocabulary_size(model: Any) -> int:
    """The number of entries, padding included, of a model's output layer."""
    layer = model.get_output_embeddings()
    weight = getattr(layer, "weight", None)
    return int(model.config.vocab_size) if weight is None else len(weight)
