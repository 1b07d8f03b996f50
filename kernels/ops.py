"""The public operators, and the choice of the path that computes them."""

# B batch, T time, H heads, K key dim, V value dim, N sequences packed along T
import os
from collections.abc import Callable

import torch
from torch import Tensor

from .chunked import palimpsa_chunked
from .reference import palimpsa_reference
from .types import PalimpsaOutput, PalimpsaState
from .validation import check_step_inputs, compute_dtype

_PATHS: dict[str, Callable[..., PalimpsaOutput]] = {
    "reference": palimpsa_reference,
    "chunked": palimpsa_chunked,
}
_DEFAULT_PATH = "chunked"
# Device type -> path, where the default is not the best one.
_PATH_OF_DEVICE: dict[str, str] = {}


def _choose_path(device: torch.device) -> Callable[..., PalimpsaOutput]:
    name = os.environ.get("PALIMPSA_PATH") or _PATH_OF_DEVICE.get(device.type, _DEFAULT_PATH)
    if name not in _PATHS:
        raise ValueError(f"the environment variable PALIMPSA_PATH is {name!r}, expected one of {', '.join(_PATHS)}")
    return _PATHS[name]


def palimpsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor,
    importance_prior: Tensor,
    *,
    scale: float | None = None,
    initial_state: tuple[Tensor, Tensor] | None = None,
    output_final_state: bool = False,
    output_variance: bool = False,
    cu_seqlens: Tensor | None = None,
) -> PalimpsaOutput:
    r"""Writes T tokens into a Bayesian memory and reads it after each of them.

    Eq. 25-26 of arXiv 2602.09075, for each head, elementwise over the [K, V] memory (x is the outer product):

        alpha_t = exp(g_t)
        I_t     = alpha_t I_{t-1} + (1 - alpha_t) I_prior + k_t^2 x beta_t      importance: Eq. 25
        mu_t    = (alpha_t I_{t-1} mu_{t-1} + k_t x v_t) / I_t                  mean: Eq. 26
        o_t     = scale q_t mu_t
        var_t   = scale^2 q_t^2 (1 / I_t)

    The memory starts at mu = 0, I = I_prior, or at `initial_state`. Differentiable once in every tensor argument,
    through every output.

    Args:
        q, k: [B, T, H, K], queries and keys: float64, float32, bfloat16 or float16.
        v: [B, T, H, V], values, already weighted by their input gate; q's dtype.
        beta: [B, T, H, V], >= 0, the observation precision: how strongly a token consolidates each row. q's dtype
            or float32. None means 0: importance is never earned, which is simple gated linear attention divided
            by I_prior, at its cost.
        g: [B, T, H], <= 0, natural log of the decay of one token. Float32 (or float64 with float64 inputs). The
            memory's window is 1 / (1 - exp(g)) tokens; 0 never forgets; -inf resets the memory to the prior
            before the token is written.
        importance_prior: [H], > 0, importance of the prior; any floating dtype.
        scale: a finite number; K ** -0.5 by default.
        initial_state: a PalimpsaState or any pair (mean, importance), each [B, H, K, V], or [N, H, K, V] with
            `cu_seqlens`; float32 or float64, importance > 0.
        output_final_state: also return the memory after the last token.
        output_variance: also return var.
        cu_seqlens: [N + 1] integers that start at 0, end at T and do not decrease: token cu_seqlens[n] up to
            cu_seqlens[n + 1] is sequence n, which starts from its own state. Needs B = 1. A sequence may be empty.

    Returns:
        PalimpsaOutput(o, variance, final_state): o and variance [B, T, H, V] in v's dtype; final_state
        [B, H, K, V] ([N, H, K, V]) float32, float64 for float64 inputs. What was not asked for is None.

    Raises:
        TypeError, ValueError: naming the argument, what came and what was expected. Values (signs, NaN) are
            checked when the environment variable PALIMPSA_DEBUG is 1, or unset and the tensors are on the CPU.

    The environment variable PALIMPSA_PATH = reference | chunked overrides the implementation.

    Example:
        >>> import torch
        >>> B, T, H, K, V = 2, 5, 3, 4, 6
        >>> q, k, v = torch.randn(B, T, H, K), torch.randn(B, T, H, K), torch.randn(B, T, H, V)
        >>> beta, g, prior = torch.rand(B, T, H, V), -torch.rand(B, T, H), torch.ones(H)
        >>> out = palimpsa(q, k, v, beta, g, prior, output_final_state=True)
        >>> out.o.shape, out.final_state.mean.shape, out.variance
        (torch.Size([2, 5, 3, 6]), torch.Size([2, 3, 4, 6]), None)
        >>> half = [x[:, :3] for x in (q, k, v, beta, g)], [x[:, 3:] for x in (q, k, v, beta, g)]
        >>> state = palimpsa(*half[0], prior, output_final_state=True).final_state
        >>> rest = palimpsa(*half[1], prior, initial_state=state)
        >>> torch.allclose(rest.o, out.o[:, 3:], atol=1e-6)
        True
    """
    path = _choose_path(q.device) if isinstance(q, Tensor) else palimpsa_chunked
    return path(
        q,
        k,
        v,
        beta,
        g,
        importance_prior,
        scale=scale,
        initial_state=initial_state,
        output_final_state=output_final_state,
        output_variance=output_variance,
        cu_seqlens=cu_seqlens,
    )


