"""Gradients of several losses in one vector, against autograd's own."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pytest_muscle.adapter.gradients import Gradients


def parameters(seed: int) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((2, 3), (4,), (1, 2, 2))]


def loss_of(some: list[nn.Parameter], factor: float) -> torch.Tensor:
    return sum((factor * (parameter.sin() * parameter).sum() for parameter in some), torch.zeros(()))


# Which of the parameters each loss depends on.
DEPENDS = st.lists(st.sets(st.integers(0, 2), min_size=1), min_size=1, max_size=4)


@given(seed=st.integers(0, 99), first=DEPENDS, second=DEPENDS)
def test_sums_are_those_of_backward(seed: int, first: list[set[int]], second: list[set[int]]) -> None:
    here, there = parameters(seed), parameters(seed)
    both = [Gradients(here), Gradients(here)]
    for gradients, losses in zip(both, (first, second), strict=True):
        for factor, depends in enumerate(losses, 1):
            gradients.add_from(loss_of([here[i] for i in depends], factor))
            loss_of([there[i] for i in depends], factor).backward()
    both[0].add(both[1])
    both[0].hand_over()
    for mine, expected in zip(here, there, strict=True):
        if expected.grad is None:
            assert mine.grad is None
        else:
            torch.testing.assert_close(mine.grad, expected.grad)


def test_gradients_accumulate_over_steps() -> None:
    (parameter, *_) = some = parameters(0)
    for _ in range(2):
        gradients = Gradients(some)
        gradients.add_from(parameter.sum() * 3)
        gradients.hand_over()
    assert parameter.grad is not None
    assert parameter.grad.eq(6).all()
    assert all(other.grad is None for other in some[1:])


def test_a_parameter_gets_a_gradient_as_exact_as_itself() -> None:
    some = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.float64))]
    gradients = Gradients(some)
    factor = 1 + 1e-12
    gradients.add_from((some[0] * some[1] * factor).sum())
    gradients.hand_over()
    assert [parameter.grad.dtype for parameter in some] == [torch.float32, torch.float64]
    assert some[1].grad.tolist() == [factor] * 2
