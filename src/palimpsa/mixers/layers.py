"""The parts that every mixer shares: short convolution, decay, norms, their caches."""

# B batch, T time, D model width, C channels, H heads, V value dim, W convolution width

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsa.kernels.convolution import short_convolution
from palimpsa.kernels.validation import under_transforms

# Outputs of a projection that is too narrow to have a product of its own.
NARROW = 64


class MemoryTrace(NamedTuple):
    """What a memory did with a context.

    window: [B, H], N_t = 1 / (1 - alpha_t) in tokens, averaged over the context (and over key channels where the decay
    has them), or None where nothing decays: an infinite window. importance: [B, H, K, V], the importance left at the
    end, or None for a mixer that carries none.
    """

    window: Tensor | None
    importance: Tensor | None


@dataclass
class MixerCache:
    """Everything a mixer carries from token to token.

    conv: one [B, C, W-1] tensor of past inputs per short convolution. state: tuple of recurrent state tensors
    [B, H, K, V], fp32; of attention, the keys and values so far, [B, H, S, K] each, which grow with the context.
    """

    conv: list[Tensor]
    state: tuple[Tensor, ...]


def mean_window(log_decay: Tensor) -> Tensor:
    """[B, H]: N_t = 1 / (1 - exp(g_t)) of log_decay [B, T, H], averaged over the context, in tokens."""
    # expm1: 1 - exp(g) loses every digit for the windows of thousands of tokens that matter here. abs: g = 0 never
    # forgets, whatever the sign of its zero.
    return (1.0 / torch.expm1(widen(log_decay)).abs()).mean(dim=1)


def softplus_inverse(x: Tensor) -> Tensor:
    """y with softplus(y) = x, for x > 0."""
    return x + torch.log(-torch.expm1(-x))


def widen(x: Tensor) -> Tensor:
    """x in fp32, or as it is in fp64: the dtype of what bf16 would spoil."""
    return x if x.dtype == torch.float64 else x.float()


