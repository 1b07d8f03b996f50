"""The baselines' recurrences by flash-linear-attention: its chunked kernels on a GPU, its reference code on a CPU.

Under torch.func it is code of our own everywhere: kernels know no vmap, and the references write in place.

Every function takes q, k [B, T, H, K] and v [B, T, H, V] of one dtype, the state before the first token [B, H, K, V]
(None: zeros), and cu_seqlens [N+1], boundaries of N sequences packed into one row (B = 1, no state). It gives the
output o [B, T, H, V] in v's dtype and the states after the last tokens, [B, H, K, V] or [N, H, K, V], fp32. The scale
is K^-1/2 throughout.

The library is imported when it is called: its import takes seconds.
"""

# B batch, T time, H heads, K key dim, V value dim, N sequences packed along T

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..sequences import linked
from ..validation import under_transforms
from .guards import call_padded, guarded_chunk_simple_gla, prepare_kernels

# The library's decorators and signatures hide from the type checker what its kernels return.
_Kernel = Callable[..., Any]

# In half precision GLA's kernels multiply tiles of no fewer values.
_GLA_MIN_VALUES = 16


def gla(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T, o_t = K^-1/2 q_t S_t, with g [B, T, H, K] (arXiv 2312.06635)."""
    if _has_kernels(q):
        from .gla_chunks import chunk_gla

        return _by_kernel(chunk_gla, (q, k, v, g), state, cu_seqlens, _GLA_MIN_VALUES)
    if under_transforms():
        return _by_reference(_gated_recurrence, (q, k, v, g), state, cu_seqlens)
    from fla.ops.gla.naive import naive_recurrent_gla

    return _by_reference(naive_recurrent_gla, (q, k, v, g), state, cu_seqlens)


def simple_gla(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """S_t = exp(g_t) S_{t-1} + k_t v_t^T, o_t = K^-1/2 q_t S_t, with one decay a head, g [B, T, H]."""
    if _has_kernels(q):
        return _by_kernel(guarded_chunk_simple_gla(q.device), (q, k, v, g), state, cu_seqlens)
    if under_transforms():
        return _by_reference(_gated_recurrence, (q, k, v, g[..., None]), state, cu_seqlens)
    from fla.ops.simple_gla.naive import naive_recurrent_simple_gla

    return _by_reference(naive_recurrent_simple_gla, (q, k, v, g), state, cu_seqlens)


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """S_t = S_{t-1} + beta_t k_t (v_t - k_t S_{t-1})^T, o_t = K^-1/2 q_t S_t, beta [B, T, H] (arXiv 2406.06484)."""
    if _has_kernels(q):
        # The library's own kernels of this rule ended in an illegal access on an H100 (docs/LOG.md), and take half
        # precision only; the gated ones without decay are the same rule.
        return gated_delta_rule(q, k, v, beta, torch.zeros_like(beta, dtype=torch.float32), state, cu_seqlens)
    if under_transforms():
        return _by_reference(_gated_recurrence, (q, k, v, torch.zeros_like(beta)[..., None], beta), state, cu_seqlens)
    from fla.ops.delta_rule.naive import delta_rule_recurrence

    def reference(*operands: Tensor, initial_state: Tensor | None, output_final_state: bool) -> tuple[Tensor, Any]:
        # Of the references this one alone has heads before time.
        q, k, v, beta = (x.transpose(1, 2) for x in operands)
        o, final = delta_rule_recurrence(q, k, v, beta, initial_state, output_final_state)
        return o.transpose(1, 2), final

    return _by_reference(reference, (q, k, v, beta), state, cu_seqlens)


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor, state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """S_t = a_t S_{t-1} + beta_t k_t (v_t - k_t a_t S_{t-1})^T, o_t = K^-1/2 q_t S_t, a_t = exp(g_t).

    beta, g [B, T, H] (arXiv 2412.06464).
    """
    if _has_kernels(q):
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule

        prepare_kernels(q.device)
        return _by_kernel(chunk_gated_delta_rule, (q, k, v, g, beta), state, cu_seqlens)
    if under_transforms():
        return _by_reference(_gated_recurrence, (q, k, v, g[..., None], beta), state, cu_seqlens)
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule

    return _by_reference(naive_recurrent_gated_delta_rule, (q, k, v, beta, g), state, cu_seqlens)


def _by_kernel(
    kernel: _Kernel,
    operands: tuple[Tensor, ...],
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    least_values: int = 1,
) -> tuple[Tensor, Tensor]:
    return call_padded(
        kernel,
        operands,
        scale=operands[0].shape[-1] ** -0.5,
        initial_state=state,
        output_final_state=True,
        cu_seqlens=None if cu_seqlens is None else cu_seqlens.long(),
        least_values=least_values,
    )


def _has_kernels(q: Tensor) -> bool:
    # What is empty has no gradients there.
    return q.is_cuda and q.numel() > 0 and not under_transforms()


def _gated_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor | None = None,
    *,
    initial_state: Tensor | None,
    output_final_state: bool,
) -> tuple[Tensor, Tensor]:
    """All four rules, out of place and in fp32, with g [B, T, H, K or 1] and beta [B, T, H]; None: nothing is recalled.

    S_t = diag(exp(g_t)) S_{t-1} + k_t w_t^T with w_t = v_t, or beta_t (v_t - k_t diag(exp(g_t)) S_{t-1}).
    """
    (B, T, H, K), V = q.shape, v.shape[-1]
    q, k, v, alpha = q.float() * K**-0.5, k.float()[..., None], v.float(), g.float().exp()[..., None]
    S = q.new_zeros(B, H, K, V) if initial_state is None else initial_state.float()
    outputs = [v[:, :0]]
    for t in range(T):
        S, write = alpha[:, t] * S, v[:, t]
        if beta is not None:
            write = beta[:, t, :, None].float() * (write - (k[:, t] * S).sum(-2))
        S = S + k[:, t] * write[..., None, :]
        outputs.append((q[:, t, ..., None] * S).sum(-2)[:, None])
    return torch.cat(outputs, 1), S


def _by_reference(
    reference: _Kernel, operands: tuple[Tensor, ...], state: Tensor | None, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The references know no packing: one sequence after the other. They compute in fp32, under autocast too."""
    dtype = operands[2].dtype
    bounds = [0, operands[0].shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
    outputs, states = [], []
    with torch.autocast(operands[0].device.type, enabled=False):
        for start, end in pairwise(bounds):
            pieces = (x[:, start:end] for x in operands)
            o, final = reference(*pieces, initial_state=state, output_final_state=True)
            if start == end:
                o, final = (linked(x, (*operands, state)) for x in (o, final))
            outputs.append(o.to(dtype))
            states.append(final)
    return torch.cat(outputs, dim=1), torch.cat(states)
