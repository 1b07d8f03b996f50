"""The recurrence token by token, as plainly as the equations: the contract of every other path.

`step_in_place` is the same for one token, without autograd: what decodes on a CPU, and in float64 anywhere.
"""

# B batch, T time, H heads, K key dim, V value dim, G precisions a head, a divisor of V
from functools import partial

import torch
from torch import Tensor

from .groups import num_precisions, repeat_for_rows
from .sequences import linked, map_sequences
from .types import PalimpsaOutput, PalimpsaState
from .validation import check_sequence_inputs, compute_dtype


def palimpsa_reference(
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
    """The operator of `palimpsa`, one token at a time; same arguments, results and errors.

    Slow, differentiable by autograd, and exact in any dtype: float64 inputs are computed in float64, all others in
    float32. Every other path is tested against this one.

    Example:
        >>> import torch
        >>> q = k = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
        >>> v = beta = torch.ones(1, 1, 1, 1)
        >>> palimpsa_reference(q, k, v, beta, torch.zeros(1, 1, 1), torch.ones(1), scale=1.0).o.item()
        0.5
    """
    scale, state = check_sequence_inputs(q, k, v, beta, g, importance_prior, scale, initial_state, cu_seqlens)
    run = partial(
        _recurrence,
        importance_prior=importance_prior,
        scale=scale,
        output_final_state=output_final_state,
        output_variance=output_variance,
    )
    # Autocast would round the products to half precision behind the recurrence's back.
    with torch.autocast(q.device.type, enabled=False):
        if cu_seqlens is not None:
            return map_sequences(run, q, k, v, beta, g, state, cu_seqlens)
        return run(q, k, v, beta, g, state)


def _recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor,
    initial_state: PalimpsaState | None,
    *,
    importance_prior: Tensor,
    scale: float,
    output_final_state: bool,
    output_variance: bool,
) -> PalimpsaOutput:
    out_dtype, dtype = v.dtype, compute_dtype(q.dtype)
    (B, T, H, K), V = q.shape, v.shape[-1]
    # [B, T, H, K, V] by broadcasting: keys and queries stand along K, values along V, precisions along G.
    G = num_precisions(v, beta, initial_state)
    q, k = q.to(dtype)[..., :, None], k.to(dtype)[..., :, None]
    v = v.to(dtype)[..., None, :]
    beta = None if beta is None else beta.to(dtype)[..., None, :]
    alpha = g.to(dtype).exp()[..., None, None]
    prior = importance_prior.to(dtype)[:, None, None].expand(B, H, K, G)

    if initial_state is None:
        mean, importance = v.new_zeros(B, H, K, V), prior.clone()
    else:
        # Clones, so that a final state never shares memory with the initial one: a decode step writes into it.
        mean = initial_state.mean.to(dtype, copy=True)
        importance = initial_state.importance.to(dtype, copy=True)

    # An empty slice, so that T = 0 gives an empty result; what is empty stays part of the graph.
    empty = v[:, :0, :, 0]
    if v.numel() == 0:
        inputs = (q, k, v, beta, g, importance_prior, *(initial_state or ()))
        empty, mean, importance = (linked(x, inputs) for x in (empty, mean, importance))
    outputs, variances = [empty], [empty]
    weighted_mean = repeat_for_rows(importance, V) * mean
    for t in range(T):
        weighted_mean = alpha[:, t] * weighted_mean + k[:, t] * v[:, t]
        importance = alpha[:, t] * importance + (1 - alpha[:, t]) * prior
        if beta is not None:
            importance = importance + k[:, t].square() * beta[:, t]
        mean = weighted_mean / repeat_for_rows(importance, V)
        outputs.append(scale * (q[:, t] * mean).sum(-2)[:, None])
        if output_variance:
            spread = (q[:, t].square() / importance).sum(-2)
            variances.append(scale**2 * repeat_for_rows(spread, V)[:, None])

    return PalimpsaOutput(
        torch.cat(outputs, dim=1).to(out_dtype),
        torch.cat(variances, dim=1).to(out_dtype) if output_variance else None,
        PalimpsaState(mean, importance) if output_final_state else None,
    )


@torch.no_grad()
def step_in_place(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor,
    importance_prior: Tensor,
    mean: Tensor,
    importance: Tensor,
    scale: float,
    output_variance: bool,
) -> tuple[Tensor, Tensor | None]:
    """o and the variance [B, H, V] of `palimpsa_step`, without checks.

    Overwrites mean [B, H, K, V] and importance [B, H, K, G].
    """
    out_dtype, dtype = v.dtype, compute_dtype(q.dtype)
    q, k, v = q.to(dtype), k.to(dtype)[..., :, None], v.to(dtype)[..., None, :]
    alpha = g.to(dtype).exp()[..., None, None]
    prior = importance_prior.to(dtype)[:, None, None]

    # [B, H, K, G, V / G] beside [B, H, K, G, 1]: a view, whatever the strides.
    (G, V), precisions = (importance.shape[-1], mean.shape[-1]), importance[..., None]
    groups = mean.unflatten(-1, (G, V // max(G, 1)))
    groups.mul_(precisions)
    mean.mul_(alpha).addcmul_(k, v)
    importance.mul_(alpha).add_((1 - alpha) * prior)
    if beta is not None:
        importance.addcmul_(k.square(), beta.to(dtype)[..., None, :])
    groups.div_(precisions)

    o = scale * (q[..., None, :] @ mean).squeeze(-2)
    variance = None
    if output_variance:
        variance = scale**2 * (q.square()[..., None, :] @ importance.reciprocal()).squeeze(-2)
        variance = repeat_for_rows(variance, V).to(out_dtype).contiguous()
    return o.to(out_dtype), variance
