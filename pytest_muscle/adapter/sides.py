"""The models of a training before they are in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig

from pytest_muscle.errors import MuscleError
from pytest_muscle.models.checkpoint import Checkpoint, converted_gguf, load_model, load_tokenizer
from pytest_muscle.models.local.encoding import Encoder, context_length

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

    def load(self, device: torch.device) -> Any:
        """The model, frozen."""
        model = load_model(
            self.checkpoint,
            device=str(device),
            dtype=self.options.dtype,
            trust_remote_code=self.options.trust_remote_code,
        )
        return model.requires_grad_(False)


def require_same_tokenizer(old: Side, new: Side, cases: Sequence[GoldenCase]) -> None:
    """Raise ``MuscleError`` unless both models cut the training texts into the same tokens."""
    tokenizers: list[Any] = [old.encoder.tokenizer, new.encoder.tokenizer]
    vocabularies = [tokenizer.get_vocab() for tokenizer in tokenizers]
    texts = [
        text for case in cases[:_COMPARED] for text in (case.prompt, *case.choices, *map(str, case.answer))
    ]
    if vocabularies[0] == vocabularies[1] and all(
        tokenizers[0].encode(text) == tokenizers[1].encode(text) for text in texts
    ):
        return
    raise MuscleError(
        f"the old model {old.checkpoint.spec!r} ({len(vocabularies[0])} tokens) and the new model "
        f"{new.checkpoint.spec!r} ({len(vocabularies[1])} tokens) have different tokenizers; compatibility "
        "adapters between tokenizers are not supported yet: take an old and a new model of one family"
    )


def vocabulary_size(model: Any) -> int:
    """The number of entries, padding included, of a model's output layer."""
    layer = model.get_output_embeddings()
    weight = getattr(layer, "weight", None)
    return int(model.config.vocab_size) if weight is None else len(weight)