@torch.no_grad()
def _step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor,
    importance_prior: Tensor,
    state: PalimpsaState,
    scale: float,
    output_variance: bool,
) -> PalimpsaOutput:
    out_dtype, dtype = v.dtype, compute_dtype(q.dtype)
    q, k, v = q.to(dtype), k.to(dtype)[..., :, None], v.to(dtype)[..., None, :]
    alpha = g.to(dtype).exp()[..., None, None]
    prior = importance_prior.to(dtype)[:, None, None]
    mean, importance = state

    mean.mul_(importance).mul_(alpha).addcmul_(k, v)
    importance.mul_(alpha).add_((1 - alpha) * prior)
    if beta is not None:
        importance.addcmul_(k.square(), beta.to(dtype)[..., None, :])
    mean.div_(importance)

    o = scale * (q[..., None, :] @ mean).squeeze(-2)
    variance = None
    if output_variance:
        variance = scale**2 * (q.square()[..., None, :] @ importance.reciprocal()).squeeze(-2)
        variance = variance.to(out_dtype)
    return PalimpsaOutput(o.to(out_dtype), variance, state)


def palimpsa_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor,
    importance_prior: Tensor,
    state: tuple[Tensor, Tensor],
    *,
    scale: float | None = None,
    output_variance: bool = False,
) -> PalimpsaOutput:
    """One token of `palimpsa` for decoding: updates `state` in place and reads it.

    Same equations, ranges and dtypes as `palimpsa`. No backward: run it under `torch.no_grad()`.

    Args:
        q, k: [B, H, K].
        v, beta: [B, H, V]; beta may be None.
        g: [B, H], <= 0.
        importance_prior: [H], > 0.
        state: (mean, importance), each [B, H, K, V], float32 (float64 for float64 inputs): the `final_state` of
            `palimpsa` or of the step before. Overwritten.
        scale: a finite number; K ** -0.5 by default.
        output_variance: also return var.

    Returns:
        PalimpsaOutput(o, variance, final_state): o and variance [B, H, V] in v's dtype; final_state holds the two
        tensors of `state`.

    Raises:
        TypeError, ValueError: as `palimpsa`; also when grad mode is on and an argument requires grad.

    Example:
        >>> import torch
        >>> state = PalimpsaState(torch.zeros(1, 1, 2, 1), torch.ones(1, 1, 2, 1))
        >>> q = k = torch.tensor([[[1.0, 0.0]]])
        >>> v, beta, g = torch.ones(1, 1, 1), torch.ones(1, 1, 1), torch.zeros(1, 1)
        >>> [palimpsa_step(q, k, v, beta, g, torch.ones(1), state, scale=1.0).o.item() for _ in range(3)]
        [0.5, 0.6666666865348816, 0.75]
    """
    scale, state = check_step_inputs(q, k, v, beta, g, importance_prior, scale, state)
    # Autocast would round the reads to half precision.
    with torch.autocast(q.device.type, enabled=False):
        return _step(q, k, v, beta, g, importance_prior, state, scale, output_variance)
