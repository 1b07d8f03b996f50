"""Palimpsa-M: the memory in Mamba-2's block."""

# B batch, T time, D model width, H heads, K key dim, V value dim, G precisions a head

from __future__ import annotations

from torch import Tensor, nn

from palimpsa.mixers.base import MixerCache
from palimpsa.mixers.layers import GatedRMSNorm, ShortConvolution
from palimpsa.mixers.palimpsa import Operands, PalimpsaMixer
from palimpsa.mixers.projected import project_in_parts


class PalimpsaM(PalimpsaMixer):
    """Palimpsa in Mamba-2's block: the step size d_t gates the input; without metaplasticity it is Mamba-2.

    One projection gives the gate z, the value x, the key B, the query C and d's logits; x, B and C pass the
    convolution together. v_t = d_t value_t; beta_t = d_t softplus(s) u_t; scale 1;
    y = W_o RMSNorm((o + D value) silu(z)). All other arguments, shapes and errors: see `PalimpsaMixer`.

    Args:
        num_groups: key groups, a divisor of num_heads; heads of a group share B and C. None: one per head.
        num_norm_groups: a divisor of num_heads * head_v_dim: the output norm is over each of so many parts of the
            width. None: one per key group, as Mamba-2 has it.
        conv_bias: whether the convolution has a bias.
        step_size_limit: (low, high) that d_t is clamped to, Mamba-2's time_step_limit; None: not at all.
        projection_bias: whether input and output projection have a bias, Mamba-2's use_bias; it starts at 0.
    """

    scale = 1.0

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
        num_groups: int | None = None,
        num_norm_groups: int | None = None,
        conv_bias: bool = True,
        step_size_limit: tuple[float, float] | None = None,
        key_expansion: int = 1,
        conv_init_std: float | None = None,
        projection_bias: bool = False,
        plasticity: str = "vector",
        num_precisions: int | None = None,
        strength: float = 1.0,
        up_init: str = "normal",
    ) -> None:
        sizes = (d_model, num_heads, head_k_dim, head_v_dim, conv_width)
        memory = (metaplastic, importance_prior, forgetting, initial_plasticity, key_expansion)
        super().__init__(*sizes, *memory, step_size_limit, plasticity, num_precisions, strength, up_init)
        self.num_groups = num_heads if num_groups is None else num_groups
        if self.num_groups < 1 or num_heads % self.num_groups:
            raise ValueError(f"num_groups: got {num_groups}, expected a divisor of num_heads = {num_heads}")
        v_width, k_width = num_heads * head_v_dim, self.num_groups * self.head_k_dim
        num_norm_groups = self.num_groups if num_norm_groups is None else num_norm_groups
        if num_norm_groups < 1 or v_width % num_norm_groups:
            raise ValueError(f"num_norm_groups: got {num_norm_groups}, expected a divisor of the width {v_width}")
        self.conv_widths = (v_width, k_width, k_width)
        self.in_widths = (v_width, sum(self.conv_widths), num_heads)
        self.in_proj = nn.Linear(d_model, sum(self.in_widths), bias=projection_bias)
        self.conv = ShortConvolution(sum(self.conv_widths), conv_width, bias=conv_bias, init_std=conv_init_std)
        self.o_norm = GatedRMSNorm(v_width, norm_eps, gate_first=True, num_groups=num_norm_groups)
        self.out_proj = nn.Linear(v_width, d_model, bias=projection_bias)
        for projection in (self.in_proj, self.out_proj):
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    def _operands(self, x: Tensor, cache: MixerCache | None, cu_seqlens: Tensor | None) -> Operands:
        others = self._plasticity_projections()
        (gate, mixed, logits), for_plasticity = project_in_parts(x, self.in_proj, self.in_widths, others)
        past = None if cache is None else cache.conv[0]
        value, k, q = self.conv(mixed, past, cu_seqlens, self.conv_widths, cache and cache.num_new)
        value = value.unflatten(-1, (self.num_heads, -1))
        step_size, log_decay = self.decay(logits)
        return Operands(
            q=self._per_head(q),
            k=self._per_head(k),
            v=(step_size[..., None] * value).to(value.dtype),
            beta=self._beta(x, step_size, value.dtype, *for_plasticity),
            log_decay=log_decay,
            value=value,
            gate=gate,
        )

    def _per_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_groups, -1)).repeat_interleave(self.num_heads // self.num_groups, dim=2)

    def _output(self, o: Tensor, gate: Tensor) -> Tensor:
        return self.out_proj(self.o_norm(o.flatten(-2), gate))
