"""The loss and its masks against a naive implementation in float64, and by hand."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from pytest_muscle.adapter.config import Mask, Recipe
from pytest_muscle.adapter.logits import TokenLogits
from pytest_muscle.adapter.loss import IGNORED, compatibility_loss, token_loss
from pytest_muscle.adapter.masks import old_weight
from pytest_muscle.adapter.moments import mixed_moments, token_moments

BATCH, TOKENS, VOCABULARY, WIDTH = 3, 7, 11, 5


def naive_weight(mask, student, old, new, labels):
    """Token by token, as the definitions are written."""
    weights = {}
    likelihoods = {}
    for b in range(len(labels)):
        for i in range(labels.shape[1] - 1):
            y = int(labels[b, i + 1])
            if y == IGNORED:
                continue
            p_student, p_old, p_new = (torch.softmax(m[b, i], -1)[y] for m in (student, old, new))
            likelihoods[b, i] = (p_student.log(), p_old.log())
            weights[b, i] = {
                "student_wrong": float(int(student[b, i].argmax()) != y),
                "old_correct": float(int(old[b, i].argmax()) == y),
                "old_only": 1.0,
                "new_only": 0.0,
                "average": 0.5,
                "token_likelihood": float(p_student < p_old),
                "truth_weighted": float(p_old / (p_old + p_new)),
                "sequence_likelihood": None,
            }[mask]
    if mask == "sequence_likelihood":
        for b, i in weights:
            of_text = [pair for (row, _), pair in likelihoods.items() if row == b]
            weights[b, i] = float(sum(s for s, _ in of_text) < sum(o for _, o in of_text))
    return weights


def naive_loss(student, old, new, labels, recipe):
    weights = naive_weight(recipe.mask, student.detach(), old, new, labels)
    total = torch.zeros((), dtype=torch.float64)
    for (b, i), weight in weights.items():
        softened = [torch.softmax(m[b, i] / recipe.temperature, -1) for m in (student, old, new)]
        from_old, from_new = ((teacher * (teacher / softened[0]).log()).sum() for teacher in softened[1:])
        entropy = -torch.softmax(student[b, i], -1)[labels[b, i + 1]].log()
        kl = weight * from_old + (1 - weight) * from_new
        c = recipe.cross_entropy_weight
        total = total + (1 - c) * kl + c * entropy
    return total / len(weights)


def batch(dtype, padding):
    generator = torch.Generator().manual_seed(3)
    draw = [
        torch.randn(BATCH, TOKENS, VOCABULARY, generator=generator, dtype=torch.float64) for _ in range(3)
    ]
    labels = torch.randint(VOCABULARY, (BATCH, TOKENS), generator=generator)
    # Some tokens are what a model expects, or the masks would hardly differ.
    labels[:, 1::3] = draw[0][:, 0:-1:3].argmax(-1)
    labels[:, 2::3] = draw[1][:, 1:-1:3].argmax(-1)
    if padding == "right":
        labels[1, 4:] = IGNORED
        labels[2, 2:] = IGNORED
    elif padding == "left":
        labels[1, :3] = IGNORED
        labels[2, :5] = IGNORED
    return [logits.to(dtype) for logits in draw], labels


@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("mask", get_args(Mask))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_loss_and_gradient_are_the_naive_ones(mask, share, temperature, padding, dtype, tolerance):
    recipe = Recipe(mask, temperature, share)
    (student, old, new), labels = batch(dtype, padding)
    student.requires_grad_()
    loss = compatibility_loss(student, old, new, labels, recipe)
    loss.backward()

    exact, labels = batch(torch.float64, padding)
    exact[0].requires_grad_()
    expected = naive_loss(*exact, labels, recipe)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=tolerance)
    torch.testing.assert_close(student.grad.double(), exact[0].grad, atol=tolerance, rtol=0)


def test_the_masks_differ_on_the_data_above():
    (student, old, new), labels = batch(torch.float64, "left")
    rows = labels[:, 1:] != IGNORED
    sequence = torch.arange(BATCH)[:, None].expand_as(rows)[rows]
    flat = [logits[:, :-1][rows] for logits in (student, old, new)]
    weights = {
        mask: old_weight(mask, *flat, labels[:, 1:][rows], sequence).tolist() for mask in get_args(Mask)
    }
    assert len({tuple(weight) for weight in weights.values()}) == len(weights)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_where_the_old_model_is_not_trusted_the_new_one_teaches(share):
    (student, old, new), labels = batch(torch.float64, "none")
    targets = labels[:, 1:].flatten()
    student, old, new = (logits[:, :-1].flatten(0, 1).clone() for logits in (student, old, new))
    trusted = torch.arange(len(targets)) % 3 == 0

    def found(old, new, **rules):
        leaf = student.clone().requires_grad_()
        sources = [TokenLogits(logits, VOCABULARY) for logits in (leaf, old, new)]
        loss = token_loss(*sources, targets, Recipe("old_only", 1.0, share), **rules)
        loss.total.backward()
        return loss, leaf.grad

    loss, gradient = found(old, new, trusted=trusted)
    expected, slope = found(torch.where(trusted[:, None], old, new), new)
    assert loss.total.item() == pytest.approx(expected.total.item())
    torch.testing.assert_close(gradient, slope)
    assert loss.from_old.item() == trusted.sum()


@pytest.mark.parametrize("chunk", [1, 2, 1000])
def test_chunks_change_nothing(monkeypatch, chunk):
    (student, old, new), labels = batch(torch.float64, "right")
    monkeypatch.setattr("pytest_muscle.adapter.logits._CHUNK_ELEMENTS", {"cpu": chunk * VOCABULARY})
    for mask in get_args(Mask):
        recipe = Recipe(mask, 2.0, 0.25)
        expected = naive_loss(student, old, new, labels, recipe).item()
        assert compatibility_loss(student, old, new, labels, recipe).item() == pytest.approx(
            expected, abs=1e-12
        )


def flat(dtype=torch.float64):
    """Student, old and new [tokens, vocabulary], the tokens that follow and the text of each."""
    models, labels = batch(dtype, "none")
    sequence = torch.arange(BATCH).repeat_interleave(TOKENS - 1)
    return [logits[:, :-1].flatten(0, 1) for logits in models], labels[:, 1:].flatten(), sequence


class Watched(TokenLogits):
    """Logits that note how many rows they were asked for at a time."""

    asked: list[int]

    def rows(self, wanted):
        found = super().rows(wanted)
        self.asked.append(len(found))
        return found


def watched(logits, asked):
    model = Watched(logits, VOCABULARY)
    object.__setattr__(model, "asked", asked)
    return model


@pytest.mark.parametrize("device", ["cpu", "another"])
@pytest.mark.parametrize(("held", "rows_at_once"), [(1, 1), (VOCABULARY, 1), (5 * VOCABULARY, 5)])
@pytest.mark.parametrize("mask", ["old_only", "truth_weighted", "sequence_likelihood"])
def test_no_more_logits_are_held_at_once_than_a_device_may(monkeypatch, device, held, rows_at_once, mask):
    elsewhere = 2**20 if device == "cpu" else held
    monkeypatch.setattr("pytest_muscle.adapter.logits._CHUNK_ELEMENTS", {device: held})
    monkeypatch.setattr("pytest_muscle.adapter.logits._CHUNK_ELEMENTS_ELSEWHERE", elsewhere)
    models, targets, sequence = flat()
    whole = old_weight(mask, *models, targets, sequence).sum()
    asked = [[], [], []]
    sources = [watched(logits, noted) for logits, noted in zip(models, asked, strict=True)]
    loss = token_loss(*sources, targets, Recipe(mask), sequence=sequence)
    assert loss.from_old.item() == pytest.approx(whole.item())
    passes = 2 if mask == "sequence_likelihood" else 1
    assert max(asked[0]) == rows_at_once
    assert sum(asked[0]) == passes * len(targets)
    if mask == "truth_weighted":  # Both teachers are known in full already when the mask is.
        assert asked[1] == asked[2] == asked[0]


@pytest.mark.parametrize("mask", get_args(Mask))
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_what_it_is_given_stays_as_it_was(mask, share):
    models, targets, sequence = flat(torch.float32)
    before = [logits.clone() for logits in models]
    sources = [TokenLogits(logits, VOCABULARY) for logits in models]
    truthful, trusted = (torch.arange(len(targets)) % k > 0 for k in (2, 3))
    more = {"sequence": sequence, "truthful": truthful, "trusted": trusted}
    token_loss(*sources, targets, Recipe(mask, 2.0, share), **more)
    assert all(torch.equal(now, then) for now, then in zip(models, before, strict=True))
    assert torch.equal(trusted, torch.arange(len(targets)) % 3 > 0)


@pytest.mark.parametrize("mask", get_args(Mask))
@pytest.mark.parametrize("tokens", [BATCH * (TOKENS - 1), 0])
def test_everything_is_made_where_the_inputs_are(mask, tokens):
    (student, old, new), targets, sequence = flat()
    student.requires_grad_()
    labels = torch.full((1, tokens + 1), IGNORED)
    labels[0, 1:] = targets[:tokens]

    def found():
        sources = [TokenLogits(logits[:tokens], VOCABULARY) for logits in (student, old, new)]
        recipe = Recipe(mask, 2.0, 0.5)
        loss = token_loss(*sources, targets[:tokens], recipe, sequence=sequence[:tokens])
        padded = [torch.cat([logits[:tokens], logits[:1]])[None] for logits in (student, old, new)]
        mean = compatibility_loss(*padded, labels, recipe)
        (slope,) = torch.autograd.grad(loss.total + mean, student)
        return torch.stack([loss.total, loss.from_old, mean]).detach(), slope

    expected = found()
    with torch.device("meta"):  # Where a tensor goes whose maker does not say.
        elsewhere = found()
    for one, other in zip(expected, elsewhere, strict=True):
        assert torch.equal(one, other)
    assert old_weight("old_only", None, None, None, targets.to("meta")).device.type == "meta"


@pytest.mark.parametrize("mask", ["old_only", "new_only"])
def test_a_model_that_nothing_is_learned_from_may_be_missing(mask):
    (student, old, new), labels = batch(torch.float64, "right")
    expected = naive_loss(student, old, new, labels, Recipe(mask, 1.0, 0.5)).item()
    teachers = (old, None) if mask == "old_only" else (None, new)
    loss = compatibility_loss(student, *teachers, labels, Recipe(mask, 1.0, 0.5))
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    alone = compatibility_loss(student, None, None, labels, Recipe(mask, 1.0, 1.0))
    entropy = torch.nn.functional.cross_entropy(student[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert alone.item() == pytest.approx(entropy.item(), abs=1e-12)
    with pytest.raises(AssertionError, match=f"the recipe needs the {mask[:3]} model"):
        compatibility_loss(student, *reversed(teachers), labels, Recipe(mask))


def test_one_token_is_its_own_mean():
    (student, old, new), labels = batch(torch.float64, "none")
    labels[0, 2:] = labels[1:] = IGNORED
    recipe = Recipe("student_wrong", 1.0, 0.5)
    expected = naive_loss(student, old, new, labels, recipe).item()
    assert compatibility_loss(student, old, new, labels, recipe).item() == pytest.approx(expected, abs=1e-12)


def with_heads(biased, dtype=torch.float64):
    """States, output layers and their biases of student, old and new; the tokens that follow; their texts."""
    generator = torch.Generator().manual_seed(1)
    n, padded = 9, VOCABULARY + 3
    targets = torch.randint(VOCABULARY, (n,), generator=generator)
    sizes = [(padded, WIDTH), (VOCABULARY, WIDTH - 1), (padded, WIDTH)]
    heads = [torch.randn(size, generator=generator).to(dtype) for size in sizes]
    biases = [torch.randn(size[0], generator=generator).to(dtype) if biased else None for size in sizes]
    states = [torch.randn(n, size[1], generator=generator).to(dtype) for size in sizes]
    return states, heads, biases, targets, torch.arange(n) // 4


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("share", [0.0, 0.4])
@pytest.mark.parametrize("mask", get_args(Mask))
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_from_moments_as_from_logits(monkeypatch, mask, share, temperature, biased, dtype, tolerance):
    monkeypatch.setattr("pytest_muscle.adapter.logits._CHUNK_ELEMENTS", {"cpu": 4 * VOCABULARY})
    states, heads, biases, targets, sequence = with_heads(biased, dtype)
    recipe = Recipe(mask, temperature, share)
    rules = {
        "sequence": sequence,
        "truthful": torch.arange(len(targets)) % 2 > 0,
        "trusted": torch.arange(len(targets)) % 3 > 0,
    }
    found = []
    for by_moments in (False, True):
        leaf = states[0].clone().requires_grad_()
        student, *teachers = (
            TokenLogits(s, VOCABULARY, w, b)
            for s, w, b in zip([leaf, *states[1:]], heads, biases, strict=True)
        )
        if by_moments:
            layer = heads[0], biases[0]
            teachers = [token_moments(each, *layer, targets, temperature) for each in teachers]
        loss = token_loss(student, *teachers, targets, recipe, **rules)
        loss.total.backward()
        found.append((torch.stack([loss.total, loss.from_old]).detach(), leaf.grad))
    for logits, moments in zip(*found, strict=True):
        torch.testing.assert_close(moments, logits, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("guarded", [True, False])
def test_from_mixed_moments_as_from_both_teachers(monkeypatch, temperature, biased, guarded):
    monkeypatch.setattr("pytest_muscle.adapter.logits._CHUNK_ELEMENTS", {"cpu": 4 * VOCABULARY})
    states, heads, biases, targets, _ = with_heads(biased)
    recipe = Recipe("average", temperature, 0.4)
    trusted = torch.arange(len(targets)) % 3 > 0 if guarded else None
    weight = torch.full((len(targets),), 0.5) * (1 if trusted is None else trusted)
    found = []
    for mixed in (False, True):
        leaf = states[0].clone().requires_grad_()
        student, *teachers = (
            TokenLogits(s, VOCABULARY, w, b)
            for s, w, b in zip([leaf, *states[1:]], heads, biases, strict=True)
        )
        both = None
        if mixed:
            told = list(zip(teachers, (weight, 1 - weight), strict=True))
            both, teachers = mixed_moments(told, heads[0], biases[0], temperature), [None, None]
        loss = token_loss(student, *teachers, targets, recipe, trusted=trusted, both=both)
        loss.total.backward()
        found.append((torch.stack([loss.total, loss.from_old]).detach(), leaf.grad))
    for apart, together in zip(*found, strict=True):
        torch.testing.assert_close(together, apart, atol=1e-12, rtol=1e-12)


def test_moments_leave_the_teacher_as_it_was():
    (_, old, _), targets, _ = flat()
    before = old.clone()
    moments = token_moments(TokenLogits(old, VOCABULARY), torch.eye(VOCABULARY).double(), None, targets, 2.0)
    assert torch.equal(old, before)
    # By an output layer that passes on its input the mean row is the distribution itself.
    torch.testing.assert_close(moments.means, (old / 2).softmax(-1))


def test_from_hidden_states_as_from_logits():
    states, heads, biases, targets, _ = with_heads(biased=True)
    results = []
    for fused in (True, False):
        leaf = states[0].clone().requires_grad_()
        inputs = [leaf, *states[1:]]
        if fused:
            sources = [
                TokenLogits(s, VOCABULARY, w, b) for s, w, b in zip(inputs, heads, biases, strict=True)
            ]
        else:
            sources = [
                TokenLogits(s @ w.T + b, VOCABULARY) for s, w, b in zip(inputs, heads, biases, strict=True)
            ]
        loss = token_loss(*sources, targets, Recipe("student_wrong", 2.0, 0.5))
        loss.total.backward()
        results.append((loss.total.item(), loss.from_old.item(), leaf.grad))
    assert results[0][:2] == pytest.approx(results[1][:2], abs=1e-12)
    torch.testing.assert_close(results[0][2], results[1][2])


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("layer", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hidden", [torch.float32, torch.bfloat16])
def test_an_output_layer_of_another_precision(hidden, layer, biased):
    """Against autograd in float64 on the same rounded numbers."""
    generator = torch.Generator().manual_seed(4)
    n = 9
    targets = torch.randint(VOCABULARY, (n,), generator=generator)
    states = [torch.randn(n, WIDTH, generator=generator).to(hidden) for _ in range(3)]
    head = torch.randn(VOCABULARY, WIDTH, generator=generator).to(layer)
    bias = torch.randn(VOCABULARY, generator=generator).to(layer) if biased else None
    leaf = states[0].clone().requires_grad_()
    sources = [TokenLogits(s, VOCABULARY, head, bias) for s in (leaf, *states[1:])]
    loss = token_loss(*sources, targets, Recipe("truth_weighted", 2.0, 0.5))
    loss.total.backward()

    exact = states[0].double().requires_grad_()
    offset = 0 if bias is None else bias.double()
    student, old, new = (s.double() @ head.double().T + offset for s in (exact, *states[1:]))
    place = torch.arange(n)
    p_old, p_new = (logits.softmax(-1)[place, targets] for logits in (old, new))
    weight = p_old / (p_old + p_new)
    q = (student / 2).softmax(-1)
    from_old, from_new = ((p * (p / q).log()).sum(-1) for p in ((old / 2).softmax(-1), (new / 2).softmax(-1)))
    entropy = -student.softmax(-1)[place, targets].log()
    expected = (0.5 * (weight * from_old + (1 - weight) * from_new) + 0.5 * entropy).sum()
    expected.backward()

    rough = 8 * max(torch.finfo(hidden).eps, torch.finfo(layer).eps)
    assert loss.total.item() == pytest.approx(expected.item(), rel=rough)
    assert loss.from_old.item() == pytest.approx(weight.sum().item(), rel=rough)
    torch.testing.assert_close(leaf.grad.double(), exact.grad, atol=rough, rtol=rough)
    assert loss.total.dtype == loss.from_old.dtype == torch.float32
    made = sources[0].rows(slice(2, 4)).dtype
    assert made == (torch.float64 if layer == torch.float64 else torch.float32)


def test_sums_over_many_tokens_are_as_good_as_in_float64():
    n = 500_000
    generator = torch.Generator().manual_seed(3)
    student, old, new = (torch.randn(n, 2, generator=generator) for _ in range(3))
    student[0, 0] -= 2.0**24  # Beside this the other tokens' losses vanish in float32, one by one.
    targets = torch.zeros(n, dtype=torch.long)
    each = torch.nn.functional.cross_entropy(student.double(), targets, reduction="none")
    sources = [TokenLogits(logits, 2) for logits in (student, old, new)]
    learned = token_loss(*sources, targets, Recipe(cross_entropy_weight=1.0)).total
    assert learned.item() == pytest.approx(each.sum().item(), rel=2**-22)
    p_old, p_new = (logits.double().softmax(-1)[:, 0] for logits in (old, new))
    weights = token_loss(*sources, targets, Recipe("truth_weighted")).from_old
    assert weights.item() == pytest.approx((p_old / (p_old + p_new)).sum().item(), rel=2**-24)


def test_three_tokens_by_hand():
    """Two entries, T = 1: the student's, old's and new's probabilities of entry 0 are given."""
    student, old, new = [0.5, 0.8, 0.4], [0.9, 0.6, 0.7], [0.6, 0.9, 0.2]
    labels = torch.tensor([[0, 1, 0, 0]])

    def logits(probabilities):
        rows = [[math.log(p), math.log(1 - p)] for p in [*probabilities, 0.5]]
        return torch.tensor([rows], dtype=torch.float64)

    def kl(p, q):
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    # The tokens that follow are 1, 0, 0. The student's best entries are 0 (a tie goes to the first), 0 and 1:
    # wrong, right, wrong; so tokens one and three come from the old model.
    expected = (kl(0.9, 0.5) + kl(0.9, 0.8) + kl(0.7, 0.4)) / 3
    loss = compatibility_loss(logits(student), logits(old), logits(new), labels, Recipe("student_wrong"))
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert expected == pytest.approx(0.20, abs=0.01)

    entropy = -(math.log(0.5) + math.log(0.8) + math.log(0.4)) / 3
    mixed = compatibility_loss(
        logits(student), logits(old), logits(new), labels, Recipe("student_wrong", cross_entropy_weight=0.25)
    )
    assert mixed.item() == pytest.approx(0.75 * expected + 0.25 * entropy, abs=1e-12)


