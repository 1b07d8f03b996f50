"""Without beta and from the prior: simple gated linear attention by flash-linear-attention, divided by the prior."""

# B batch, T time, H heads, K key dim, V value dim, N sequences packed along T
from torch import Tensor

from .fla.guards import call_padded, guarded_chunk_simple_gla
from .types import PalimpsaOutput, PalimpsaState

# exp(-100) is the smallest number of float32 and below. The library takes differences of sums of g: -inf would become
# NaN, and a number of larger size would round what stands beside it.
_RESET = -100.0


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    importance_prior: Tensor,
    scale: float,
    output_final_state: bool,
    output_variance: bool,
    cu_seqlens: Tensor | None,
) -> PalimpsaOutput:
    """`palimpsa` for beta = None and no initial state, on a GPU, in half precision.

    The importance is the prior for ever, so that M = I_prior mu follows a linear recurrence, the output is
    scale q M / I_prior, and the variance is scale^2 q^2 / I_prior.

    Raises:
        ImportError: flash-linear-attention is not installed.
    """
    bounds = None if cu_seqlens is None else cu_seqlens.long()
    run = guarded_chunk_simple_gla(q.device)
    o, M = call_padded(
        run,
        (q, k, v, g.clamp(min=_RESET)),
        scale=scale,
        initial_state=None,
        output_final_state=output_final_state,
        cu_seqlens=bounds,
    )
    prior = importance_prior.float()[:, None]
    variance = state = None
    if output_variance:
        variance = (scale * q.float()).square().sum(-1, keepdim=True) / prior
        variance = variance.expand(v.shape).to(v.dtype, copy=True)
    if output_final_state:
        importance = prior[..., None].expand(M.shape).clone()
        state = PalimpsaState(M / importance, importance)
    return PalimpsaOutput((o / prior).to(v.dtype), variance, state)
