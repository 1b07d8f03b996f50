"""The layers that mixers are made of: short convolution, decay and norms."""

# B batch, T time, C channels, H heads, W convolution width

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsa.kernels.convolution import short_convolution
from palimpsa.kernels.validation import under_transforms


def windows(log_decay: Tensor) -> Tensor:
    """N_t = 1 / (1 - exp(g_t)) of log_decay, of any shape, in tokens; inf where nothing is forgotten."""
    # expm1: 1 - exp(g) loses every digit for the windows of thousands of tokens that matter here. abs: g = 0 never
    # forgets, whatever the sign of its zero.
    return 1.0 / torch.expm1(at_least_fp32(log_decay)).abs()


def mean_window(log_decay: Tensor) -> Tensor:
    """[B, H]: `windows` of log_decay [B, T, H], averaged over the context."""
    return windows(log_decay).mean(dim=1)


def softplus_inverse(x: Tensor) -> Tensor:
    """y with softplus(y) = x, for x > 0."""
    return x + torch.log(-torch.expm1(-x))


def at_least_fp32(x: Tensor) -> Tensor:
    """x in fp32, or as it is in fp64: the dtype of what bf16 would spoil."""
    return x if x.dtype == torch.float64 else x.float()


class Decay(nn.Module):
    """d_t = softplus(W_d x + b_d) and log decay g_t = -A d_t, one per head; takes W_d x [B, T, H].

    Args:
        rate: initial A [H], > 0.
        step_size: initial d [H], > 0: softplus(b_d).
        step_size_limit: (low, high): d_t is clamped to it, as Mamba-2's time_step_limit does; None: not at all.
        is_random: whether initial weights are drawn: see `reset_parameters`.
    """

    def __init__(
        self,
        rate: Tensor,
        step_size: Tensor,
        step_size_limit: tuple[float, float] | None = None,
        *,
        is_random: bool = False,
    ) -> None:
        super().__init__()
        device = torch.get_default_device()
        self.log_rate = nn.Parameter(rate.log().to(device))
        self.bias = nn.Parameter(softplus_inverse(step_size).to(device))
        self.step_size_limit = step_size_limit
        self.is_random = is_random

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws a random decay anew, of each head: A uniform in (0, 16], d log-uniform in 0.001..0.1."""
        if self.is_random:
            # Not of [0, 16): the logarithm of A is what is kept.
            self.log_rate.uniform_(0.0, 1.0, generator=generator)
            self.log_rate.copy_((16 * (1 - self.log_rate)).log())
            self.bias.uniform_(math.log(0.001), math.log(0.1), generator=generator)
            self.bias.copy_(softplus_inverse(self.bias.exp()))

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        # bf16 holds three digits of a decay that is 0.9998 a token.
        step_size = F.softplus(at_least_fp32(logits) + at_least_fp32(self.bias))
        if self.step_size_limit is not None:
            step_size = step_size.clamp(*self.step_size_limit)
        return step_size, -at_least_fp32(self.log_rate).exp() * step_size


class ShortConvolution(nn.Module):
    """Causal depthwise convolution over time, then SiLU: see `convolve`.

    Args:
        num_channels: C.
        width: W, tokens.
        bias: whether there is one, which starts at 0.
        init_std: taps start from N(0, init_std^2); None: from U(-W^-1/2, W^-1/2), as torch's layers do.

    Raises:
        ValueError: unless init_std is > 0 and finite.
    """

    def __init__(self, num_channels: int, width: int, bias: bool = False, init_std: float | None = None) -> None:
        super().__init__()
        if init_std is not None and not 0 < init_std < float("inf"):
            raise ValueError(f"conv_init_std: got {init_std}, expected > 0 and finite")
        self.width = width
        self.init_std = init_std
        self.weight = nn.Parameter(torch.empty(num_channels, width))
        self.reset_parameters()
        self.bias = nn.Parameter(torch.zeros(num_channels)) if bias else None

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the taps; without a generator from torch's own."""
        if self.init_std is not None:
            self.weight.normal_(0.0, self.init_std, generator=generator)
        else:
            bound = self.width**-0.5
            self.weight.uniform_(-bound, bound, generator=generator)

    def new_cache(self, batch_size: int) -> Tensor:
        """[B, C, W-1] zeros: the inputs before the first token."""
        return self.weight.new_zeros(batch_size, self.weight.shape[0], self.width - 1)

    @overload
    def forward(
        self,
        x: Tensor,
        cache: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        widths: None = None,
        num_new: Tensor | None = None,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        x: Tensor,
        cache: Tensor | None,
        cu_seqlens: Tensor | None,
        widths: Sequence[int],
        num_new: Tensor | None = None,
    ) -> Sequence[Tensor]: ...

    def forward(
        self,
        x: Tensor,
        cache: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        widths: Sequence[int] | None = None,
        num_new: Tensor | None = None,
    ) -> Tensor | Sequence[Tensor]:
        """[B, T, C] of x [B, T, C], or its parts of so many channels as `widths` says."""
        ys = convolve(x, self.weight, self.bias, cache, cu_seqlens, widths or x.shape[-1:], num_new)
        return ys if widths else ys[0]


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache: Tensor | None,
    cu_seqlens: Tensor | None,
    widths: Sequence[int],
    num_new: Tensor | None = None,
) -> Sequence[Tensor]:
    """y_t = silu(sum_j w_j x_{t-W+1+j} + bias), inputs before the first token being zero.

    Args:
        x: [B, T, C].
        weight: [C, W], the taps; the last one meets the token itself.
        bias: [C], or None.
        cache: [B, C, W-1] inputs before these, brought up to date; None: there are none.
        cu_seqlens: [N+1] boundaries of packed sequences: no tap reaches across one.
        widths: sum up to C: the channels of each part of the result.
        num_new: [B] int64: what follows so many inputs is padding, which the cache is not to keep; None: nothing is.

    Returns:
        [B, T, width] for each of `widths`.
    """
    if cache is None and cu_seqlens is None and _has_kernel(x):
        return short_convolution(x, weight, bias, widths)
    (num_channels, width), num_tokens = weight.shape, x.shape[1]
    if cache is None:
        past = x.new_zeros(x.shape[0], width - 1, num_channels)
    else:
        past = cache.transpose(1, 2).to(x.dtype)
    padded = torch.cat([past, x], dim=1)
    if cache is not None:
        cache.copy_(_last_inputs(padded, width - 1, num_new).transpose(1, 2))
    weight = weight.to(x.dtype)
    taps = [padded[:, j : j + num_tokens] for j in range(width)]
    if cu_seqlens is not None:
        age = token_positions(cu_seqlens, num_tokens)
        # A tap that would reach into the previous sequence reads zero.
        taps = [tap * (age >= width - 1 - j)[:, None].to(x.dtype) for j, tap in enumerate(taps)]
    y = taps[0] * weight[:, 0]
    for j in range(1, width):
        y = torch.addcmul(y, taps[j], weight[:, j])
    if bias is not None:
        y = y + bias.to(x.dtype)
    y = F.silu(y)
    return (y,) if len(widths) == 1 else y.split(tuple(widths), dim=-1)


