"""LoRA layers as one operation, against PEFT's own and against float64."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import nn

from pytest_muscle.adapter import products
from pytest_muscle.adapter.fused import FusedLinear, fuse
from pytest_muscle.adapter.products import product


class Two(nn.Module):
    """Two linear layers, so that one has inputs with a gradient."""

    def __init__(self, bias):
        super().__init__()
        self.first = nn.Linear(5, 8, bias=bias)
        self.second = nn.Linear(8, 3, bias=bias)

    def forward(self, inputs):
        return self.second(torch.tanh(self.first(inputs)))


def adapted(bias=False, **changes):
    torch.manual_seed(3)
    config = {"r": 2, "lora_alpha": 6, "target_modules": ["first", "second"], "init_lora_weights": False}
    return get_peft_model(Two(bias), LoraConfig(**{**config, **changes}))


def learned(model, inputs):
    """The output, and the gradients of all that is trained and of the inputs."""
    inputs = inputs.clone().requires_grad_()
    output = model(inputs)
    output.square().sum().backward()
    return [output, inputs.grad, *(p.grad for p in model.parameters() if p.requires_grad)]


def kinds(model):
    return {type(module) for module in model.modules() if isinstance(module, Linear)}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 5), (1, 1, 5)])
def test_output_and_gradients_are_pefts(bias, shape):
    model = adapted(bias)
    exact = copy.deepcopy(model).double()
    assert kinds(model) == {Linear}
    fuse(model)
    assert kinds(model) == {FusedLinear}
    inputs = torch.randn(shape)
    for found, expected in zip(learned(model, inputs), learned(exact, inputs.double()), strict=True):
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_inputs_without_a_gradient_get_none():
    model = adapted()
    fuse(model)
    inputs = torch.randn(4, 5)
    model(inputs).sum().backward()
    assert inputs.grad is None
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("how", ["disabled", "dropout", "merged", "two", "double"])
def test_what_is_not_plain_is_left_to_peft(how, monkeypatch):
    model = adapted(**({"lora_dropout": 0.5} if how == "dropout" else {}))
    plain = copy.deepcopy(model)
    fuse(model)
    monkeypatch.setattr("pytest_muscle.adapter.fused._LoraProduct", None)
    inputs = torch.randn(4, 5)
    for each in (model, plain):
        if how == "disabled":
            each.disable_adapter_layers()
        if how == "merged":
            each.merge_adapter()
        if how == "two":
            torch.manual_seed(4)
            each.add_adapter("other", each.peft_config["default"])
            each.base_model.set_adapter(["default", "other"])
        if how == "double":
            each.double()
            inputs = inputs.double()
    outputs = []
    for each in (model, plain):
        torch.manual_seed(9)
        outputs.append(each(inputs))
    torch.testing.assert_close(*outputs)


def test_other_kinds_of_layers_are_not_touched():
    model = adapted(use_dora=True)
    fuse(model)
    assert kinds(model) == {Linear}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("vectors", ["AVX2", "AVX512"])
def test_a_product_is_that_of_any_layout_by_either_library(rows, dtype, vectors, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
    monkeypatch.setattr(products, "_prefers_onednn", products._prefers_onednn.__wrapped__)
    torch.manual_seed(1)
    inputs, weight, bias = torch.randn(rows, 6), torch.randn(6, 9), torch.randn(9)
    expected = inputs.double() @ weight.double() + bias.double()
    with torch.no_grad():
        for layout in (weight.T, weight.T.contiguous()):
            found = product(inputs.to(dtype), layout.to(dtype), bias.to(dtype))
            assert found.dtype == dtype
            tolerance = 0.2 if dtype == torch.bfloat16 else 1e-5
            torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
