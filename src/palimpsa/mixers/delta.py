"""DeltaNet and Gated DeltaNet: a write first takes off what the memory already recalls for its key."""

# B batch, T time, D model width, H heads, K key dim, V value dim

from __future__ import annotations

import torch
from torch import Tensor, nn

from palimpsa.kernels.fla.recurrences import delta_rule, gated_delta_rule
from palimpsa.mixers.base import MemoryTrace, MixerCache
from palimpsa.mixers.layers import GatedRMSNorm, at_least_fp32, check_norm_eps, l2_normalise, mean_window
from palimpsa.mixers.parameters import make_decay
from palimpsa.mixers.projected import RecurrentMixer


class DeltaNet(RecurrentMixer):
    """DeltaNet (arXiv 2406.06484): S_t = S_{t-1} + beta_t k_t (v_t - k_t S_{t-1})^T, o_t = K^-1/2 q_t S_t.

    q, k and v pass a short convolution with SiLU, q and k are L2-normalised, and beta_t = sigmoid(W_b x) is one value
    a head. y = W_o RMSNorm(o), the norm over each head, without a gate. Nothing decays: the memory window is infinite,
    and `memory` says None.

    Args:
        d_model: D.
        num_heads, head_k_dim, head_v_dim: H, K, V.
        conv_width: width of the short convolutions, tokens.
        norm_eps: of the output norm.
        conv_init_std: taps start from N(0, conv_init_std^2); None: from U(-W^-1/2, W^-1/2).

    Raises:
        ValueError: for sizes below 1, or a norm_eps or conv_init_std that is not > 0 and finite.
    """

    recurrence = staticmethod(delta_rule)
    # Recall, write and read (2 each).
    flops_per_entry = 6

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        head_k_dim: int,
        head_v_dim: int,
        conv_width: int = 4,
        norm_eps: float = 1e-6,
        conv_init_std: float | None = None,
    ) -> None:
        super().__init__(d_model, num_heads, head_k_dim, head_v_dim, conv_width, conv_init_std)
        self.beta_proj = nn.Linear(d_model, num_heads, bias=False)
        check_norm_eps(norm_eps)
        self.o_norm = nn.RMSNorm(head_v_dim, norm_eps)
        self.o_proj = nn.Linear(self.v_width, d_model, bias=False)

    def _operands(
        self, x: Tensor, cache: MixerCache | None, cu_seqlens: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        q, k, v, beta_logits = self._project_input(x, (self.beta_proj,), cache, cu_seqlens)
        return (l2_normalise(q), l2_normalise(k), v, torch.sigmoid(at_least_fp32(beta_logits))), None

    def _normalise(self, o: Tensor, gate: Tensor | None) -> Tensor:
        return self.o_norm(at_least_fp32(o)).to(o.dtype)

    @torch.no_grad()
    def memory(self, x: Tensor) -> MemoryTrace:
        return MemoryTrace(None, None)


class GatedDeltaNet(RecurrentMixer):
    """Gated DeltaNet (arXiv 2412.06464): DeltaNet's rule on a state that decays.

    S_t = a_t S_{t-1} + beta_t k_t (v_t - k_t a_t S_{t-1})^T, o_t = K^-1/2 q_t S_t, with beta_t = sigmoid(W_b x) and
    log a_t = -A softplus(W_a x + b), one value a head each. q, k and v pass a short convolution with SiLU, q and k are
    L2-normalised. y = W_o (RMSNorm(o) silu(gate)), the norm over each head.

    Args:
        d_model: D.
        num_heads, head_k_dim, head_v_dim: H, K, V.
        conv_width: width of the short convolutions, tokens.
        forgetting: "very_small", "small", "normal" or "random", the initial decay: see `make_decay`.
        norm_eps: of the output norm.
        conv_init_std: taps start from N(0, conv_init_std^2); None: from U(-W^-1/2, W^-1/2).

    Raises:
        ValueError: for sizes below 1, another `forgetting`, or a norm_eps or conv_init_std that is not > 0 and finite.
    """

    recurrence = staticmethod(gated_delta_rule)
    # DeltaNet's and the decay.
    flops_per_entry = 7

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
        self.decay = make_decay(num_heads, forgetting)
        self.decay_proj = nn.Linear(d_model, num_heads, bias=False)
        self.beta_proj = nn.Linear(d_model, num_heads, bias=False)
        self.gate_proj = nn.Linear(d_model, self.v_width, bias=False)
        self.o_norm = GatedRMSNorm(head_v_dim, norm_eps, gate_first=False)
        self.o_proj = nn.Linear(self.v_width, d_model, bias=False)

    def _operands(
        self, x: Tensor, cache: MixerCache | None, cu_seqlens: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        others = (self.beta_proj, self.decay_proj, self.gate_proj)
        q, k, v, beta_logits, decay_logits, gate = self._project_input(x, others, cache, cu_seqlens)
        beta = torch.sigmoid(at_least_fp32(beta_logits))
        return (l2_normalise(q), l2_normalise(k), v, beta, self._log_decay(decay_logits)), gate

    def _log_decay(self, logits: Tensor) -> Tensor:
        """[B, T, H] fp32 of W_a x [B, T, H]."""
        return self.decay(logits)[1]

    @torch.no_grad()
    def memory(self, x: Tensor) -> MemoryTrace:
        return MemoryTrace(mean_window(self._log_decay(self.decay_proj(x))), None)
