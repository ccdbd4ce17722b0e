"""Two readings of the same text, side by side."""

from dataclasses import replace

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tiny import CHAT_TEMPLATE, LINES
from tongues import KINDS, reader

from pytest_muscle.adapter.config import CompatibilityConfig
from pytest_muscle.adapter.data import as_choices, encode_cases, read_cases
from pytest_muscle.adapter.vocabulary.alignment import align, shared_parts
from pytest_muscle.adapter.vocabulary.texts import align_texts
from pytest_muscle.errors import MuscleError
from pytest_muscle.models.local.encoding import Encoder

BOTH = [(old, new) for old in KINDS for new in KINDS if old != new]
PLAIN = CompatibilityConfig()
TEXT = st.text(
    st.sampled_from("the customer parcel,.!?;  \n\tTHE12é߀ñ👍🏽\u0301\u200d中文ﬁ")
    | st.characters(codec="utf-8"),
    max_size=40,
)


def encoded(record, old, new, config=PLAIN, limits=(10**9, 10**9)):
    """Case, both examples, both readings and the place before each of the new model's tokens."""
    (case,) = read_cases([record])
    told, text = (
        encode_cases([case], reader.encoder, config, limit).texts[0]
        for reader, limit in zip((old, new), limits, strict=True)
    )
    readings = old.read(as_choices(case), told), new.read(as_choices(case), text)
    parts = shared_parts(as_choices(case), old.encoder, new.encoder, len(readings[1].text))
    ends = old.vocabulary.end, new.vocabulary.end
    positions = range(1, len(text.tokens))
    return readings, dict(zip(positions, align(*readings, parts, positions, ends), strict=True))


def check(readings, places, old, new):
    """Each place says what its definition does, in the bytes of the tokens themselves."""
    for token, place in places.items():
        if place is None or readings[1].tokens[token] == new.vocabulary.end:
            continue
        way = [old.vocabulary.pieces[number] for number in readings[0].tokens[place.token : place.last + 1]]
        over = place.prefix + new.vocabulary.pieces[readings[1].tokens[token]]
        assert b"".join(way).startswith(over)
        assert len(b"".join(way[:-1])) < len(over)
        assert way[0].startswith(place.prefix)
        assert way[0] != place.prefix


@pytest.mark.parametrize(("old", "new"), BOTH)
@given(prompt=TEXT, answer=TEXT.filter(str.strip))
@settings(max_examples=20)
def test_any_text(old, new, prompt, answer):
    old, new = reader(old), reader(new)
    try:
        readings, places = encoded({"prompt": prompt, "answer": answer}, old, new)
    except MuscleError:
        assume(False)  # An answer that adds no token, because the tokenizer drops its characters.
    check(readings, places, old, new)


@given(prompt=TEXT, answer=TEXT.filter(str.strip))
@example(prompt="no", answer="0")
@settings(max_examples=100)
def test_byte_level_tokenizers_align_everywhere(prompt, answer):
    old, new = reader("bytes"), reader("more_bytes")
    for pair in ((old, new), (new, old)):
        readings, places = encoded({"prompt": prompt, "answer": answer}, *pair)
        # Nothing comes before the first token, so nothing is said of what it reaches over.
        first = readings[0].ends[0]
        assert all(place or readings[1].start(token) < first for token, place in places.items())
        for reading, side in zip(readings, pair, strict=True):
            pieces = [side.vocabulary.pieces[number] or b"" for number in reading.tokens]
            assert b"".join(pieces) == reading.text
            assert [len(b"".join(pieces[: n + 1])) for n in range(len(pieces))] == list(reading.ends)


@pytest.mark.parametrize(("old", "new"), [("pieces", "bytes"), ("unigram", "pieces"), ("bytes", "unigram")])
def test_sentence_pieces_align_but_for_the_space_they_add(old, new):
    for line in LINES:
        prompt, _, answer = line.rpartition(" ")
        readings, places = encoded({"prompt": prompt, "answer": answer}, reader(old), reader(new))
        missing = [token for token, place in places.items() if place is None]
        # The added space is before the first token, and a letter that is unknown cannot be read.
        unread = [n for n, literal in enumerate(readings[1].literal) if not literal]
        begin = next(end for end in readings[0].ends if end)
        spaced = [token for token in places if readings[1].start(token) < begin]
        assert set(missing) <= {*unread, *spaced, *_beside_unread(readings)}
        assert len(missing) < len(places) / 4
        assert places[len(readings[1].tokens) - 1].prefix == b""


def _beside_unread(readings):
    old, new = readings
    spans = [(old.start(n), old.ends[n]) for n, literal in enumerate(old.literal) if not literal]
    return {
        n
        for n in range(1, len(new.tokens))
        if any(low < new.ends[n] and new.start(n) < high for low, high in spans)
    }


