"""The world's tokenizers, frozen to files, and base models trained from scratch in half a minute each."""

from __future__ import annotations

import math
import shutil
import zlib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import world

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

TOKENIZERS = Path(__file__).parent / "tokenizers"
SIZES = {
    "small": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4},
    "large": {"hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 2, "num_attention_heads": 4},
}
ROW, ROWS = 64, 24
EMBEDDING_RATE, MATRIX_RATE = 1e-2, 2e-2


@dataclass(frozen=True, slots=True)
class Base:
    """A base model of one pair: its corpus, size, tokenizer and how long it is trained.

    ``parent`` names the base that it goes on from.
    """

    name: str
    corpus: str
    steps: int
    size: str = "small"
    tokenizer: str = "bytes"
    instructions: bool = False
    parent: str | None = None


BASES = {
    base.name: base
    for base in (
        Base("old", "v1", 400),
        Base("new", "v2", 400),
        Base("larger", "v2", 320, size="large"),
        Base("weak", "v1", 180),
        Base("pieces", "v2", 400, tokenizer="pieces"),
        Base("instructed", "v2", 100, instructions=True, parent="new"),
    )
}


def make_tokenizers() -> None:
    """Train both tokenizers: byte-level BPE, and a smaller BPE over words marked as SentencePiece does.

    Done once: a tokenizer trained again may number its tokens otherwise, under models already trained.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    texts = list(islice(world.Corpus("tokenizers"), 8000))
    texts += [
        f"{record['prompt']} {record.get('answer')}"
        for task in ("choice2", "choice4", "chain", "summary")
        for record in world.Task(task, "t").records(500)
    ]
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    pieces = Tokenizer(models.BPE(unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    pieces.decoder = decoders.Metaspace(prepend_scheme="always")
    pieces.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=260, special_tokens=special, show_progress=False)
    )
    TOKENIZERS.mkdir(exist_ok=True)
    bpe.save(str(TOKENIZERS / "bytes.json"), pretty=False)
    pieces.save(str(TOKENIZERS / "pieces.json"), pretty=False)


TASKS = ("choice2", "choice4", "chain", "town", "summary")


def open_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A frozen tokenizer."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_file=str(TOKENIZERS / f"{name}.json"),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def open_base(base: Base, pair: str, folder: Path, length: float = 1.0) -> Path:
    """The directory of a pair's base, trained if it is not there; ``length`` shortens the training."""
    path = folder / pair / base.name
    if not (path / "config.json").is_file():
        parent = open_base(BASES[base.parent], pair, folder, length) if base.parent else None
        save(train(base, pair, length, parent), base, path)
    return path


def train(base: Base, pair: str, length: float, parent: Path | None) -> LlamaForCausalLM:
    """Train a base from scratch, or on from its parent, on its corpus."""
    import torch
    from torch.nn import functional
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(zlib.crc32(f"{pair} {base.name}".encode()))
    tokenizer = open_tokenizer(base.tokenizer)
    steps = max(1, round(length * base.steps))
    if parent:
        model: Any = LlamaForCausalLM.from_pretrained(parent)
    else:
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        shape = SIZES[base.size]
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                max_position_embeddings=128,
                tie_word_embeddings=True,
                initializer_range=0.06,
                num_key_value_heads=shape["num_attention_heads"],
                **shape,
                **ids,
            )
        )
    rows = corpus_rows(base, pair, tokenizer, steps)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=EMBEDDING_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: _rate(step, steps)) for o in optimizers]
    model.train()
    for step in range(steps):
        batch = rows[step * ROWS : (step + 1) * ROWS]
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model.eval()


def corpus_rows(base: Base, pair: str, tokenizer: PreTrainedTokenizerFast, steps: int) -> Tensor:
    """The corpus as rows of ``ROW`` tokens, as many as the steps take."""
    import torch

    wanted = steps * ROWS * ROW
    corpus = iter(world.Corpus(f"{pair} {base.corpus}", instructions=base.instructions))
    tokens: list[int] = []
    while len(tokens) < wanted:
        for ids in tokenizer(list(islice(corpus, 2000)), add_special_tokens=False)["input_ids"]:
            tokens += [*ids, tokenizer.eos_token_id]
    return torch.tensor(tokens[:wanted]).view(-1, ROW)


def _rate(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 50) * (0.05 + 0.475 * (1 + math.cos(math.pi * step / steps)))


def save(model: LlamaForCausalLM, base: Base, path: Path) -> None:
    """Write model and tokenizer; the folder appears when it is whole."""
    unfinished = path.with_name(f"{path.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    open_tokenizer(base.tokenizer).save_pretrained(unfinished)
    unfinished.rename(path)
