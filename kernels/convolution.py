"""A short causal convolution over time, then SiLU: an operator of one pass forward and one pass back, on a GPU.

    p_t = sum_j w_j x_{t-W+1+j} + bias, y_t = silu(p_t), inputs before the first token being zero
    d p_t = dy_t silu'(p_t), dx_t = sum_j w_j d p_{t+W-1-j}, dw_j = sum_t d p_t x_{t-W+1+j}

Written out in PyTorch the same takes 20 passes over [B, T, C], and compiled still six: the way back meets every input
at W different places.
"""

# B batch, T time, C channels, W taps
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .library import NAMESPACE


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, widths: list[int]) -> list[Tensor]:
    from .gpu import convolution as kernel

    return kernel.forward(x, weight, bias, widths)


def _backward(x: Tensor, weight: Tensor, bias: Tensor | None, dys: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    from .gpu import convolution as kernel

    return kernel.backward(x, weight, bias, dys)


forward = torch.library.custom_op(f"{NAMESPACE}::short_convolution", _forward, mutates_args=())
backward = torch.library.custom_op(f"{NAMESPACE}::short_convolution_backward", _backward, mutates_args=())


@forward.register_fake
def _(x, weight, bias, widths):
    return [x.new_empty(*x.shape[:2], width) for width in widths]


@backward.register_fake
def _(x, weight, bias, dys):
    return x.new_empty(x.shape), weight.new_empty(weight.shape), weight.new_empty(0 if bias is None else bias.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight, bias)


def _differentiate(ctx: Any, dys: list[Tensor]) -> tuple[Any, ...]:
    x, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = backward(x, weight, bias, dys)
    return dx, dweight, None if bias is None else dbias, None


forward.register_autograd(_differentiate, setup_context=_save)


def short_convolution(x: Tensor, weight: Tensor, bias: Tensor | None, widths: Sequence[int]) -> list[Tensor]:
    """silu(sum_j w_j x_{t-W+1+j} + bias): a causal depthwise convolution over time, on a GPU; differentiable once.

    Args:
        x: [B, T, C], float32 or half precision; sums are in float32.
        weight: [C, W].
        bias: [C], or None.
        widths: sum up to C: the channels of each part of the result. Parts that lie apart need no copy before a kernel
            that wants its argument in one piece, nor do their gradients meet in one.

    Returns:
        [B, T, width] for each of `widths`, in x's dtype.

    Raises:
        ValueError: for widths that are negative or do not sum up to C.
    """
    if min(widths, default=0) < 0 or sum(widths) != x.shape[2]:
        raise ValueError(f"widths: got {tuple(widths)}, expected numbers >= 0 that sum up to x's {x.shape[2]} channels")
    return forward(x, weight, bias, list(widths))
