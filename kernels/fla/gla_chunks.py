"""GLA by flash-linear-attention's kernels, in chunks of a size that suits the heads, as an operator of PyTorch.

The library's own `chunk_gla` takes chunks of 64 tokens, whatever the heads, and is a break in a compiled graph. Inside
of a chunk its kernels meet every pair of tokens, partly outside of tensor cores: for the narrow heads of MQAR, whose
states are small, chunks of 16 take half of the time.
"""

# B batch, T time, H heads, K key dim, V value dim, N sequences packed along T, C chunk size

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..library import NAMESPACE
from ..transforms import fold, refuse, register_rule, stand_in, unfold
from .guards import prepare_kernels

# Up to so many numbers K * V a state, which is moved once a chunk, is cheaper than the C pairs that every token meets.
SMALL_STATE = 1024


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """o, the states after the last tokens, and for the way back the decays within chunks and the pairs of tokens."""
    from fla.ops.gla.chunk import chunk_gla_fwd

    # Its signature does not say what may be None.
    kernels: Any = chunk_gla_fwd
    prepare_kernels(q.device)
    # Triton launches on the current device.
    with torch.cuda.device_of(q):
        decays, pairs, _, final, o = kernels(
            *(x.contiguous() for x in (q, k, v, g)),
            g_cumsum=None,
            scale=scale,
            initial_state=_contiguous(state),
            output_final_state=True,
            cu_seqlens=_contiguous(cu_seqlens),
            chunk_size=chunk_size,
        )
    return o, final, decays, pairs


def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decays: Tensor,
    pairs: Tensor,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    do: Tensor,
    dfinal: Tensor | None,
    scale: float,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, g, and of the state (empty without one)."""
    from fla.ops.gla.chunk import chunk_gla_bwd

    kernels: Any = chunk_gla_bwd
    with torch.cuda.device_of(q):
        dq, dk, dv, dg, dstate = kernels(
            *(x.contiguous() for x in (q, k, v)),
            g=None,
            g_cumsum=decays,
            scale=scale,
            initial_state=_contiguous(state),
            h=None,
            A=pairs,
            do=do.contiguous(),
            dht=_contiguous(dfinal),
            cu_seqlens=_contiguous(cu_seqlens),
            chunk_size=chunk_size,
        )
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dg, decays.new_empty(0) if state is None else dstate


forward = torch.library.custom_op(f"{NAMESPACE}::chunk_gla", _forward, mutates_args=())
backward = torch.library.custom_op(f"{NAMESPACE}::chunk_gla_backward", _backward, mutates_args=())


@forward.register_fake
def _(q, k, v, g, state, cu_seqlens, scale, chunk_size):
    (B, T, H, K), V = q.shape, v.shape[-1]
    num_states = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    final = g.new_empty(num_states, H, K, V)
    return v.new_empty(v.shape), final, g.new_empty(g.shape), g.new_empty(B, T, H, chunk_size)


@backward.register_fake
def _(q, k, v, decays, pairs, state, cu_seqlens, do, dfinal, scale, chunk_size):
    dstate = decays.new_empty(0 if state is None else state.shape)
    return (*(x.new_empty(x.shape) for x in (q, k, v, decays)), dstate)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, _, state, cu_seqlens, *ctx.options = inputs
    _, _, decays, pairs = output
    ctx.save_for_backward(q, k, v, decays, pairs, state, cu_seqlens)
    ctx.mark_non_differentiable(decays, pairs)
    # Zeros for the gradients of what nobody differentiates would take as long as the kernels.
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, do: Tensor | None, dfinal: Tensor | None, *_: None) -> tuple[Any, ...]:
    q, k, v, decays, pairs, state, cu_seqlens = ctx.saved_tensors
    do = torch.zeros_like(v) if do is None else do
    *gradients, dstate = _call_backward(q, k, v, decays, pairs, state, cu_seqlens, do, dfinal, *ctx.options)
    return *gradients, None if state is None else dstate, None, None, None


_ONCE = "chunk_gla is differentiable once, and backwards: not with create_graph=True, and not by jvp or jacfwd"

forward.register_autograd(_differentiate, setup_context=_save)
backward.register_autograd(refuse(_ONCE))

# The dimension of the heads, which are independent of each other: each entry of a mapped dimension has its own.
_SEQUENCE, _STATE = 2, 1


def _fold_arguments(args: tuple[Any, ...], in_dims: tuple[Any, ...], where: tuple[int, ...], size: int) -> list[Any]:
    return [fold(x, in_dim, size, dim) for x, in_dim, dim in zip(args, in_dims, where, strict=True)]


def _map_forward(call: Callable[..., Any], size: int, in_dims: tuple[Any, ...], *args: Any) -> Any:
    *tensors, cu_seqlens, scale, chunk_size = args
    folded = _fold_arguments(tuple(tensors), in_dims[:5], (*(_SEQUENCE,) * 4, _STATE), size)
    results = call(*folded, cu_seqlens, scale, chunk_size)
    dims = (_SEQUENCE, _STATE, _SEQUENCE, _SEQUENCE)
    return tuple(unfold(x, size, dim) for x, dim in zip(results, dims, strict=True)), dims


def _map_backward(call: Callable[..., Any], size: int, in_dims: tuple[Any, ...], *args: Any) -> Any:
    *tensors, state, cu_seqlens, do, dfinal, scale, chunk_size = args
    folded = _fold_arguments((*tensors, do), (*in_dims[:5], in_dims[7]), (_SEQUENCE,) * 6, size)
    states = _fold_arguments((state, dfinal), (in_dims[5], in_dims[8]), (_STATE,) * 2, size)
    *gradients, dstate = call(*folded[:5], states[0], cu_seqlens, folded[5], states[1], scale, chunk_size)
    unfolded = [unfold(x, size, _SEQUENCE) for x in gradients]
    if state is None:
        return (*unfolded, dstate), (*(_SEQUENCE,) * 4, None)
    return (*unfolded, unfold(dstate, size, _STATE)), (*(_SEQUENCE,) * 4, _STATE)


register_rule(forward, _map_forward)
register_rule(backward, _map_backward)
_call_forward = stand_in(_forward, forward, _map_forward, _ONCE, (_save, _differentiate))
_call_backward = stand_in(_backward, backward, _map_backward, _ONCE)


def chunk_gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    scale: float,
    initial_state: Tensor | None,
    output_final_state: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """As flash-linear-attention's function of that name: shapes are those of recurrences.py, g fp32, scale q's."""
    longest = 16 if q.shape[-1] * v.shape[-1] <= SMALL_STATE else 64
    # No longer than the sequence, as the library has it.
    chunk_size = min(longest, max(16, 1 << (q.shape[1] - 1).bit_length()))
    o, final, _, _ = _call_forward(q, k, v, g, initial_state, cu_seqlens, scale, chunk_size)
    return o, final if output_final_state else None
