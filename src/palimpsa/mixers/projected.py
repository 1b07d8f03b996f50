"""Projections and short convolutions, as few products and convolutions as a GPU likes, and the mixers made of them."""

# B batch, T time, D model width, H heads, K key dim, V value dim

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsa.mixers.base import Mixer, MixerCache, check_packing
from palimpsa.mixers.layers import ShortConvolution, convolve

# A projection to fewer channels has no product of its own in compiled code.
MIN_CHANNELS_OF_A_PRODUCT = 64


def project(x: Tensor, linears: Sequence[nn.Linear]) -> list[Tensor]:
    """W x [B, T, width] for each of `linears`, of x [B, T, D]; the products of compiled code are `_products`."""
    if torch.compiler.is_compiling() and all(map(_is_plain, linears)):
        return _products(x, [linear.weight for linear in linears])
    return [linear(x) for linear in linears]


def project_in_parts(
    x: Tensor, linear: nn.Linear, widths: Sequence[int], others: Sequence[nn.Linear]
) -> tuple[Sequence[Tensor], list[Tensor]]:
    """linear(x) in parts of `widths`, and W x for each of `others`; the products of compiled code are `_products`."""
    if torch.compiler.is_compiling() and all(map(_is_plain, (linear, *others))):
        made = _products(x, [*linear.weight.split(tuple(widths)), *(y.weight for y in others)])
        return made[: len(widths)], made[len(widths) :]
    return linear(x).split(tuple(widths), dim=-1), [y(x) for y in others]


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
    theirs would have to be copied. A convolution gives its parts apart and takes their gradients so.

    Args:
        cache: its convolutions' part is brought up to date; None: before the first token.
        cu_seqlens: [N+1] boundaries of packed sequences, or None.
    """
    linears = [*projections, *others]
    # Fewer tokens are not worth the copy of the weights: decoding.
    if not (
        torch.compiler.is_compiling()
        and all(map(_is_plain, linears))
        and x.shape[0] * x.shape[1] >= sum(linear.out_features for linear in linears)
    ):
        made = [linear(x) for linear in linears]
        parts, rest = made[: len(projections)], made[len(projections) :]
    else:
        widths = [linear.out_features for linear in projections]
        together = F.linear(x, torch.cat([linear.weight for linear in projections]))
        rest = _products(x, [linear.weight for linear in others])
        if cache is None and all(map(_is_plain, convolutions)):
            taps = torch.cat([convolution.weight for convolution in convolutions])
            return (*convolve(together, taps, None, None, cu_seqlens, widths), *rest)
        parts = together.split(widths, dim=-1)
    pasts, num_new = ([None] * len(convolutions), None) if cache is None else (cache.conv, cache.num_new)
    made = (c(y, past, cu_seqlens, None, num_new) for c, y, past in zip(convolutions, parts, pasts, strict=True))
    return (*made, *rest)


def _products(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """x W^T for each of `weights`: the narrow ones by one product."""
    narrow = [weight for weight in weights if len(weight) < MIN_CHANNELS_OF_A_PRODUCT]
    if len(narrow) < 2:
        return [F.linear(x, weight) for weight in weights]
    made = iter(F.linear(x, torch.cat(narrow)).split([len(weight) for weight in narrow], dim=-1))
    return [next(made) if len(weight) < MIN_CHANNELS_OF_A_PRODUCT else F.linear(x, weight) for weight in weights]


def _is_plain(module: nn.Linear | ShortConvolution) -> bool:
    """Whether all that it does is done with its weight: no bias, adapter or hook, and nothing that makes the weight."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    is_own = type(module) in (nn.Linear, ShortConvolution) and "forward" not in vars(module)
    return is_own and "weight" in module._parameters and module.bias is None and not any(len(x) for x in hooks)


class ProjectedMixer(Mixer):
    """q, k, v = conv(W x) per head, [B, T, H, K or V].

    Args: those of `Mixer`, and
        conv_init_std: of the convolutions' taps: see `ShortConvolution`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        head_k_dim: int,
        head_v_dim: int,
        conv_width: int,
        conv_init_std: float | None,
    ) -> None:
        super().__init__(d_model, num_heads, head_k_dim, head_v_dim, conv_width)
        if conv_init_std is not None and not conv_width:
            raise ValueError(f"conv_init_std: got {conv_init_std}, expected null with conv_width = 0")
        self.k_width, self.v_width = num_heads * head_k_dim, num_heads * head_v_dim
        self.q_proj = nn.Linear(d_model, self.k_width, bias=False)
        self.k_proj = nn.Linear(d_model, self.k_width, bias=False)
        self.v_proj = nn.Linear(d_model, self.v_width, bias=False)
        # A width of 0 means no convolution, where a mixer allows it.
        self.q_conv = ShortConvolution(self.k_width, conv_width, init_std=conv_init_std) if conv_width else None
        self.k_conv = ShortConvolution(self.k_width, conv_width, init_std=conv_init_std) if conv_width else None
        self.v_conv = ShortConvolution(self.v_width, conv_width, init_std=conv_init_std) if conv_width else None

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))

    def _project_input(
        self, x: Tensor, others: Sequence[nn.Linear], cache: MixerCache | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, ...]:
        """q, k [B, T, H, K] and v [B, T, H, V], then W x [B, T, width] for each of `others`, of x [B, T, D].

        Brings the convolutions' part of `cache` up to date.
        """
        projections = (self.q_proj, self.k_proj, self.v_proj)
        if self.q_conv is None or self.k_conv is None or self.v_conv is None:
            q, k, v, *rest = project(x, (*projections, *others))
        else:
            convolutions = (self.q_conv, self.k_conv, self.v_conv)
            q, k, v, *rest = project_and_convolve(x, projections, convolutions, others, cache, cu_seqlens)
        return self._split_heads(q), self._split_heads(k), self._split_heads(v), *rest


class RecurrentMixer(ProjectedMixer):
    """One state [K, V] per head: what is read from it passes a norm per head and a projection.

    Subclasses set `recurrence`, `o_norm` and `o_proj`, and define `_operands` and `memory`, and `_normalise` where
    `o_norm` takes no gate.

    Attributes:
        recurrence: of `kernels.fla.recurrences`, which says what it takes and gives.
    """

    recurrence: Callable[..., tuple[Tensor, Tensor]]
    o_norm: nn.Module
    o_proj: nn.Linear

    def state_shapes(self) -> tuple[tuple[int, int, int], ...]:
        return ((self.num_heads, self.head_k_dim, self.head_v_dim),)

    def _operands(
        self, x: Tensor, cache: MixerCache | None, cu_seqlens: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """What `recurrence` takes before its state, of x [B, T, D], and the gate [B, T, H * V] if there is one.

        Brings the convolutions' part of `cache` up to date.
        """
        raise NotImplementedError

    def _normalise(self, o: Tensor, gate: Tensor | None) -> Tensor:
        """[B, T, H, V] of what is read, o [B, T, H, V], and the gate [B, T, H * V]."""
        assert gate is not None
        return self.o_norm(o, self._split_heads(gate))

    def forward(self, x: Tensor, cache: MixerCache | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        check_packing(x, cache, cu_seqlens)
        operands, gate = self._operands(x, cache, cu_seqlens)
        if cache is not None:
            q, k, v, *gates = operands
            k, *gates = cache.without_padding(k, *gates)
            operands = (q, k, v, *gates)
        o, state = self.recurrence(*operands, None if cache is None else cache.state[0], cu_seqlens)
        if cache is not None:
            cache.keep_state((state,))
        return self.o_proj(self._normalise(o, gate).flatten(-2))