def _last_inputs(padded: Tensor, num_kept: int, num_new: Tensor | None) -> Tensor:
    """[B, num_kept, C]: the last inputs of padded [B, num_kept + T, C] that are no padding."""
    if num_new is None:
        return padded[:, padded.shape[1] - num_kept :]
    kept = num_new[:, None] + torch.arange(num_kept, device=padded.device)
    return padded.gather(1, kept[..., None].expand(-1, -1, padded.shape[-1]))


def _has_kernel(x: Tensor) -> bool:
    """Whether the convolution of x has a kernel: on a GPU, up to fp32, outside of torch.func, for which it has none."""
    return x.is_cuda and x.dtype != torch.float64 and not under_transforms()


def token_positions(cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """[T] int64: each token's position in its own sequence, for sequence boundaries cu_seqlens [N+1]."""
    token = torch.arange(num_tokens, device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens.long(), token, right=True) - 1
    return token - cu_seqlens.long()[sequence]


# flash-linear-attention's: under the root, so that a key of zeros has a gradient.
_L2_NORM_EPS = 1e-6


def l2_normalise(x: Tensor) -> Tensor:
    """x / sqrt(|x|^2 + 1e-6) over the last axis, computed in fp32 at least, in x's dtype: of keys and queries."""
    wide = at_least_fp32(x)
    return (wide * torch.rsqrt(wide.square().sum(dim=-1, keepdim=True) + _L2_NORM_EPS)).to(x.dtype)


def check_norm_eps(eps: float) -> None:
    """Raises ValueError unless 0 < eps < inf."""
    if not 0 < eps < float("inf"):
        raise ValueError(f"norm_eps: got {eps}, expected > 0 and finite")


class GatedRMSNorm(nn.Module):
    """RMSNorm with a SiLU gate over the last axis.

    gate_first: normalise(x silu(z)) w, as Mamba-2 does; otherwise normalise(x) w silu(z), as Gated DeltaNet does.
    num_groups: each of so many equal parts of the width is normalised by itself; a divisor of it.
    """

    def __init__(self, width: int, eps: float, gate_first: bool, num_groups: int = 1) -> None:
        super().__init__()
        check_norm_eps(eps)
        self.gate_first = gate_first
        self.num_groups = num_groups
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        dtype, x, gate = x.dtype, at_least_fp32(x), F.silu(at_least_fp32(gate))
        if self.gate_first:
            return self._normalise(x * gate).to(dtype)
        return (self._normalise(x) * gate).to(dtype)

    def _normalise(self, x: Tensor) -> Tensor:
        if self.num_groups == 1:
            return F.rms_norm(x, self.weight.shape, at_least_fp32(self.weight), self.eps)
        groups = x.unflatten(-1, (self.num_groups, -1))
        weight = at_least_fp32(self.weight).unflatten(0, (self.num_groups, -1))
        return (F.rms_norm(groups, groups.shape[-1:], None, self.eps) * weight).flatten(-2)
