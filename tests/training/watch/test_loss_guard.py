"""A step whose loss or gradient does not belong is refused before it is taken; step, batch and layer are named."""

import math

import pytest
import torch
from torch import nn

from palimpsa.training.watch.loss_guard import WINDOW, LossGuard


def model_with_gradients(**gradients: float) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    for name, parameter in model.named_parameters():
        parameter.grad = torch.full_like(parameter, gradients.get(f"layer{name[0]}", 0.5))
    return model


def guard_after(losses, sigmas=10.0) -> LossGuard:
    guard = LossGuard(sigmas)
    for step, loss in enumerate(losses):
        guard.check(step, loss, 1.0, model_with_gradients(), describe)
    return guard


def describe() -> str:
    return "row 5"


# Mean 3, standard deviation 0.1.
STEADY = [2.9, 3.1] * (WINDOW // 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_names_step_and_layer(value):
    with pytest.raises(
        FloatingPointError, match=r"the loss is .* at step 7, first in the gradient of 1\.weight.* Its batch: row 5$"
    ):
        LossGuard(10.0).check(7, value, math.nan, model_with_gradients(layer1=math.nan), describe)


def test_a_gradient_that_is_no_number_is_refused_while_the_loss_is_one():
    with pytest.raises(
        FloatingPointError, match=r"the gradient's norm is inf at step 0, first in .* 0\.weight.* Its batch: row 5$"
    ):
        LossGuard(10.0).check(0, 2.0, math.inf, model_with_gradients(layer0=math.inf), describe)


def test_a_loss_far_above_the_last_ones_is_refused():
    guard = guard_after(STEADY)
    with pytest.raises(
        FloatingPointError, match=r"the loss is 4\.1 at step 100, .*mean of 3 .* 10 .*of 0\.1; .*0\.weight.*: row 5$"
    ):
        guard.check(100, 4.1, 1.0, model_with_gradients(layer0=9.0), describe)
    # It was not remembered: the same step, with another batch, say, is judged by the same losses.
    guard.check(100, 3.99, 1.0, model_with_gradients(), describe)


def test_a_loss_below_the_last_ones_is_none_of_its_business():
    guard_after(STEADY).check(100, 0.1, 1.0, model_with_gradients(), describe)


def test_nothing_is_a_spike_before_the_window_is_full():
    guard_after(STEADY[:-1]).check(99, 50.0, 1.0, model_with_gradients(), describe)


def test_only_the_last_losses_count():
    guard = guard_after([50.0, *STEADY])
    with pytest.raises(FloatingPointError, match="mean of 3 "):
        guard.check(101, 4.1, 1.0, model_with_gradients(), describe)


def test_a_resumed_run_remembers():
    state = guard_after(STEADY).state_dict()
    guard = LossGuard(10.0)
    guard.load_state_dict(state)
    with pytest.raises(FloatingPointError, match="spike_sigmas"):
        guard.check(100, 4.1, 1.0, model_with_gradients(), describe)
    with pytest.raises(ValueError, match="at most 100 finite numbers"):
        guard.load_state_dict({"losses": [math.nan]})
