"""Softmax attention: the memory that keeps every token."""

# B batch, T new tokens, S all tokens so far, D model width, H heads, K key dim, V value dim

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsa.kernels.sequences import linked
from palimpsa.mixers.base import MemoryTrace, MixerCache, check_packing
from palimpsa.mixers.layers import at_least_fp32, token_positions
from palimpsa.mixers.projected import ProjectedMixer


class Attention(ProjectedMixer):
    """Causal softmax attention with rotary positions: o_t = sum_s softmax_s(K^-1/2 q_t k_s) v_s over s <= t.

    q and k are rotated by their position in their sequence (RoPE, arXiv 2104.09864; halves as in Llama). q, k and v
    pass the short convolution with SiLU that every mixer has; conv_width = 0 leaves it out, which is Llama's attention.

    The memory grows with the context: a cache's state is the keys and values of all tokens so far, [B, H, S, K] and
    [B, H, S, V], in the dtype that they were computed in. There is no recurrent state of a fixed size, so that
    `state_size` is 0, and no window.

    Args:
        d_model: D.
        num_heads, head_k_dim, head_v_dim: H, K, V.
        conv_width: width of the short convolutions, tokens; 0: none.
        rope_base: slowest angle's base: position p turns pair i by p * rope_base^(-2i/K).
        conv_init_std: taps start from N(0, conv_init_std^2); None: from U(-W^-1/2, W^-1/2).

    Raises:
        ValueError: for sizes out of range, an odd head_k_dim, or a conv_init_std without convolutions.
    """

    min_conv_width = 0

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        head_k_dim: int,
        head_v_dim: int,
        conv_width: int = 4,
        rope_base: float = 10_000.0,
        conv_init_std: float | None = None,
    ) -> None:
        super().__init__(d_model, num_heads, head_k_dim, head_v_dim, conv_width, conv_init_std)
        if head_k_dim % 2:
            raise ValueError(f"head_k_dim: got {head_k_dim}, expected an even number (rotary positions turn pairs)")
        if not 1 < rope_base < float("inf"):
            raise ValueError(f"rope_base: got {rope_base}, expected > 1 and finite")
        self.rope_base = rope_base
        self.o_proj = nn.Linear(self.v_width, d_model, bias=False)

    def state_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """None of a fixed size."""
        return ()

    @property
    def state_growth(self) -> int:
        """A key and a value a head."""
        return self.num_heads * (self.head_k_dim + self.head_v_dim)

    def memory_flops(self, context: int) -> int:
        """2 (K + V) operations a head for each of the (context + 1) / 2 tokens that one sees on average."""
        return self.num_heads * (self.head_k_dim + self.head_v_dim) * (context + 1)

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Keys and values of no tokens, [B, H, 0, K] and [B, H, 0, V]."""
        like = next(self.parameters())
        keys, values = (like.new_zeros(batch_size, self.num_heads, 0, n) for n in (self.head_k_dim, self.head_v_dim))
        return keys, values

    def forward(self, x: Tensor, cache: MixerCache | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        check_packing(x, cache, cu_seqlens)
        q, k, v = self._project_input(x, (), cache, cu_seqlens)
        if cache is not None and (cache.num_new is not None or len(cache.state) == 3):
            return self.o_proj(self._attend_ragged(q, k, v, cache).transpose(1, 2).flatten(-2))
        num_past = 0 if cache is None else cache.state[0].shape[2]
        if cu_seqlens is None:
            position = torch.arange(num_past, num_past + x.shape[1], device=x.device)
        else:
            position = token_positions(cu_seqlens, x.shape[1])
        # SDPA wants heads before time.
        q, k, v = (y.transpose(1, 2) for y in (self._rotate(q, position), self._rotate(k, position), v))
        if cache is not None:
            k, v = (torch.cat([past.to(y.dtype), y], dim=2) for past, y in zip(cache.state, (k, v), strict=True))
            cache.state = (k, v)
        if cu_seqlens is None:
            o = _attend(q, k, v)
        else:
            bounds = pairwise(cu_seqlens.tolist())
            pieces = [_attend(*(y[:, :, start:end] for y in (q, k, v))) for start, end in bounds if end > start]
            o = torch.cat(pieces, dim=2) if pieces else linked(v, (q, k))
        return self.o_proj(o.transpose(1, 2).flatten(-2))

    def _attend_ragged(self, q: Tensor, k: Tensor, v: Tensor, cache: MixerCache) -> Tensor:
        """[B, H, T, V] of sequences that are, or become, of several lengths; brings the cache up to date.

        Each row's keys stand at their own positions from 0 on, so that padding is what lies behind a row's last token,
        where no query looks before the next token takes its place.
        """
        num_new, (B, T) = cache.num_new, q.shape[:2]
        keys, values = cache.state[:2]
        lengths = cache.state[2] if len(cache.state) == 3 else torch.full((B,), keys.shape[2], device=q.device)
        position = lengths[:, None] + torch.arange(T, device=q.device)
        q, k, v = (y.transpose(1, 2) for y in (self._rotate(q, position), self._rotate(k, position), v))
        keys, values = (
            F.pad(past.to(y.dtype), (0, 0, 0, T)).scatter(2, position[:, None, :, None].expand_as(y), y)
            for past, y in ((keys, k), (values, v))
        )
        cache.state = (keys, values, lengths + (T if num_new is None else num_new))
        seen = torch.arange(keys.shape[2], device=q.device) <= position[:, None, :, None]
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=seen)

    def _rotate(self, x: Tensor, position: Tensor) -> Tensor:
        """RoPE: x [B, T, H, K] at position [T] or [B, T]; channels i and i + K/2 are a pair."""
        half = self.head_k_dim // 2
        frequency = self.rope_base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
        # fp32: bf16 holds positions up to 256 exactly.
        angle = position.float()[..., None, None] * frequency
        cos, sin = angle.cos(), angle.sin()
        first, second = at_least_fp32(x).chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)

    @torch.no_grad()
    def memory(self, x: Tensor) -> MemoryTrace:
        return MemoryTrace(None, None)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of the last T of S tokens: q [B, H, T, K], k [B, H, S, K], v [B, H, S, V] -> [B, H, T, V]."""
    num_new, num_all = q.shape[2], k.shape[2]
    if num_new == num_all:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    # is_causal would line up the first query, not the last, with the first key.
    seen = torch.ones(num_new, num_all, dtype=torch.bool, device=q.device).tril(num_all - num_new)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
