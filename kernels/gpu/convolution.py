"""A short causal convolution over time, then SiLU, as Triton kernels: kernels/convolution.py has the equations."""

# B batch, T time, C channels, W taps
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .primitives import SIZES, cdiv

# Of the forward's tile, and of the piece that a program of the backward walks through: tokens and channels.
FORWARD_TILE = (32, 128)
BACKWARD_TILE = (32, 128)
AHEAD = 4
# Numbers of channels are a model's, and Triton may make of them what it can.
OF_CALL = [*SIZES, "pieces", "x_b", "x_t", "dy_b", "dy_t"]


@triton.jit(do_not_specialize=OF_CALL)
def _convolve_kernel(
    x, weight, bias, y, T, C, x_b, x_t, pieces, W: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr,
    ALIGNED: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """X_b and X_t are the strides of tensor X in units of ALIGNED; those of channels are 1."""
    x_b, x_t = x_b.to(tl.int64) * ALIGNED, x_t * ALIGNED
    b = (tl.program_id(0) // pieces).to(tl.int64)
    tt = (tl.program_id(0) % pieces) * BT + tl.arange(0, BT)
    cc = tl.program_id(1) * BC + tl.arange(0, BC)
    in_c = cc < C
    total = tl.zeros([BT, BC], tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + cc, mask=in_c, other=0.0).to(tl.float32)[None, :]
    for j in tl.static_range(W):
        at = tt + (j - W + 1)
        inside = ((at >= 0) & (at < T))[:, None] & in_c[None, :]
        tap = tl.load(weight + cc * W + j, mask=in_c, other=0.0).to(tl.float32)
        value = tl.load(x + b * x_b + at.to(tl.int64)[:, None] * x_t + cc[None, :], mask=inside, other=0.0)
        total += tap[None, :] * value.to(tl.float32)
    out = y + (b * T + tt.to(tl.int64))[:, None] * C + cc[None, :]
    tl.store(out, total / (1 + tl.exp(-total)), mask=(tt < T)[:, None] & in_c[None, :])


@triton.jit(do_not_specialize=OF_CALL)
def _convolve_back_kernel(
    x, weight, bias, dy, dx, weight_parts, bias_parts, T, C, num_channels, x_b, x_t, dy_b, dy_t, pieces,
    W: tl.constexpr, BT: tl.constexpr, BC: tl.constexpr, AHEAD: tl.constexpr, ALIGNED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """Walks through BT tokens and the W - 1 after them: every d p is computed once, and kept while it is needed.

    C channels of the num_channels that dx and the sums have room for.
    Tokens are loaded AHEAD of their use: a warp has nothing else to do while it waits for one.
    """
    x_b, x_t = x_b.to(tl.int64) * ALIGNED, x_t * ALIGNED
    dy_b, dy_t = dy_b.to(tl.int64) * ALIGNED, dy_t * ALIGNED
    part = tl.program_id(0).to(tl.int64)
    b, first = part // pieces, (tl.program_id(0) % pieces) * BT
    cc = tl.program_id(1) * BC + tl.arange(0, BC)
    in_c = cc < C
    x_at, dy_at, dx_at = x + b * x_b + cc, dy + b * dy_b + cc, dx + b * T * num_channels + cc
    offset = tl.zeros([BC], tl.float32)
    if HAS_BIAS:
        offset += tl.load(bias + cc, mask=in_c, other=0.0).to(tl.float32)
    nothing = tl.zeros([BC], tl.float32)
    # The last W inputs and the last W d p, oldest first.
    taps, inputs, flows, sums = (), (), (), ()
    for j in tl.static_range(W):
        before = first + (j - W)
        taps += (tl.load(weight + cc * W + j, mask=in_c, other=0.0).to(tl.float32),)
        inputs += (tl.load(x_at + before.to(tl.int64) * x_t, mask=in_c & (before >= 0), other=0.0).to(tl.float32),)
        flows += (nothing,)
        sums += (nothing,)
    bias_sum = nothing
    next_xs, next_dys = (), ()
    for i in tl.static_range(AHEAD):
        inside = in_c & (first + i < T)
        token = (first + i).to(tl.int64)
        next_xs += (tl.load(x_at + token * x_t, mask=inside, other=0.0),)
        next_dys += (tl.load(dy_at + token * dy_t, mask=inside, other=0.0),)
    for i in tl.static_range(BT + W - 1):
        t = first + i
        inputs = inputs[1:] + (next_xs[0].to(tl.float32),)
        flow = next_dys[0].to(tl.float32)
        next_xs, next_dys = next_xs[1:], next_dys[1:]
        if i + AHEAD < BT + W - 1:
            inside = in_c & (t + AHEAD < T)
            token = (t + AHEAD).to(tl.int64)
            next_xs += (tl.load(x_at + token * x_t, mask=inside, other=0.0),)
            next_dys += (tl.load(dy_at + token * dy_t, mask=inside, other=0.0),)
        p = offset
        for j in tl.static_range(W):
            p += taps[j] * inputs[j]
        gate = 1 / (1 + tl.exp(-p))
        flows = flows[1:] + (flow * gate * (1 + p * (1 - gate)),)
        if i >= W - 1:
            back = nothing
            for j in tl.static_range(W):
                back += taps[j] * flows[W - 1 - j]
            done = t - (W - 1)
            tl.store(dx_at + done.to(tl.int64) * num_channels, back, mask=in_c & (done < T))
        # What lies beyond belongs to the next program.
        if i < BT:
            added = ()
            for j in tl.static_range(W):
                added += (sums[j] + flows[W - 1] * inputs[j],)
            sums = added
            bias_sum += flows[W - 1]
    for j in tl.static_range(W):
        tl.store(weight_parts + (part * W + j) * num_channels + cc, sums[j], mask=in_c)
    if HAS_BIAS:
        tl.store(bias_parts + part * num_channels + cc, bias_sum, mask=in_c)


def _strided(x: Tensor) -> Tensor:
    """x with channels side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _in_units(*tensors: Tensor) -> tuple[int, list[int]]:
    """The strides of batch and time of all tensors in units of 8 elements if all are multiples of it, else of 1.

    Triton loads 8 elements at a time only where it sees that it can. The parts that a projection is split into are
    often multiples of 8. A dimension of size 1 has no stride: what it has in memory would be another variant.
    """
    sizes = [size for x in tensors for size in zip(x.shape[:2], x.stride()[:2], strict=True)]
    strides = [stride if size > 1 else 0 for size, stride in sizes]
    unit = 8 if all(stride % 8 == 0 for stride in strides) else 1
    return unit, [stride // unit for stride in strides]


def _parts(widths: list[int]) -> Iterator[slice]:
    """The channels of each part."""
    for end, width in zip(accumulate(widths), widths, strict=True):
        yield slice(end - width, end)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, widths: list[int]) -> list[Tensor]:
    """The result in parts of `widths` channels, each contiguous."""
    x, weight, bias = _strided(x), weight.contiguous(), None if bias is None else bias.contiguous()
    (B, T, _), W = x.shape, weight.shape[1]
    ys = [x.new_empty(B, T, width) for width in widths]
    BT, BC = FORWARD_TILE
    for part, y in zip(_parts(widths), ys, strict=True):
        if y.numel() == 0:
            continue
        x_part, taps, C = x[..., part], weight[part], y.shape[2]
        aligned, strides = _in_units(x_part)
        with torch.cuda.device_of(x):
            launch: Any = _convolve_kernel[(B * cdiv(T, BT), cdiv(C, BC))]
            launch(
                x_part, taps, taps if bias is None else bias[part], y, T, C, *strides, cdiv(T, BT), W, BT, BC, aligned,
                HAS_BIAS=bias is not None, num_warps=4,
            )  # fmt: skip
    return ys


def backward(x: Tensor, weight: Tensor, bias: Tensor | None, dys: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias (empty without one), each in its dtype, from those of the parts."""
    x, weight, bias = _strided(x), weight.contiguous(), None if bias is None else bias.contiguous()
    (B, T, num_channels), W = x.shape, weight.shape[1]
    dx = x.new_empty(B, T, num_channels)
    BT, BC = BACKWARD_TILE
    pieces = cdiv(T, BT)
    # Summed in a fixed order afterwards: atomic additions would make every run another.
    float32: Any = {"dtype": torch.float32, "device": x.device}
    weight_parts = torch.empty(B * pieces, W, num_channels, **float32)
    bias_parts = torch.empty(B * pieces if bias is not None else 0, num_channels, **float32)
    for part, any_dy in zip(_parts([dy.shape[2] for dy in dys]), dys, strict=True):
        if any_dy.numel() == 0:
            continue
        x_part, dy, taps, C = x[..., part], _strided(any_dy), weight[part], any_dy.shape[2]
        aligned, strides = _in_units(x_part, dy)
        with torch.cuda.device_of(x):
            launch: Any = _convolve_back_kernel[(B * pieces, cdiv(C, BC))]
            launch(
                x_part, taps, taps if bias is None else bias[part], dy, dx[..., part], weight_parts[..., part],
                bias_parts[..., part], T, C, num_channels, *strides, pieces, W, BT, BC, AHEAD, aligned,
                HAS_BIAS=bias is not None, num_warps=2,
            )  # fmt: skip
    dweight = weight_parts.sum(0).t().contiguous().to(weight.dtype)
    return dx, dweight, bias_parts.sum(0).to(bias.dtype) if bias is not None else weight.new_empty(0)
