"""Make the data and the two models of this example again: ``python make_models.py``.

``--data`` makes the data only. The tokenizer beside the models is kept where there is one: its numbering of
tokens is part of the weights.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from world import Desk, Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    Row = tuple[list[int], int]

HERE = Path(__file__).parent
LAST_YEAR, THIS_YEAR = 2024, 2025
PAD, END = "<pad>", "<end>"
VOCABULARY = 640
BATCH = 64
LEARNING_RATE = 3e-3
WARMUP = 50
PROMPT_WEIGHT = 0.2
"""What a token of the prompt counts in training; a token of the answer counts 1."""


@dataclass(frozen=True, slots=True)
class Release:
    """One model: the year and the number of the records it learned from, its width, its training steps."""

    name: str
    year: int
    records: int
    hidden: int
    steps: int
    seed: int


RELEASES = (
    Release("v1", LAST_YEAR, records=6000, hidden=96, steps=900, seed=1),
    Release("v2", THIS_YEAR, records=9000, hidden=112, steps=900, seed=2),
)
DATASETS = {"intent": 160, "orders": 160, "tickets": 160}
TRAIN_RECORDS = 1500


# Data ---------------------------------------------------------------------------------------------


def make_golden() -> dict[str, list[Record]]:
    """The golden datasets: records of both years, looked through by a person, so without mistakes."""
    desk = Desk(seed=3, years=(LAST_YEAR, THIS_YEAR), noise=0.0)
    golden: dict[str, list[Record]] = {name: [] for name in DATASETS}
    for record in desk.records(sum(DATASETS.values())):
        name = dataset_of(record)
        golden[name].append({"id": f"{name}-{len(golden[name]) + 1:04}", **record})
    return golden


def make_train(golden: dict[str, list[Record]]) -> list[Record]:
    """Records for the compatibility adapter: of both years, as they were filed, none near a golden case."""
    from pytest_muscle.adapter.overlap import find_overlaps
    from pytest_muscle.golden import parse_case

    desk = Desk(seed=4, years=(LAST_YEAR, THIS_YEAR))
    records = [
        {"id": f"train-{number:04}", **record} for number, record in enumerate(desk.records(TRAIN_RECORDS), 1)
    ]
    cases = [parse_case(record, "train.jsonl", 0, {}) for record in records]
    judged = [parse_case(record, name, 0, {}) for name in golden for record in golden[name]]
    near = {overlap.train.id for overlap in find_overlaps(cases, judged)}
    return [record for record in records if record["id"] not in near]


def dataset_of(record: Record) -> str:
    """The golden dataset that a record belongs to."""
    return "intent" if "choices" in record else "tickets" if "metric" in record else "orders"


def write_records(path: Path, records: Sequence[Record]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


# Models -------------------------------------------------------------------------------------------


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE in which each digit is a token of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, clean_up_tokenization_spaces=False
    )


def open_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer beside the weights, or a new one where there are none yet."""
    from transformers import PreTrainedTokenizerFast

    if (folder / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    records = Desk(seed=0, years=(LAST_YEAR, THIS_YEAR)).records(4000)
    return train_tokenizer([f"{record['prompt']} {answer_text(record)}" for record in records])


def answer_text(record: Record) -> str:
    """What a model is to say: the text of the right choice, or the answer itself."""
    return str(record["choices"][record["answer"]] if "choices" in record else record["answer"])


def encode(record: Record, tokenizer: PreTrainedTokenizerFast) -> Row:
    """The tokens of prompt and answer, and where the answer begins."""
    prompt = tokenizer(record["prompt"])["input_ids"]
    return prompt + tokenizer(f" {answer_text(record)}{END}")["input_ids"], len(prompt)


def batches(rows: Sequence[Row], seed: int) -> Iterator[list[Row]]:
    """Endless shuffled batches of rows of about the same length."""
    draw, pool = random.Random(seed), 16 * BATCH
    while True:
        order = draw.sample(rows, len(rows))
        pools = [sorted(order[i : i + pool], key=lambda row: len(row[0])) for i in range(0, len(order), pool)]
        epoch = [near[i : i + BATCH] for near in pools for i in range(0, len(near), BATCH)]
        draw.shuffle(epoch)
        yield from epoch


def text_loss(model: LlamaForCausalLM, batch: Sequence[Row]) -> Tensor:
    """The weighted mean of the tokens' cross-entropies."""
    import torch
    from torch.nn.functional import cross_entropy

    width = max(len(tokens) for tokens, _ in batch)
    inputs = torch.tensor([tokens + [0] * (width - len(tokens)) for tokens, _ in batch])
    starts = torch.tensor([start for _, start in batch])[:, None]
    ends = torch.tensor([len(tokens) for tokens, _ in batch])[:, None]
    position = torch.arange(1, width)[None]
    weights = torch.where(position < starts, PROMPT_WEIGHT, 1.0) * (position < ends)
    logits = model(input_ids=inputs, use_cache=False).logits[:, :-1]
    losses = cross_entropy(logits.transpose(1, 2), inputs[:, 1:], reduction="none")
    return (losses * weights).sum() / weights.sum()


def train(release: Release, tokenizer: PreTrainedTokenizerFast, unseen: set[str]) -> LlamaForCausalLM:
    """Train a release from scratch on its year's records, without the ``unseen`` prompts."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(release.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=release.hidden,
        intermediate_size=2 * release.hidden,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    records = Desk(release.seed, (release.year,)).records(release.records)
    rows = [encode(record, tokenizer) for record in records if record["prompt"] not in unseen]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    started = time.perf_counter()
    for step, batch in zip(range(1, release.steps + 1), batches(rows, release.seed), strict=False):
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / release.steps)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, step / WARMUP) * cosine
        loss = text_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0:
            seconds = time.perf_counter() - started
            print(
                f"{release.name}: step {step} of {release.steps}, loss {loss.item():.3f}, {seconds:.0f} s",
                flush=True,
            )
    return model.eval()


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights as float16 safetensors, configuration, generation defaults and tokenizer."""
    from transformers import GenerationConfig

    shutil.rmtree(folder, ignore_errors=True)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Write ``golden/``, ``train.jsonl`` and, without ``--data``, ``models/``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", action="store_true", help="make the data only")
    parser.add_argument("--output", type=Path, default=HERE, help="the folder to write to")
    options = parser.parse_args()
    golden = make_golden()
    for name, records in golden.items():
        write_records(options.output / "golden" / f"{name}.jsonl", records)
    write_records(options.output / "train.jsonl", make_train(golden))
    if options.data:
        return
    tokenizer = open_tokenizer(HERE / "models" / "v1")
    unseen = {record["prompt"] for records in golden.values() for record in records}
    for release in RELEASES:
        save(train(release, tokenizer, unseen), tokenizer, options.output / "models" / release.name)


if __name__ == "__main__":
    main()
