"""The old model's distribution in the new vocabulary, against its definition written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tongues import tokenizer, vocabulary

from pytest_muscle.adapter.config import Recipe
from pytest_muscle.adapter.logits import TokenLogits
from pytest_muscle.adapter.loss import token_loss
from pytest_muscle.adapter.vocabulary.mapping import VocabularyMap
from pytest_muscle.adapter.vocabulary.teacher import MappedLogits
from pytest_muscle.adapter.vocabulary.tokens import Vocabulary

CPU = torch.device("cpu")
OLD = Vocabulary([b"a", b"b", b" ", b"ab", b" a", b" ab", b"abb", b"ba", None, None], begin=8, end=9)
NEW = Vocabulary([None, None, b"b", b"a", b" ", b"ba", b" b", b" aba", b"bb", b"abba", None], begin=0, end=1)
OLD_SIZE, NEW_SIZE = 11, 13
REST = NEW_SIZE
CASES = [  # What the old model reads next, how much of it is given, steps, what the new model reads next.
    (3, b"", 1, 3),
    (3, b"a", 1, 2),
    (5, b"", 2, 7),
    (4, b"", 3, 7),
    (6, b"a", 1, 8),
    (6, b"ab", 1, 2),
    (1, b"", 1, 5),
    (9, b"", 1, 1),
    (5, b" ", 1, 3),
    (0, b"", 2, 9),
    None,
]


def piece(known, number):
    return known.pieces[number] if number < len(known.pieces) else None


def target(text):
    """The longest new piece that a text begins with."""
    found = [(len(p), n) for n, p in enumerate(NEW.pieces) if p and text.startswith(p)]
    return max(found)[1] if found else REST


def carried(prefix):
    """Old token -> new token (or the rest), for the old tokens that count."""
    rows = {}
    for number in range(OLD_SIZE):
        text = piece(OLD, number)
        if text is None:
            if not prefix:
                rows[number] = {8: 0, 9: 1}.get(number, REST)
        elif text.startswith(prefix):
            rows[number] = target(text[len(prefix) :])
    return rows


def class_of(prefix, following):
    """New token -> the class it belongs to."""
    rows = carried(prefix)
    remaining = {(piece(OLD, n) or b"")[len(prefix) :] for n in rows}
    classes = []
    for number in range(NEW_SIZE):
        text = piece(NEW, number)
        begun = [r for r in remaining if r and text and text.startswith(r)]
        if number in rows.values() or number == following:
            classes.append(number)
        else:
            classes.append(target(max(begun, key=len)) if begun else REST)
    return classes


def old_distribution(logits, case, along):
    """Class -> probability, by the definition."""
    read, prefix, _, following = case
    rows = carried(prefix)
    p = logits.softmax(-1)
    total = sum(p[n] for n in rows)
    found = {}
    for number, to in rows.items():
        mass = p[number] / total
        moved = mass * along if number == read else 0.0
        found[to] = found.get(to, 0.0) + mass - moved
        found[following] = found.get(following, 0.0) + moved
    return found


def expected_loss(student, rows, cases, temperature):
    total = torch.zeros((), dtype=torch.float64)
    for number, case in enumerate(cases):
        if case is None:
            continue
        _, prefix, steps, following = case
        along = torch.ones((), dtype=torch.float64)
        for step in range(1, steps):
            along = (
                along
                * rows.given.states[rows.places[number] + step].softmax(-1)[
                    rows.read[rows.places[number] + step]
                ]
            )
        classes = class_of(prefix, following)
        names = sorted(set(classes))
        old = old_distribution(rows.given.states[rows.places[number]], case, along)
        p_old = torch.stack([torch.as_tensor(old.get(n, 0.0), dtype=torch.float64) for n in names])
        p_new = student[number].softmax(-1)
        q = torch.stack([p_new[[k for k, c in enumerate(classes) if c == n]].sum() for n in names])
        log_old, log_new = ((p.clamp_min(1e-300).log() / temperature).log_softmax(-1) for p in (p_old, q))
        total = total + (log_old.exp() * (log_old - log_new)).sum()
    return total


def rows_of(cases, seed=0):
    """Random logits of the old model, at positions where it reads what the cases say."""
    generator = torch.Generator().manual_seed(seed)
    read, places = [], []
    for case in cases:
        places.append(-1 if case is None else len(read))
        if case:
            read += [case[0], *torch.randint(8, (case[2] - 1,), generator=generator).tolist()]
    return MappedLogits(
        TokenLogits(torch.randn(len(read), OLD_SIZE, generator=generator, dtype=torch.float64) * 2, OLD_SIZE),
        torch.tensor(read),
        torch.tensor(places),
        torch.tensor([1 if case is None else case[2] for case in cases]),
        [b"" if case is None else case[1] for case in cases],
        torch.tensor([2 if case is None else case[3] for case in cases]),
        VocabularyMap(OLD, NEW, (OLD_SIZE, NEW_SIZE), CPU),
    )


def student_of(cases, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(cases), NEW_SIZE, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_value_and_gradient_are_those_of_the_definition(temperature):
    rows, student, same = rows_of(CASES), student_of(CASES), student_of(CASES)
    recipe = Recipe("old_only", temperature)
    loss = token_loss(TokenLogits(student, NEW_SIZE), rows, None, rows.following, recipe)
    loss.total.backward()
    expected = expected_loss(same, rows, CASES, temperature)
    expected.backward()
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(student.grad, same.grad, atol=1e-10, rtol=0)
    assert same.grad[-1].abs().max() == 0


@st.composite
def any_cases(draw):
    read = draw(st.integers(0, 7))
    text = OLD.pieces[read]
    prefix = text[: draw(st.integers(0, len(text) - 1))]
    return read, prefix, draw(st.integers(1, 3)), draw(st.integers(2, 9))


@given(cases=st.lists(any_cases(), min_size=1, max_size=5), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_whatever_the_places(cases, seed):
    rows, student = rows_of(cases, seed), student_of(cases, seed + 100)
    loss = token_loss(TokenLogits(student, NEW_SIZE), rows, None, rows.following, Recipe("old_only"))
    expected = expected_loss(student.detach(), rows, cases, 1.0)
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)


def test_probabilities_are_whole_and_the_rest_is_counted():
    rows = rows_of(CASES)
    carried_rows = rows.rows(slice(0, len(CASES))).exp()
    torch.testing.assert_close(carried_rows.sum(-1), torch.ones(len(CASES), dtype=torch.float64))
    at_first = rows.given.states[0].softmax(-1)
    assert carried_rows[0, REST] == pytest.approx(at_first[10].item())
    # Inside a token the rest is that the word ends there: "a" of "ab" may be all there is.
    given = rows.given.states[rows.places[1]].softmax(-1)
    kept = given[[0, 3, 6]]
    assert carried_rows[1, REST] == pytest.approx((kept[0] / kept.sum()).item())
    assert rows.covered.tolist() == [True] * (len(CASES) - 1) + [False]


@pytest.mark.parametrize("mask", ["old_correct", "truth_weighted", "token_likelihood", "student_wrong"])
def test_masks_see_the_mapped_distribution(mask):
    rows, student = rows_of(CASES), student_of(CASES).detach()
    student[0, rows.following[0]] = 9.0  # One token at least that the student has right.
    new = torch.randn(student.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    expected = []
    for number, (case, probabilities) in enumerate(zip(CASES, student.softmax(-1), strict=True)):
        if case is None:
            expected.append(0.0)  # What the old model says nothing of is learned from the new one.
            continue
        along = torch.ones(())
        for step in range(1, case[2]):
            place = rows.places[number] + step
            along = along * rows.given.states[place].softmax(-1)[rows.read[place]]
        old = old_distribution(rows.given.states[rows.places[number]], case, along)
        y = case[3]
        p_old, p_new = float(old[y]), new[number].softmax(-1)[y].item()
        expected.append(
            {
                "old_correct": float(max(old, key=lambda n: old[n]) == y),
                "truth_weighted": p_old / (p_old + p_new),
                "token_likelihood": float(probabilities[y] < p_old),
                "student_wrong": float(probabilities.argmax() != y),
            }[mask]
        )
    loss = token_loss(
        TokenLogits(student, NEW_SIZE), rows, TokenLogits(new, NEW_SIZE), rows.following, Recipe(mask)
    )
    assert 0 < loss.from_old.item() < len(CASES) - 1
    assert loss.from_old.item() == pytest.approx(sum(expected))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_new_model_teaches_where_the_old_one_says_nothing_or_is_not_trusted(temperature):
    rows, student, same = rows_of(CASES), student_of(CASES), student_of(CASES)
    new = torch.randn(student.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    trusted = torch.arange(len(CASES)) % 3 > 0
    recipe = Recipe("old_only", temperature)
    loss = token_loss(
        TokenLogits(student, NEW_SIZE),
        rows,
        TokenLogits(new, NEW_SIZE),
        rows.following,
        recipe,
        trusted=trusted,
    )
    loss.total.backward()
    from_old = [case if is_trusted else None for case, is_trusted in zip(CASES, trusted, strict=True)]
    p, q = ((logits / temperature).softmax(-1) for logits in (new, same))
    apart = (p * (p / q).log()).sum(-1)
    others = apart[torch.tensor([case is None for case in from_old])].sum()
    expected = expected_loss(same, rows, from_old, temperature) + others
    expected.backward()
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-10)
    assert loss.from_old.item() == len(CASES) - from_old.count(None)
    torch.testing.assert_close(student.grad, same.grad, atol=1e-10, rtol=0)


def test_a_text_is_judged_by_the_tokens_that_the_old_model_speaks_of():
    cases = [CASES[0], None]
    rows, student = rows_of(cases), student_of(cases).detach()
    sequence = torch.zeros(2, dtype=torch.long)
    new = TokenLogits(student.clone(), NEW_SIZE)
    sure = student.clone()
    for gap, expected in ((-9.0, 1.0), (9.0, 0.0)):
        sure[0, rows.following[0]] = gap
        loss = token_loss(
            TokenLogits(sure, NEW_SIZE),
            rows,
            new,
            rows.following,
            Recipe("sequence_likelihood"),
            sequence=sequence,
        )
        assert loss.from_old.item() == expected


def test_chunks_change_nothing(monkeypatch):
    rows, student = rows_of(CASES), student_of(CASES).detach()
    totals = []
    for chunk in (1, 3, 100):
        monkeypatch.setattr("pytest_muscle.adapter.logits._CHUNK_ELEMENTS", {"cpu": chunk * NEW_SIZE})
        loss = token_loss(TokenLogits(student, NEW_SIZE), rows, None, rows.following, Recipe("old_only", 2.0))
        totals.append(loss.total.item())
    assert totals == pytest.approx([totals[0]] * 3, abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_vocabulary_mapped_to_itself_is_the_plain_loss(temperature):
    size = len(tokenizer("bytes"))
    known = vocabulary("bytes")
    generator = torch.Generator().manual_seed(2)
    old, student = (torch.randn(6, size, generator=generator, dtype=torch.float64) for _ in range(2))
    # Tokens that are no text are one class, and may as well be impossible.
    nameless = [n for n, p in enumerate(known.pieces) if p is None and n not in (known.begin, known.end)]
    old[:, nameless] = student[:, nameless] = -50.0
    read = known.beginning_with(b"")[torch.randint(200, (6,), generator=generator).numpy()]
    following = torch.from_numpy(read)
    one = torch.ones(6, dtype=torch.long)
    between = VocabularyMap(known, known, (size, size), CPU)
    mapped = MappedLogits(
        TokenLogits(old, size), following, torch.arange(6), one, [b""] * 6, following, between
    )
    results = []
    for teacher in (mapped, TokenLogits(old, size)):
        leaf = student.clone().requires_grad_()
        loss = token_loss(TokenLogits(leaf, size), teacher, None, following, Recipe("old_only", temperature))
        loss.total.backward()
        results.append((loss.total.item(), leaf.grad))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-6, rtol=0)


def test_a_model_that_agrees_with_the_old_one_learns_nothing():
    """A student whose classes have the old model's probabilities, however it divides them."""
    cases = CASES[:4]
    rows = rows_of(cases)
    carried_rows = rows.rows(slice(0, len(cases))).exp()
    student = torch.full((len(cases), NEW_SIZE), -torch.inf, dtype=torch.float64)
    for number, (_, prefix, _, following) in enumerate(cases):
        classes = class_of(prefix, following)
        for token, name in enumerate(classes):
            share = torch.tensor((token + 1) / sum(k + 1 for k, c in enumerate(classes) if c == name))
            student[number, token] = (carried_rows[number, name] * share).log()
    student = student.clamp_min(-60).requires_grad_()
    loss = token_loss(TokenLogits(student, NEW_SIZE), rows, None, rows.following, Recipe("old_only", 2.0))
    loss.total.backward()
    assert loss.total.item() == pytest.approx(0, abs=1e-8)
    assert student.grad.abs().max() < 1e-8


def test_maps_are_remembered_and_forgotten(monkeypatch):
    monkeypatch.setattr("pytest_muscle.adapter.vocabulary.mapping._REMEMBERED", 1)
    between = VocabularyMap(OLD, NEW, (OLD_SIZE, NEW_SIZE), CPU)
    first = between.at(b"a")
    assert between.at(b"a") is first
    between.at(b"ab")
    again = between.at(b"a")
    assert again is not first
    assert torch.equal(again.classes, first.classes)
