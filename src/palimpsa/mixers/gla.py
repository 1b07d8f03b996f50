"""Gated linear attention, with a decay of its own for every key channel or with one decay per head."""

# B batch, T time, D model width, H heads, K key dim, V value dim

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsa.kernels.fla.recurrences import gla, simple_gla
from palimpsa.mixers.base import MemoryTrace, MixerCache
from palimpsa.mixers.layers import GatedRMSNorm, at_least_fp32, mean_window
from palimpsa.mixers.linear_memory import LinearMemory
from palimpsa.mixers.parameters import initial_decay_bias
from palimpsa.mixers.projected import RecurrentMixer

# The published divisor of logsigmoid: it keeps decays close to 1 at the start of training.
GATE_TEMPERATURE = 16.0


class GLA(RecurrentMixer):
    """Gated linear attention (arXiv 2312.06635): S_t = diag(alpha_t) S_{t-1} + k_t v_t^T, o_t = K^-1/2 q_t S_t.

    The log decay has one value a key channel, g_t = logsigmoid(W_2 W_1 x + b) / 16. b starts where every channel of a
    head has the decay that the other mixers give that head, so that initial windows agree across a comparison.
    y = W_o (RMSNorm(o) silu(gate)), the norm over each head.

    Args:
        d_model: D.
        num_heads, head_k_dim, head_v_dim: H, K, V.
        conv_width: width of the short convolutions, tokens.
        forgetting: "very_small", "small" or "normal", the initial decay.
        gate_rank: rank of the decay's projection.
        norm_eps: of the output norm.
        conv_init_std: taps start from N(0, conv_init_std^2); None: from U(-W^-1/2, W^-1/2).

    Raises:
        ValueError: for sizes below 1, another `forgetting`, or a norm_eps or conv_init_std that is not > 0 and finite.
    """

    recurrence = staticmethod(gla)
    # Decay, write (2), read (2).
    flops_per_entry = 5

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
        conv_init_std: float | None = None,
    ) -> None:
        super().__init__(d_model, num_heads, head_k_dim, head_v_dim, conv_width, conv_init_std)
        if gate_rank < 1:
            raise ValueError(f"gate_rank: got {gate_rank}, expected >= 1")
        self.decay_down = nn.Linear(d_model, gate_rank, bias=False)
        self.decay_up = nn.Linear(gate_rank, self.k_width, bias=False)
        self.decay_bias = nn.Parameter(
            initial_decay_bias(num_heads, forgetting, GATE_TEMPERATURE).repeat_interleave(head_k_dim)
        )
        self.gate_proj = nn.Linear(d_model, self.v_width, bias=False)
        self.o_norm = GatedRMSNorm(head_v_dim, norm_eps, gate_first=False)
        self.o_proj = nn.Linear(self.v_width, d_model, bias=False)

    def _operands(
        self, x: Tensor, cache: MixerCache | None, cu_seqlens: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        q, k, v, decay_down, gate = self._project_input(x, (self.decay_down, self.gate_proj), cache, cu_seqlens)
        return (q, k, v, self._log_decay(decay_down)), gate

    def _log_decay(self, decay_down: Tensor) -> Tensor:
        """[B, T, H, K] fp32 of W_1 x [B, T, gate_rank]."""
        logits = at_least_fp32(self.decay_up(decay_down)) + at_least_fp32(self.decay_bias)
        return self._split_heads(F.logsigmoid(logits) / GATE_TEMPERATURE)

    @torch.no_grad()
    def memory(self, x: Tensor) -> MemoryTrace:
        return MemoryTrace(mean_window(self._log_decay(self.decay_down(x))).mean(dim=-1), None)

    @torch.no_grad()
    def linear_memory(self, x: Tensor) -> LinearMemory:
        (q, k, v, log_decay), _ = self._operands(x, None, None)
        return LinearMemory(q, k, v, log_decay, self.head_k_dim**-0.5)


class SimpleGLA(RecurrentMixer):
    """GLA with one decay per head: S_t = alpha_t S_{t-1} + k_t v_t^T, o_t = K^-1/2 q_t S_t.

    log alpha_t = logsigmoid(W_g x + b) / 16, as in flash-linear-attention's SimpleGatedLinearAttention; b starts at the
    decay that the other mixers give the head. The recurrence is Mamba-2's (arXiv 2405.21060) without the step size on
    its input. y = W_o (RMSNorm(o) silu(gate)), the norm over each head.

    Args:
        d_model: D.
        num_heads, head_k_dim, head_v_dim: H, K, V.
        conv_width: width of the short convolutions, tokens.
        forgetting: "very_small", "small" or "normal", the initial decay.
        norm_eps: of the output norm.
        conv_init_std: taps start from N(0, conv_init_std^2); None: from U(-W^-1/2, W^-1/2).

    Raises:
        ValueError: for sizes below 1, another `forgetting`, or a norm_eps or conv_init_std that is not > 0 and finite.
    """

    recurrence = staticmethod(simple_gla)
    # Decay, write (2), read (2).
    flops_per_entry = 5

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        head_k_dim: int,
        head_v_dim: int,
        conv_width: int = 4,
        forgetting: str = "small",
        norm_eps: float = 1e-6,
        conv_init_std: float | None = None,
    ) -> None:
        super().__init__(d_model, num_heads, head_k_dim, head_v_dim, conv_width, conv_init_std)
        self.decay_proj = nn.Linear(d_model, num_heads, bias=False)
        self.decay_bias = nn.Parameter(initial_decay_bias(num_heads, forgetting, GATE_TEMPERATURE))
        self.gate_proj = nn.Linear(d_model, self.v_width, bias=False)
        self.o_norm = GatedRMSNorm(head_v_dim, norm_eps, gate_first=False)
        self.o_proj = nn.Linear(self.v_width, d_model, bias=False)

    def _operands(
        self, x: Tensor, cache: MixerCache | None, cu_seqlens: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        q, k, v, decay_logits, gate = self._project_input(x, (self.decay_proj, self.gate_proj), cache, cu_seqlens)
        return (q, k, v, self._log_decay(decay_logits)), gate

    def _log_decay(self, logits: Tensor) -> Tensor:
        """[B, T, H] fp32 of W_g x [B, T, H]."""
        return F.logsigmoid(at_least_fp32(logits) + at_least_fp32(self.decay_bias)) / GATE_TEMPERATURE

    @torch.no_grad()
    def memory(self, x: Tensor) -> MemoryTrace:
        return MemoryTrace(mean_window(self._log_decay(self.decay_proj(x))), None)

    @torch.no_grad()
    def linear_memory(self, x: Tensor) -> LinearMemory:
        (q, k, v, log_decay), _ = self._operands(x, None, None)
        return LinearMemory(q, k, v, log_decay, self.head_k_dim**-0.5)
