"""A short causal convolution over time, then SiLU: an operator of one pass forward and one pass back, on a GPU.

    p_t = sum_j w_j x_{t-W+1+j} + bias, y_t = silu(p_t), inputs before the first token being zero
    d p_t = dy_t silu'(p_t), dx_t = sum_j w_j d p_{t+W-1-j}, dw_j = sum_t d p_t x_{t-W+1+j}

Written out in PyTorch the same takes 20 passes over [B, T, C], and compiled still six: the way back meets every input
at W different places.
"""

# B batch, T time, C channels, W taps
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .library import NAMESPACE
from .transforms import fold, refuse, register_rule, stand_in, unfold


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


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, bias, _ = inputs
    ctx.save_for_backward(x, weight, bias)


def _differentiate(ctx: Any, *dys: Tensor) -> tuple[Any, ...]:
    x, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = _call_backward(x, weight, bias, *dys)
    return dx, dweight, None if bias is None else dbias, None


_ONCE = "short_convolution is differentiable once, and backwards: not with create_graph=True, and not by jvp or jacfwd"

forward.register_autograd(lambda ctx, dys: _differentiate(ctx, *dys), setup_context=_save)
backward.register_autograd(refuse(_ONCE))


# Channels are independent of each other: each entry of a mapped dimension has its own.
def _fold_arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, in_dims: tuple[Any, ...], size: int
) -> list[Tensor | None]:
    return [fold(y, in_dim, size, dim) for y, in_dim, dim in zip((x, weight, bias), in_dims, (2, 0, 0), strict=False)]


def _map_forward(call: Callable[..., Any], size: int, in_dims: tuple[Any, ...], *args: Any) -> Any:
    x, weight, bias, widths = args
    ys = call(*_fold_arguments(x, weight, bias, in_dims, size), list(widths) * size)
    num = len(widths)
    return tuple(torch.stack(list(ys[i::num])) for i in range(num)), (0,) * num


def _map_backward(call: Callable[..., Any], size: int, in_dims: tuple[Any, ...], *args: Any) -> Any:
    x, weight, bias, *dys = args
    moved = [y.expand(size, *y.shape) if d is None else y.movedim(d, 0) for y, d in zip(dys, in_dims[3:], strict=True)]
    dx, dweight, dbias = call(
        *_fold_arguments(x, weight, bias, in_dims, size), *(y[i] for i in range(size) for y in moved)
    )
    results = unfold(dx, size, 2), unfold(dweight, size, 0), dbias if bias is None else unfold(dbias, size, 0)
    return results, (2, 0, None if bias is None else 0)


def _map_forward_operator(call: Callable[..., Any], size: int, in_dims: tuple[Any, ...], *args: Any) -> Any:
    return tuple(map(list, _map_forward(call, size, in_dims, *args)))


def _map_backward_operator(call: Callable[..., Any], size: int, in_dims: tuple[Any, ...], *args: Any) -> Any:
    *tensors, dys = args
    dims = in_dims[3] or [None] * len(dys)
    return _map_backward(lambda *args: call(*args[:3], list(args[3:])), size, (*in_dims[:3], *dims), *tensors, *dys)


register_rule(forward, _map_forward_operator)
register_rule(backward, _map_backward_operator)


# Autograd follows no tensors that lie in a list: those of the operator that stands in are arguments of their own.
def _run_backward(x: Tensor, weight: Tensor, bias: Tensor | None, *dys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _backward(x, weight, bias, list(dys))


def _operate_backward(x: Tensor, weight: Tensor, bias: Tensor | None, *dys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return backward(x, weight, bias, list(dys))


def _run_forward(*args: Any) -> tuple[Tensor, ...]:
    return tuple(_forward(*args))


_call_forward = stand_in(_run_forward, forward, _map_forward, _ONCE, (_save, _differentiate))
_call_backward = stand_in(_run_backward, _operate_backward, _map_backward, _ONCE)


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
    return list(_call_forward(x, weight, bias, list(widths)))