def test_wrong_choices_do_not_enter_the_cross_entropy():
    (student, _, _), labels = batch(torch.float64, "none")
    rows, targets = student[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    truthful = torch.arange(len(targets)) % 2 == 0
    loss = token_loss(
        TokenLogits(rows, VOCABULARY),
        None,
        None,
        targets,
        Recipe(cross_entropy_weight=1.0),
        truthful=truthful,
    )
    expected = torch.nn.functional.cross_entropy(rows[truthful], targets[truthful], reduction="sum")
    assert loss.total.item() == pytest.approx(expected.item(), abs=1e-12)


def test_in_a_wrong_text_the_teacher_counts_that_believes_less_in_it():
    (student, old, new), labels = batch(torch.float64, "none")
    rows = [logits[:, :-1].flatten(0, 1) for logits in (student, old, new)]
    targets = labels[:, 1:].flatten()
    truthful = torch.arange(len(targets)) % 2 == 0
    weight = old_weight("truth_weighted", *rows, targets, truthful=truthful)
    p_old, p_new = (logits.softmax(-1)[torch.arange(len(targets)), targets] for logits in rows[1:])
    expected = torch.where(truthful, p_old, p_new) / (p_old + p_new)
    torch.testing.assert_close(weight, expected)
    loss = token_loss(
        *(TokenLogits(r, VOCABULARY) for r in rows), targets, Recipe("truth_weighted"), truthful=truthful
    )
    assert loss.from_old.item() == pytest.approx(expected.sum().item())


@pytest.mark.parametrize("mask", ["token_likelihood", "sequence_likelihood"])
def test_a_student_that_is_as_sure_as_the_old_model_learns_from_the_new_one(mask):
    (student, _, new), labels = batch(torch.float64, "none")
    rows = [logits[:, :-1].flatten(0, 1) for logits in (student, student, new)]
    targets = labels[:, 1:].flatten()
    sequence = torch.arange(BATCH).repeat_interleave(TOKENS - 1)
    assert not old_weight(mask, *rows, targets, sequence).any()
    surer = rows[1].clone()
    surer[torch.arange(len(targets)), targets] += 0.01
    assert old_weight(mask, rows[0], surer, rows[2], targets, sequence).all()


def test_no_tokens_have_no_loss():
    nothing = torch.zeros(0, VOCABULARY, requires_grad=True)
    sources = [TokenLogits(logits, VOCABULARY) for logits in (nothing, nothing.detach(), nothing.detach())]
    none = torch.zeros(0, dtype=torch.long)
    for mask in get_args(Mask):
        loss = token_loss(*sources, none, Recipe(mask), sequence=none)
        loss.total.backward()
        assert (loss.total.item(), loss.from_old.item()) == (0.0, 0.0)


def test_the_hard_masks_ask_each_teacher_for_its_own_tokens_only():
    (student, old, new), targets, _ = flat()
    from_old, from_new = [], []
    sources = [TokenLogits(student, VOCABULARY), watched(old, from_old), watched(new, from_new)]
    loss = token_loss(*sources, targets, Recipe("student_wrong"))
    wrong = int((student.argmax(-1) != targets).sum())
    assert 0 < wrong < len(targets)
    assert (from_old, from_new) == ([wrong], [len(targets) - wrong])
    assert loss.from_old.item() == wrong


def test_identical_models_give_no_loss_and_no_gradient():
    (student, _, _), labels = batch(torch.float64, "none")
    leaf = student.clone().requires_grad_()
    loss = compatibility_loss(leaf, student, student, labels, Recipe("student_wrong", 2.0))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-14)
    assert leaf.grad.abs().max() < 1e-15
