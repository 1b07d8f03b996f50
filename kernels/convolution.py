"""A short causal convolution over time, then SiLU: an operator of one pass forward and one pass back, on a GPU.

    p_t = sum_j w_j x_{t-W+1+j} + bias, y_t = silu(p_t), inputs before the first token being zero
    d p_t = dy_t silu'(p_t), dx_t = sum_j w_j d p_{t+W-1-j}, dw_j = sum_t d p_t x_{t-W+1+j}

Written out in PyTorch the same takes 20 passes over [B, T, C], and compiled still six: the way back meets every input
at W different places.
"""

# B batch, T time, C channels, W taps
from typing import Any

import torch
from torch import Tensor

from .library import NAMESPACE


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    from . import convolve

    return convolve.forward(x, weight, bias)


def _backward(x: Tensor, weight: Tensor, bias: Tensor | None, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from . import convolve

    return convolve.backward(x, weight, bias, dy)


forward = torch.library.custom_op(f"{NAMESPACE}::short_convolution", _forward, mutates_args=())
backward = torch.library.custom_op(f"{NAMESPACE}::short_convolution_backward", _backward, mutates_args=())


@forward.register_fake
def _(x, weight, bias):
    return x.new_empty(x.shape)


@backward.register_fake
def _(x, weight, bias, dy):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(0 if bias is None else bias.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    x, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = backward(x, weight, bias, dy)
    return dx, dweight, None if bias is None else dbias


forward.register_autograd(_differentiate, setup_context=_save)


def short_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """silu(sum_j w_j x_{t-W+1+j} + bias): a causal depthwise convolution over time, on a GPU; differentiable once.

    Args:
        x: [B, T, C], float32 or half precision; sums are in float32.
        weight: [C, W].
        bias: [C], or None.

    Returns:
        [B, T, C] in x's dtype.
    """
    return forward(x, weight, bias)
