"""Mixers that give q, k and v a projection and a short convolution each, and those of them that carry one state."""

# B batch, T time, D model width, H heads, K key dim, V value dim

from __future__ import annotations

from torch import Tensor, nn

from palimpsa.mixers.base import Mixer, check_packing
from palimpsa.mixers.layers import MixerCache, ShortConvolution


class ProjectedMixer(Mixer):
    """q, k, v = conv(W x) per head, [B, T, H, K or V]. Arguments: see `Mixer`."""

    def __init__(self, d_model: int, num_heads: int, head_k_dim: int, head_v_dim: int, conv_width: int) -> None:
        super().__init__(d_model, num_heads, head_k_dim, head_v_dim, conv_width)
        self.k_width, self.v_width = num_heads * head_k_dim, num_heads * head_v_dim
        self.q_proj = nn.Linear(d_model, self.k_width, bias=False)
        self.k_proj = nn.Linear(d_model, self.k_width, bias=False)
        self.v_proj = nn.Linear(d_model, self.v_width, bias=False)
        # A width of 0 means no convolution, where a mixer allows it.
        self.q_conv = ShortConvolution(self.k_width, conv_width) if conv_width else None
        self.k_conv = ShortConvolution(self.k_width, conv_width) if conv_width else None
        self.v_conv = ShortConvolution(self.v_width, conv_width) if conv_width else None

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1))

    def _queries_keys_values(
        self, x: Tensor, cache: MixerCache | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k [B, T, H, K] and v [B, T, H, V] of x [B, T, D]; brings the convolutions' part of `cache` up to date."""
        caches = [None] * 3 if cache is None or not cache.conv else cache.conv
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.q_conv is not None and self.k_conv is not None and self.v_conv is not None:
            q = self.q_conv(q, caches[0], cu_seqlens)
            k = self.k_conv(k, caches[1], cu_seqlens)
            v = self.v_conv(v, caches[2], cu_seqlens)
        return self._heads(q), self._heads(k), self._heads(v)


class RecurrentMixer(ProjectedMixer):
    """One state [K, V] per head: what is read from it passes a norm per head and a projection.

    Subclasses define `_recur` and `memory`, set `o_norm` and `o_proj`, and define `_normalise` where `o_norm` takes no
    gate or there is no `gate_proj`.
    """

    gate_proj: nn.Linear
    o_norm: nn.Module
    o_proj: nn.Linear

    def state_shapes(self) -> tuple[tuple[int, int, int], ...]:
        return ((self.num_heads, self.head_k_dim, self.head_v_dim),)

    def _recur(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Tensor | None, cu_seqlens: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What is read, [B, T, H, V], and the state afterwards, [B, H, K, V] fp32."""
        raise NotImplementedError

    def _normalise(self, o: Tensor, x: Tensor) -> Tensor:
        """[B, T, H, V] of o [B, T, H, V] and the input x [B, T, D]."""
        return self.o_norm(o, self._heads(self.gate_proj(x)))

    def forward(self, x: Tensor, cache: MixerCache | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        check_packing(x, cache, cu_seqlens)
        q, k, v = self._queries_keys_values(x, cache, cu_seqlens)
        o, state = self._recur(x, q, k, v, None if cache is None else cache.state[0], cu_seqlens)
        if cache is not None:
            cache.state[0].copy_(state)
        return self.o_proj(self._normalise(o, x).flatten(-2))
