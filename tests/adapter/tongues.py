"""Tiny tokenizers of each kind, trained on a few lines, and their vocabularies."""

import json
from functools import cache

from tiny import CHAT_TEMPLATE, LINES
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from pytest_muscle.adapter.vocabulary.texts import Reader
from pytest_muscle.adapter.vocabulary.tokens import read_vocabulary
from pytest_muscle.models.local.encoding import Encoder

KINDS = ("bytes", "more_bytes", "pieces", "unigram", "words")
SPECIAL = ["<s>", "</s>", "[UNK]"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@cache
def tokenizer(kind):
    """A tokenizer: byte-level BPE, small or larger, SentencePiece BPE or Unigram, or WordPiece."""
    made = {
        "bytes": lambda: byte_level(290),
        "more_bytes": lambda: byte_level(400),
        "pieces": pieces,
        "unigram": unigram,
        "words": words,
    }[kind]()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="[UNK]", pad_token="</s>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def reader(kind):
    """The reader of a kind of tokenizer."""
    return Reader(Encoder(tokenizer(kind), 10**9, None), vocabulary(kind))


@cache
def vocabulary(kind):
    """The vocabulary of a kind of tokenizer."""
    return read_vocabulary(tokenizer(kind), kind)


def byte_level(size):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    return made


def pieces():
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="[UNK]", fuse_unk=True))
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=[*SPECIAL, *BYTES], show_progress=False)
    return sentence_piece(made, trainer, "first")


def unigram():
    made = Tokenizer(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIAL, unk_token="[UNK]", show_progress=False
    )
    return sentence_piece(made, trainer, "never")


def sentence_piece(made, trainer, prepend):
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.train_from_iterator(LINES, trainer)
    state = json.loads(made.to_str())
    # The trainer takes the bytes as special tokens; a SentencePiece model has them as its own.
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in SPECIAL]
    made = Tokenizer.from_str(json.dumps(state))
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return made


def words():
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=SPECIAL, show_progress=False)
    made.train_from_iterator(LINES, trainer)
    return made
