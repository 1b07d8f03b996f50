"""Palimpsa-D and Palimpsa-M: the layers around the operator, with and without metaplasticity."""

# B batch, T time, D model width, H heads, K key dim, V value dim, G precisions a head

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from palimpsa.kernels import PalimpsaOutput, PalimpsaState, palimpsa, palimpsa_step
from palimpsa.mixers.base import MemoryTrace, Mixer, MixerCache, check_packing, checked_range
from palimpsa.mixers.layers import GatedRMSNorm, ShortConvolution, at_least_fp32, l2_normalise, mean_window
from palimpsa.mixers.parameters import make_decay
from palimpsa.mixers.plasticity import make_plasticity
from palimpsa.mixers.projected import project_and_convolve, project_in_parts


class _Operands(NamedTuple):
    """q, k [B,T,H,K]; v [B,T,H,V]; beta [B,T,H,G]; log_decay [B,T,H]; value [B,T,H,V] for the skip; gate [B,T,H*V]."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor | None
    log_decay: Tensor
    value: Tensor
    gate: Tensor


class PalimpsaMixer(Mixer):
    """What Palimpsa-D and Palimpsa-M share: the memory, its skip and the order of things.

    Args:
        d_model, num_heads, head_v_dim: D, H, V.
        head_k_dim, key_expansion: their product is K, the memory's key width. A control without importance has as many
            recurrent numbers as mean and importance of a precision a row ("vector") with key_expansion = 2.
        conv_width: W, tokens. conv_init_std: taps start from N(0, conv_init_std^2); None: from U(-W^-1/2, W^-1/2).
        metaplastic: False leaves out the importance (beta = 0): simple gated linear attention in Palimpsa-D's block,
            Mamba-2 in Palimpsa-M's.
        importance_prior: I_prior > 0, the same for all heads, not trained.
        forgetting: "small", "normal" or "random", the initial decay: see `make_decay`.
        initial_plasticity: (low, high), the range of the log-uniform draw of softplus(s), of language models; None: s
            starts at 1.
        plasticity, num_precisions: how many precisions a token has in a head, G, and how they are made: see
            `make_plasticity`. The importances are K G numbers a head.
        norm_eps: of the output norm.

    Raises:
        ValueError: for a size below 1, a number that is not > 0 and finite, a range that is none, another name, or
            what `make_plasticity` refuses.
    """

    # M 3, the read 2 for each entry of the mean; I 4, the division 1 for each of the importance.
    flops_per_entry = 5
    scale: float | None = None
    importance_prior: Tensor

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        head_k_dim: int,
        head_v_dim: int,
        conv_width: int,
        metaplastic: bool,
        importance_prior: float,
        forgetting: str,
        initial_plasticity: tuple[float, float] | None,
        key_expansion: int,
        step_size_limit: tuple[float, float] | None = None,
        plasticity: str = "vector",
        num_precisions: int | None = None,
    ) -> None:
        super().__init__(d_model, num_heads, head_k_dim, head_v_dim, conv_width)
        if key_expansion < 1:
            raise ValueError(f"key_expansion: got {key_expansion}, expected >= 1")
        self.head_k_dim = key_expansion * head_k_dim
        if not 0 < importance_prior < float("inf"):
            raise ValueError(f"importance_prior: got {importance_prior}, expected > 0 and finite")
        step_size_limit = checked_range("step_size_limit", step_size_limit, above_zero=False)
        self.decay = make_decay(num_heads, forgetting, step_size_limit)
        self.plasticity = make_plasticity(
            plasticity, d_model, num_heads, head_v_dim, num_precisions, initial_plasticity, metaplastic=metaplastic
        )
        self.skip = nn.Parameter(torch.ones(num_heads))
        self.register_buffer("importance_prior", torch.full((num_heads,), float(importance_prior)))

    def state_shapes(self) -> tuple[tuple[int, int, int], ...]:
        mean = (self.num_heads, self.head_k_dim, self.head_v_dim)
        return (mean,) if self.plasticity is None else (mean, (*mean[:2], self.plasticity.num_precisions))

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        states = super().initial_state(batch_size)
        return states if self.plasticity is None else (states[0], self._prior_importance(states[1]).clone())

    def _prior_importance(self, like: Tensor) -> Tensor:
        return self.importance_prior[:, None, None].to(like.dtype).expand_as(like)

    def _operands(self, x: Tensor, cache: MixerCache | None, cu_seqlens: Tensor | None) -> _Operands:
        raise NotImplementedError

    def _output(self, o: Tensor, gate: Tensor) -> Tensor:
        raise NotImplementedError

    def _plasticity_projections(self) -> tuple[nn.Linear, ...]:
        """What compiled code projects together with the rest: the first half of the plasticity."""
        return self.plasticity.input_projections if self.plasticity and torch.compiler.is_compiling() else ()

    def _beta(self, x: Tensor, input_gate: Tensor, dtype: torch.dtype, *projected: Tensor) -> Tensor | None:
        """beta_t [B, T, H, G], for input_gate [B, T, H]; projected: x by `_plasticity_projections`."""
        return None if self.plasticity is None else self.plasticity(x, input_gate, *projected).to(dtype)

    def forward(self, x: Tensor, cache: MixerCache | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        check_packing(x, cache, cu_seqlens)
        operands = self._operands(x, cache, cu_seqlens)
        if cache is not None:
            k, log_decay = cache.without_padding(operands.k, operands.log_decay)
            operands = operands._replace(k=k, log_decay=log_decay)
        if cache is None:
            o = self._attend(operands, cu_seqlens=cu_seqlens).o
        elif x.shape[1] == 1 and not torch.is_grad_enabled():
            o = self._attend_one(operands, self._state(cache))
        else:
            o, _, final_state = self._attend(operands, initial_state=self._state(cache), output_final_state=True)
            assert final_state is not None
            cache.keep_state(final_state)
        return self._output(o + (self.skip[:, None] * operands.value).to(o.dtype), operands.gate)

    def _state(self, cache: MixerCache) -> PalimpsaState:
        mean = cache.state[0]
        return PalimpsaState(mean, cache.state[1] if len(cache.state) > 1 else self._prior_importance(mean))

    def _attend(self, operands: _Operands, **options) -> PalimpsaOutput:
        return palimpsa(*operands[:5], self.importance_prior, scale=self.scale, **options)

    def _attend_one(self, operands: _Operands, state: PalimpsaState) -> Tensor:
        q, k, v, log_decay = (x[:, 0] for x in (operands.q, operands.k, operands.v, operands.log_decay))
        beta = None if operands.beta is None else operands.beta[:, 0]
        if self.plasticity is None:
            # Without metaplasticity the importance is the prior for ever, and the step must not write to its view.
            state = PalimpsaState(state.mean, state.importance.clone())
        return palimpsa_step(q, k, v, beta, log_decay, self.importance_prior, state, scale=self.scale).o[:, None]

    @torch.no_grad()
    def memory(self, x: Tensor) -> MemoryTrace:
        operands = self._operands(x, None, None)
        state = self._attend(operands, output_final_state=True).final_state
        assert state is not None
        return MemoryTrace(mean_window(operands.log_decay), state.importance)


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
    ) -> None:
        sizes = (d_model, num_heads, head_k_dim, head_v_dim, conv_width)
        memory = (metaplastic, importance_prior, forgetting, initial_plasticity, key_expansion)
        super().__init__(*sizes, *memory, plasticity=plasticity, num_precisions=num_precisions)
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

    def _operands(self, x: Tensor, cache: MixerCache | None, cu_seqlens: Tensor | None) -> _Operands:
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
        return _Operands(
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
    ) -> None:
        sizes = (d_model, num_heads, head_k_dim, head_v_dim, conv_width)
        memory = (metaplastic, importance_prior, forgetting, initial_plasticity, key_expansion)
        super().__init__(*sizes, *memory, step_size_limit, plasticity, num_precisions)
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

    def _operands(self, x: Tensor, cache: MixerCache | None, cu_seqlens: Tensor | None) -> _Operands:
        others = self._plasticity_projections()
        (gate, mixed, logits), for_plasticity = project_in_parts(x, self.in_proj, self.in_widths, others)
        past = None if cache is None else cache.conv[0]
        value, k, q = self.conv(mixed, past, cu_seqlens, self.conv_widths, cache and cache.num_new)
        value = value.unflatten(-1, (self.num_heads, -1))
        step_size, log_decay = self.decay(logits)
        return _Operands(
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
