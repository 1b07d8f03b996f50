"""Palimpsa-D: the memory in Gated DeltaNet's block."""

# B batch, T time, D model width, H heads, K key dim, V value dim, G precisions a head

from __future__ import annotations

import torch
from torch import Tensor, nn

from palimpsa.mixers.base import MixerCache
from palimpsa.mixers.layers import GatedRMSNorm, ShortConvolution, at_least_fp32, l2_normalise
from palimpsa.mixers.palimpsa import Operands, PalimpsaMixer
from palimpsa.mixers.projected import project_and_convolve


class PalimpsaD(PalimpsaMixer):
    """Palimpsa in Gated DeltaNet's block: its own input gate, normalised keys, a gated norm per head.

    b_t = sigmoid(W_b x); v_t = b_t value_t; beta_t = b_t softplus(s) u_t; q and k L2-normalised; scale K^-1/2;
    y = W_o (RMSNorm(o + D value) silu(gate)). Arguments, shapes and errors: see `PalimpsaMixer`.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        head_k_dim: int,
        head_v_dim: int,
        conv_width: int = 4,
        metaplastic: bool = True,
        importance_prior: float = 1.0,
        forgetting: str = "small",
        initial_plasticity: tuple[float, float] | None = None,
        norm_eps: float = 1e-6,
        plasticity: str = "vector",
        key_expansion: int = 1,
        conv_init_std: float | None = None,
        num_precisions: int | None = None,
        strength: float = 1.0,
        up_init: str = "normal",
    ) -> None:
        sizes = (d_model, num_heads, head_k_dim, head_v_dim, conv_width)
        memory = (metaplastic, importance_prior, forgetting, initial_plasticity, key_expansion)
        super().__init__(*sizes, *memory, None, plasticity, num_precisions, strength, up_init)
        k_width, v_width = num_heads * self.head_k_dim, num_heads * head_v_dim
        self.q_proj = nn.Linear(d_model, k_width, bias=False)
        self.k_proj = nn.Linear(d_model, k_width, bias=False)
        self.v_proj = nn.Linear(d_model, v_width, bias=False)
        self.q_conv = ShortConvolution(k_width, conv_width, init_std=conv_init_std)
        self.k_conv = ShortConvolution(k_width, conv_width, init_std=conv_init_std)
        self.v_conv = ShortConvolution(v_width, conv_width, init_std=conv_init_std)
        self.decay_proj = nn.Linear(d_model, num_heads, bias=False)
        self.input_gate_proj = nn.Linear(d_model, num_heads, bias=False)
        self.gate_proj = nn.Linear(d_model, v_width, bias=False)
        self.o_norm = GatedRMSNorm(head_v_dim, norm_eps, gate_first=False)
        self.o_proj = nn.Linear(v_width, d_model, bias=False)

    def _operands(self, x: Tensor, cache: MixerCache | None, cu_seqlens: Tensor | None) -> Operands:
        q, k, value, input_logits, decay_logits, gate, *for_plasticity = project_and_convolve(
            x,
            (self.q_proj, self.k_proj, self.v_proj),
            (self.q_conv, self.k_conv, self.v_conv),
            (self.input_gate_proj, self.decay_proj, self.gate_proj, *self._plasticity_projections()),
            cache,
            cu_seqlens,
        )
        q, k, value = (y.unflatten(-1, (self.num_heads, -1)) for y in (q, k, value))
        input_gate = torch.sigmoid(at_least_fp32(input_logits))
        return Operands(
            q=l2_normalise(q),
            k=l2_normalise(k),
            v=(input_gate[..., None] * value).to(value.dtype),
            beta=self._beta(x, input_gate, value.dtype, *for_plasticity),
            log_decay=self.decay(decay_logits)[1],
            value=value,
            gate=gate,
        )

    def _output(self, o: Tensor, gate: Tensor) -> Tensor:
        return self.o_proj(self.o_norm(o, gate.unflatten(-1, (self.num_heads, -1))).flatten(-2))
