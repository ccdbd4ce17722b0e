"""The trainer's own step: a batch is gone through in parts."""

import torch

from pytest_muscle.adapter.loss import IGNORED
from pytest_muscle.adapter.trainer import parts_of


def padded(lengths: list[int]) -> dict[str, torch.Tensor]:
    longest = max(lengths)
    attention = torch.tensor([[1] * length + [0] * (longest - length) for length in lengths])
    tokens = torch.arange(len(lengths))[:, None] * 100 + torch.arange(longest)
    return {
        "input_ids": tokens * attention,
        "attention_mask": attention,
        "labels": torch.where(attention == 1, tokens, IGNORED),
        "example": torch.arange(len(lengths)),
    }


def test_parts_hold_every_row_once_without_the_padding() -> None:
    batch = padded([3, 9, 5, 2, 5])
    parts = parts_of(batch, 10)
    assert [part["example"].tolist() for part in parts] == [[1], [2, 4], [0, 3]]
    assert [part["input_ids"].shape[1] for part in parts] == [9, 5, 3]
    for part in parts:
        for row, example in enumerate(part["example"].tolist()):
            length = int(batch["attention_mask"][example].sum())
            for name in ("input_ids", "attention_mask", "labels"):
                assert torch.equal(part[name][row, :length], batch[name][example, :length])
            assert part["labels"][row, length:].eq(IGNORED).all()


def test_a_row_longer_than_a_part_is_one() -> None:
    assert [len(part["example"]) for part in parts_of(padded([30, 20, 4, 4]), 10)] == [1, 1, 2]