class Decay(nn.Module):
    """d_t = softplus(W_d x + b_d) and log decay g_t = -A d_t, one per head; takes W_d x [B, T, H].

    Args:
        rate: initial A [H], > 0.
        step_size: initial d [H], > 0: softplus(b_d).
        step_size_limit: (low, high): d_t is clamped to it, as Mamba-2's time_step_limit does; None: not at all.
    """

    def __init__(self, rate: Tensor, step_size: Tensor, step_size_limit: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.log_rate = nn.Parameter(rate.log())
        self.bias = nn.Parameter(softplus_inverse(step_size))
        self.step_size_limit = step_size_limit

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        # bf16 holds three digits of a decay that is 0.9998 a token.
        step_size = F.softplus(widen(logits) + widen(self.bias))
        if self.step_size_limit is not None:
            step_size = step_size.clamp(*self.step_size_limit)
        return step_size, -widen(self.log_rate).exp() * step_size


class ShortConvolution(nn.Module):
    """Causal depthwise convolution over time, then SiLU: [B, T, C] -> [B, T, C].

    y_t = silu(sum_j w_j x_{t-W+1+j} + bias), inputs before the first token being zero. With `widths` it comes in parts
    of so many channels.
    """

    def __init__(self, num_channels: int, width: int, bias: bool = False) -> None:
        super().__init__()
        self.width = width
        self.weight = nn.Parameter(torch.empty(num_channels, width))
        self.draw()
        self.bias = nn.Parameter(torch.zeros(num_channels)) if bias else None

    @torch.no_grad()
    def draw(self, generator: torch.Generator | None = None) -> None:
        """Draws the taps from U(-W^-1/2, W^-1/2); without a generator from torch's own, as torch's layers do."""
        bound = self.width**-0.5
        self.weight.uniform_(-bound, bound, generator=generator)

    def new_cache(self, batch_size: int) -> Tensor:
        """[B, C, W-1] zeros: the inputs before the first token."""
        return self.weight.new_zeros(batch_size, self.weight.shape[0], self.width - 1)

    @overload
    def forward(self, x: Tensor, cache: Tensor | None = None, cu_seqlens: Tensor | None = None) -> Tensor: ...

    @overload
    def forward(
        self, x: Tensor, cache: Tensor | None, cu_seqlens: Tensor | None, widths: Sequence[int]
    ) -> Sequence[Tensor]: ...

    def forward(
        self,
        x: Tensor,
        cache: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        widths: Sequence[int] | None = None,
    ) -> Tensor | Sequence[Tensor]:
        if cache is None and cu_seqlens is None and _has_kernel(x):
            ys = short_convolution(x, self.weight, self.bias, widths or x.shape[-1:])
            return ys if widths else ys[0]
        if cache is None:
            past = x.new_zeros(x.shape[0], self.width - 1, x.shape[2])
        else:
            past = cache.transpose(1, 2).to(x.dtype)
        padded = torch.cat([past, x], dim=1)
        if cache is not None:
            cache.copy_(padded[:, padded.shape[1] - (self.width - 1) :].transpose(1, 2))
        weight = self.weight.to(x.dtype)
        num_tokens = x.shape[1]
        if cu_seqlens is None:
            taps = [padded[:, j : j + num_tokens] for j in range(self.width)]
        else:
            age = token_positions(cu_seqlens, num_tokens)
            taps = [
                # A tap that would reach into the previous sequence reads zero.
                padded[:, j : j + num_tokens] * (age >= self.width - 1 - j)[:, None].to(x.dtype)
                for j in range(self.width)
            ]
        y = taps[0] * weight[:, 0]
        for j in range(1, self.width):
            y = torch.addcmul(y, taps[j], weight[:, j])
        if self.bias is not None:
            y = y + self.bias.to(x.dtype)
        y = F.silu(y)
        return y.split(tuple(widths), dim=-1) if widths else y


def _has_kernel(x: Tensor) -> bool:
    """Whether the convolution of x has a kernel: on a GPU, up to fp32, outside of torch.func, for which it has none."""
    return x.is_cuda and x.dtype != torch.float64 and not under_transforms()


def project_and_convolve(
    x: Tensor,
    projections: Sequence[nn.Linear],
    convolutions: Sequence[ShortConvolution],
    others: Sequence[nn.Linear],
    cache: MixerCache | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, ...]:
    """conv_i(W_i x) for each of `projections`, then W_j x for `others`, [B, T, width] each, of x [B, T, D].

    In compiled code what is convolved comes of one product and one convolution, and what is narrow of one product: on a
    GPU several narrow ones take several times as long as a wide one. Wider ones stay apart: to meet in one gradient,
    theirs would have to be copied.

    Args:
        cache: its convolutions' part is brought up to date; None: before the first token.
    """
    linears = [*projections, *others]
    # Fewer tokens are not worth the copy of the weights: decoding.
    if not (
        torch.compiler.is_compiling()
        and all(_is_plain(linear) for linear in linears)
        and x.shape[0] * x.shape[1] >= sum(linear.out_features for linear in linears)
    ):
        made = [linear(x) for linear in linears]
        parts, rest = made[: len(projections)], made[len(projections) :]
    else:
        widths = [linear.out_features for linear in projections]
        together = F.linear(x, torch.cat([linear.weight for linear in projections]))
        rest = _products(x, [linear.weight for linear in others])
        if cache is None and cu_seqlens is None and _has_kernel(x) and all(c.bias is None for c in convolutions):
            taps = torch.cat([convolution.weight for convolution in convolutions])
            return (*short_convolution(together, taps, None, widths), *rest)
        parts = together.split(widths, dim=-1)
    pasts = [None] * len(convolutions) if cache is None else cache.conv
    return (*(c(y, past, cu_seqlens) for c, y, past in zip(convolutions, parts, pasts, strict=True)), *rest)


def project(
    x: Tensor, linear: nn.Linear, widths: Sequence[int], others: Sequence[nn.Linear]
) -> tuple[Sequence[Tensor], list[Tensor]]:
    """linear(x) in parts of `widths`, and W_j x for `others`; the products of compiled code are _products."""
    if torch.compiler.is_compiling() and all(_is_plain(y) for y in (linear, *others)):
        made = _products(x, [*linear.weight.split(tuple(widths)), *(y.weight for y in others)])
        return made[: len(widths)], made[len(widths) :]
    return linear(x).split(tuple(widths), dim=-1), [y(x) for y in others]


def _products(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """x W^T for each of `weights`: the narrow ones by one product."""
    narrow = [weight for weight in weights if len(weight) < NARROW]
    together = torch.cat(narrow) if narrow else x.new_empty(0, x.shape[-1])
    made = iter(F.linear(x, together).split([len(weight) for weight in narrow], dim=-1))
    return [next(made) if len(weight) < NARROW else F.linear(x, weight) for weight in weights]


def _is_plain(linear: nn.Linear) -> bool:
    """Whether all that it does is its product with its weight: no adapter, no hook, nothing that makes the weight."""
    hooks = linear._forward_hooks, linear._forward_pre_hooks, linear._backward_hooks, linear._backward_pre_hooks
    is_own = type(linear) is nn.Linear and "forward" not in vars(linear) and "weight" in linear._parameters
    return is_own and linear.bias is None and not any(len(x) for x in hooks)


def token_positions(cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """[T] int64: each token's position in its own sequence, for sequence boundaries cu_seqlens [N+1]."""
    token = torch.arange(num_tokens, device=cu_seqlens.device)
    sequence = torch.searchsorted(cu_seqlens.long(), token, right=True) - 1
    return token - cu_seqlens.long()[sequence]


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
        dtype, x, gate = x.dtype, widen(x), F.silu(widen(gate))
        if self.gate_first:
            return self._normalise(x * gate).to(dtype)
        return (self._normalise(x) * gate).to(dtype)

    def _normalise(self, x: Tensor) -> Tensor:
        if self.num_groups == 1:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        groups = x.unflatten(-1, (self.num_groups, -1))
        weight = self.weight.unflatten(0, (self.num_groups, -1))
        return (F.rms_norm(groups, groups.shape[-1:], None, self.eps) * weight).flatten(-2)
