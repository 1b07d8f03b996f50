"""Baselines whose recurrence comes from flash-linear-attention: its kernels on a GPU, its reference code on a CPU."""

# B batch, T time, D model width, H heads, K key dim, V value dim

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsa.mixers.base import Mixer, check_packing
from palimpsa.mixers.layers import (
    GatedRMSNorm,
    MemoryTrace,
    MixerCache,
    ShortConvolution,
    log_decay_init,
    mean_window,
)


class GLA(Mixer):
    """Gated linear attention (arXiv 2312.06635): S_t = diag(alpha_t) S_{t-1} + k_t v_t^T, o_t = K^-1/2 q_t S_t.

    The log decay has one value a key channel, g_t = logsigmoid(W_2 W_1 x + b) / 16. b starts where every channel of a
    head has the decay that the other mixers give that head, so that initial windows agree across a comparison.

    Args:
        d_model: D.
        num_heads, head_k_dim, head_v_dim: H, K, V.
        conv_width: width of the short convolutions, tokens.
        forgetting: "small" or "normal", the initial decay.
        gate_rank: rank of the decay's projection.
        norm_eps: of the output norm.

    Raises:
        ValueError: for sizes below 1.
    """

    gate_temperature = 16.0

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        head_k_dim: int,
        head_v_dim: int,
        conv_width: int = 4,
        forgetting: str = "small",
        gate_rank: int = 16,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__(d_model, num_heads, head_k_dim, head_v_dim, conv_width)
        if gate_rank < 1:
            raise ValueError(f"gate_rank: got {gate_rank}, expected >= 1")
        k_width, v_width = num_heads * head_k_dim, num_heads * head_v_dim
        self.q_proj = nn.Linear(d_model, k_width, bias=False)
        self.k_proj = nn.Linear(d_model, k_width, bias=False)
        self.v_proj = nn.Linear(d_model, v_width, bias=False)
        self.q_conv = ShortConvolution(k_width, conv_width)
        self.k_conv = ShortConvolution(k_width, conv_width)
        self.v_conv = ShortConvolution(v_width, conv_width)
        self.decay_down = nn.Linear(d_model, gate_rank, bias=False)
        self.decay_up = nn.Linear(gate_rank, k_width, bias=False)
        rate, step_size = log_decay_init(num_heads, forgetting)
        # logsigmoid(b) = -c has the solution b = -log(expm1(c)).
        bias = -torch.log(torch.expm1(self.gate_temperature * rate * step_size))
        self.decay_bias = nn.Parameter(bias.repeat_interleave(head_k_dim))
        self.gate_proj = nn.Linear(d_model, v_width, bias=False)
        self.o_norm = GatedRMSNorm(head_v_dim, norm_eps, gate_first=False)
        self.o_proj = nn.Linear(v_width, d_model, bias=False)

    def state_shapes(self) -> tuple[tuple[int, int, int], ...]:
        return ((self.num_heads, self.head_k_dim, self.head_v_dim),)

    def _log_decay(self, x: Tensor) -> Tensor:
        """[B, T, H, K] fp32."""
        logits = self.decay_up(self.decay_down(x)).float() + self.decay_bias.float()
        return (F.logsigmoid(logits) / self.gate_temperature).unflatten(-1, (self.num_heads, -1))

    def forward(self, x: Tensor, cache: MixerCache | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        check_packing(cache, cu_seqlens)
        caches = [None] * 3 if cache is None else cache.conv
        q = self.q_conv(self.q_proj(x), caches[0], cu_seqlens).unflatten(-1, (self.num_heads, -1))
        k = self.k_conv(self.k_proj(x), caches[1], cu_seqlens).unflatten(-1, (self.num_heads, -1))
        v = self.v_conv(self.v_proj(x), caches[2], cu_seqlens).unflatten(-1, (self.num_heads, -1))
        o, state = _gla(q, k, v, self._log_decay(x), None if cache is None else cache.state[0], cu_seqlens)
        if cache is not None:
            cache.state[0].copy_(state)
        gate = self.gate_proj(x).unflatten(-1, (self.num_heads, -1))
        return self.o_proj(self.o_norm(o, gate).flatten(-2))

    @torch.no_grad()
    def memory(self, x: Tensor) -> MemoryTrace:
        log_decay = self._log_decay(x)
        return MemoryTrace(mean_window(log_decay).mean(dim=-1), None)


def _gla(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """o [B, T, H, V] and the final state [B, H, K, V]. Imported late: flash-linear-attention takes 9 s to import."""
    if q.is_cuda:
        from fla.ops.gla import chunk_gla

        # fla's decorators hide the signature from the type checker.
        return chunk_gla(q, k, v, g, initial_state=state, output_final_state=True, cu_seqlens=cu_seqlens)  # pyright: ignore
    from fla.ops.gla.naive import naive_recurrent_gla

    bounds = [0, q.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
    outputs, states = [], []
    for start, end in pairwise(bounds):
        pieces = (x[:, start:end] for x in (q, k, v, g))
        o, final = naive_recurrent_gla(*pieces, initial_state=state, output_final_state=True)
        assert final is not None
        outputs.append(o)
        states.append(final)
    return torch.cat(outputs, dim=1), torch.cat(states)
