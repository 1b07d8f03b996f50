"""What Palimpsa-D and Palimpsa-M share: the memory around the operator, with and without metaplasticity."""

# B batch, T time, D model width, H heads, K key dim, V value dim, G precisions a head

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from palimpsa.kernels import PalimpsaOutput, PalimpsaState, palimpsa, palimpsa_step
from palimpsa.mixers.base import MemoryTrace, Mixer, MixerCache, check_packing, checked_range
from palimpsa.mixers.layers import mean_window
from palimpsa.mixers.linear_memory import LinearMemory
from palimpsa.mixers.parameters import make_decay
from palimpsa.mixers.plasticity import make_plasticity


class Operands(NamedTuple):
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
        forgetting: "very_small", "small", "normal" or "random", the initial decay: see `make_decay`.
        initial_plasticity: (low, high), the range of the log-uniform draw of softplus(s), of language models; None: s
            starts at 1.
        plasticity, num_precisions: how many precisions a token has in a head, G, and how they are made: see
            `make_plasticity`. The importances are K G numbers a head.
        strength, up_init: what every beta is multiplied by, and how W_up starts: see `Plasticity`.
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
        strength: float = 1.0,
        up_init: str = "normal",
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
            plasticity,
            d_model,
            num_heads,
            head_v_dim,
            num_precisions,
            initial_plasticity,
            metaplastic=metaplastic,
            strength=strength,
            up_init=up_init,
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

    def _operands(self, x: Tensor, cache: MixerCache | None, cu_seqlens: Tensor | None) -> Operands:
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

    def _attend(self, operands: Operands, **options) -> PalimpsaOutput:
        return palimpsa(*operands[:5], self.importance_prior, scale=self.scale, **options)

    def _attend_one(self, operands: Operands, state: PalimpsaState) -> Tensor:
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

    @torch.no_grad()
    def linear_memory(self, x: Tensor) -> LinearMemory:
        q, k, v, beta, log_decay, *_ = self._operands(x, None, None)
        scale = self.head_k_dim**-0.5 if self.scale is None else self.scale
        return LinearMemory(q, k, v, log_decay, scale, beta, self.importance_prior)

    @torch.no_grad()
    def recall(self, x: Tensor) -> PalimpsaOutput:
        """What every token recalls of x [B, T, D], and how unsure of it the memory is.

        Returns:
            o [B, T, H, V], before skip, norm and gate, and its epistemic variance, scale^2 q_t^2 (1 / I_t).
        """
        return self._attend(self._operands(x, None, None), output_variance=True)

    @torch.no_grad()
    def variance(self, x: Tensor) -> Tensor:
        """The epistemic variance of what every token recalls, [B, T, H, V] for x [B, T, D]: see `recall`."""
        variance = self.recall(x).variance
        assert variance is not None
        return variance
