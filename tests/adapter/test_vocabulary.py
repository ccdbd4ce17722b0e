"""What bytes the tokens of each kind of tokenizer stand for."""

import pytest
from tiny import LINES
from tokenizers import Tokenizer, models
from tongues import KINDS, SPECIAL, tokenizer, vocabulary
from transformers import PreTrainedTokenizerFast

from pytest_muscle.adapter.vocabulary.tokens import Vocabulary, read_vocabulary
from pytest_muscle.errors import MuscleError


@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_of_a_text_are_the_text(kind):
    for line in LINES:
        ids = tokenizer(kind).encode(line, add_special_tokens=False)
        read = b"".join(vocabulary(kind).pieces[number] or b"" for number in ids).decode()
        if kind == "words":
            # Lower-cased, and a space or none before punctuation as in most texts.
            wanted = "".join(tokenizer(kind).decode(ids).split()).replace("[UNK]", "")
            assert "".join(read.split()) == wanted
        else:
            assert read == (" " if kind == "pieces" else "") + line


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_have_no_bytes_but_a_role(kind):
    known = vocabulary(kind)
    numbers = tokenizer(kind).convert_tokens_to_ids(SPECIAL)
    assert [known.pieces[number] for number in numbers] == [None] * len(SPECIAL)
    assert (known.begin, known.end) == tuple(numbers[:2])


@pytest.mark.parametrize("kind", ["bytes", "more_bytes", "unigram"])
def test_the_first_piece_is_what_the_tokenizer_cuts(kind):
    known = vocabulary(kind)
    for line in LINES:
        for word in line.split():
            expected = tokenizer(kind).encode(word, add_special_tokens=False)[0]
            assert known.first_piece(word.encode()) == expected, word


def test_bytes_that_are_no_character_are_cut_all_the_same():
    half = "€".encode()[1:]
    for kind in ("bytes", "pieces"):
        known = vocabulary(kind)
        assert half.startswith(known.pieces[known.first_piece(half)])
    assert vocabulary("words").first_piece(half) is None


def test_a_character_is_preferred_to_its_byte():
    known = vocabulary("pieces")
    assert tokenizer("pieces").convert_ids_to_tokens(known.first_piece(b"a")) == "a"
    assert tokenizer("pieces").convert_ids_to_tokens(known.first_piece("é".encode())) == "<0xC3>"


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_that_begin_with_a_prefix(kind):
    known = vocabulary(kind)
    for prefix in (b"", b" ", b"th", b"\xff", "ü".encode()[:1]):
        expected = {number for number, piece in enumerate(known.pieces) if piece and piece.startswith(prefix)}
        assert set(known.beginning_with(prefix).tolist()) == expected


def test_the_longest_piece_where_the_tokenizer_cannot_cut():
    known = Vocabulary([b"a", b"ab", b"abcd", None])
    assert known.first_piece(b"abc") == 1
    assert known.first_piece(b"abcde") == 2
    assert known.first_piece(b"b") is None


def test_tokenizers_that_cannot_be_read_are_refused():
    class Slow:
        is_fast = False

    with pytest.raises(MuscleError, match=r"tokenizer of 'some/model' \(Slow\) does not say where"):
        read_vocabulary(Slow(), "some/model")
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(MuscleError, match=r"'some/model' \(WordLevel\) is none of byte-level BPE"):
        read_vocabulary(plain, "some/model")