def test_lower_case_is_not_aligned():
    old, new = reader("words"), reader("bytes")
    readings, places = encoded({"prompt": "the Customer asks", "answer": "money"}, old, new)
    aligned = {readings[1].text[readings[1].start(t) : readings[1].ends[t]] for t, p in places.items() if p}
    assert aligned >= {b" a", b" m"} or b"".join(aligned)
    begin = b"the Customer asks".index(b"Customer") - 1
    inside = range(begin, begin + len(b" Customer"))
    assert all(place is None for token, place in places.items() if readings[1].start(token) in inside)


def test_the_end_is_the_end_whatever_its_token():
    for old, new in BOTH:
        readings, places = encoded({"prompt": "How?", "answer": "late"}, reader(old), reader(new))
        last = places[len(readings[1].tokens) - 1]
        assert (last.token, last.last, last.prefix) == (len(readings[0].tokens) - 1,) * 2 + (b"",)


def test_a_truncated_old_text_aligns_where_it_is_left():
    old, new = reader("bytes"), reader("more_bytes")
    record = {"prompt": "the customer asks where the parcel is " * 5, "answer": "on its way"}
    whole, places = encoded(record, old, new)
    _, fewer = encoded(record, old, new, limits=(40, 10**9))
    lost = len(whole[0].tokens) - 40
    for token, place in places.items():
        moved = place and replace(place, token=place.token - lost, last=place.last - lost)
        # Of the first token that is left nothing is known: what comes before it is lost.
        assert fewer[token] == (moved if moved and moved.token > 0 else None)


def chatting(kind, template):
    plain = reader(kind)
    import copy

    tokenizer = copy.copy(plain.encoder.tokenizer)
    tokenizer.chat_template = template
    return replace(plain, encoder=Encoder(tokenizer, 10**9, None))


MESSAGES = {
    "messages": [
        {"role": "system", "content": "user"},
        {"role": "user", "content": "  where is the parcel? "},
    ],
    "answer": "on its way",
}
OTHER = (
    "<s>{% for message in messages %}[{{ message.role }}]\n{{ message.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


def test_messages_align_and_templates_do_not():
    old, new = chatting("bytes", CHAT_TEMPLATE), chatting("more_bytes", OTHER)
    readings, places = encoded(MESSAGES, old, new)
    check(readings, places, old, new)
    text = readings[1].text
    shared = [(text.index(content), len(content)) for content in (b"user", b"on its way")]
    for token, place in places.items():
        begin, end = readings[1].start(token), readings[1].ends[token]
        within = any(low <= begin and end <= low + length for low, length in shared)
        # The trimmed message differs from the other model's; the others, and the end, are the same.
        assert (place is not None) == (within or token == len(readings[1].tokens) - 1)


def test_messages_that_both_keep_align():
    template = OTHER.replace(" | trim", "")
    old, new = chatting("bytes", CHAT_TEMPLATE), chatting("more_bytes", template)
    readings, places = encoded(MESSAGES, old, new)
    text, begin = readings[1].text, readings[1].text.index(b"[user]")
    covered = [text[readings[1].start(t) : readings[1].ends[t]] for t, p in places.items() if p]
    assert b"".join(covered).startswith(b"user  where is the parcel? on its")
    assert all(place is None for t, place in places.items() if 0 <= readings[1].start(t) - begin < 4)


def test_prefixes_and_rows_of_whole_records():
    old, new = reader("more_bytes"), reader("bytes")
    cases = read_cases([{"prompt": line, "choices": ["late", "paid"], "answer": 1} for line in LINES])
    for tokens in ("all", "answer"):
        config = CompatibilityConfig(tokens=tokens, texts="choices")
        texts = encode_cases(cases, new.encoder, config, 100).texts
        aligned = align_texts(cases, texts, old, new, config, 100)
        assert [told.index for told in aligned.old] == [text.index for text in texts]
        coverage = aligned.coverage()
        counted = [text.counted(tokens == "answer") for text in texts]
        assert coverage.tokens == sum(map(len, counted))
        unsaid = 0
        if tokens == "all":  # Nothing comes before the old model's first token.
            first = [len(old.vocabulary.pieces[told.tokens[0]]) for told in aligned.old]
            for text, end in zip(texts, first, strict=True):
                pieces = [new.vocabulary.pieces[number] or b"" for number in text.tokens]
                unsaid += sum(0 < len(b"".join(pieces[:n])) < end for n in range(len(pieces)))
        assert coverage.aligned == coverage.tokens - unsaid
        assert 0 < coverage.inside < coverage.aligned
        for told, places in zip(aligned.old, aligned.places, strict=True):
            first = told.counted(tokens == "answer").start
            for row, number in zip(places.rows.tolist(), places.prefixes.tolist(), strict=True):
                piece = old.vocabulary.pieces[told.tokens[first + row]] or b""
                assert piece.startswith(aligned.prefixes[number])
