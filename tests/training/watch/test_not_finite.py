"""The layer that is named is the one where numbers stopped being numbers, not one that they have reached."""

import math

import pytest
import torch
from torch import nn

from palimpsa.training.optimizer import clip_gradients
from palimpsa.training.watch.not_finite import first_layer_not_finite, gradient_not_finite, layer_that_raised


class Spoil(nn.Module):
    """Hands on a pair, as mixers with states do, whose first tensor is x times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor, torch.arange(3)


class Inner(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.linear, self.spoil = nn.Linear(2, 2), Spoil(factor)

    def forward(self, x):
        return self.spoil(self.linear(x))[0]


def model_that_spoils(factor: float) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), Inner(factor), nn.Linear(2, 2))


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_the_innermost_layer_that_is_the_first_is_named(factor):
    model = model_that_spoils(factor)
    assert first_layer_not_finite(model, lambda: model(torch.ones(1, 2))) == "first in the output of 1.spoil"
    assert not any(layer._forward_hooks for layer in model.modules())


def test_a_parameter_is_named_before_what_it_makes():
    model = model_that_spoils(1.0)
    model.get_parameter("1.linear.weight").data[0, 0] = math.nan
    assert first_layer_not_finite(model, lambda: model(torch.ones(1, 2))) == "first in the parameter 1.linear.weight"


def test_of_numbers_nothing_is_said():
    model = model_that_spoils(1.0)
    assert first_layer_not_finite(model, lambda: model(torch.ones(1, 2))) is None
    assert gradient_not_finite(model) is None


def test_of_gradients_the_last_layer_is_the_first_and_clipping_comes_after():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model.get_parameter("1.bias").register_hook(lambda gradient: gradient * math.nan)
    model(torch.ones(1, 2)).sum().backward()
    optimizer, told = torch.optim.AdamW(model.parameters()), []
    norm = clip_gradients(optimizer, 1.0, lambda norm: told.append((float(norm), gradient_not_finite(model))))
    assert math.isnan(norm)
    assert math.isnan(told[0][0])
    assert told[0][1] == "first in the gradient of 1.bias"


def test_the_layer_that_raised_is_the_innermost():
    model = model_that_spoils(1.0)
    with pytest.raises(RuntimeError) as raised:
        model(torch.ones(1, 3))
    assert layer_that_raised(model, raised.value) == "in 0"
    with pytest.raises(TypeError) as raised:
        model.get_submodule("1.spoil")("no tensor")
    assert layer_that_raised(model, raised.value) == "in 1.spoil"
    assert layer_that_raised(model, ValueError()) == "outside of all layers"
