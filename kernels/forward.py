"""The forward pass in Triton: states at the start of every chunk, then all tokens of all chunks in parallel.

README.md in this folder has the equations, the tiling and what it costs.
"""

# B batch, T time, H heads, K key dim, V value dim, N sequences, C chunk size, M = I * mu, J = I - I_prior
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .primitives import HAS_PTX, MAX_DECAY, Pieces, cut, load, locate, power_of_two_tile, reciprocal, store


@triton.jit
def _states_kernel(
    k, v, beta, g, prior, mean0, importance0,
    M_out, J_out, mean_out, importance_out,
    cu_seqlens, offsets, T, H, first_head, num_heads, chunks_each,
    K: tl.constexpr, V: tl.constexpr, KT: tl.constexpr, VT: tl.constexpr, C: tl.constexpr,
    HAS_INITIAL: tl.constexpr, STORE_CHUNKS: tl.constexpr, STORE_FINAL: tl.constexpr, IS_PACKED: tl.constexpr,
):  # fmt: skip
    """M and J before every chunk of one sequence and head, and the state after it: one program a tile of [K, V]."""
    n = tl.program_id(0) // num_heads
    local_head = tl.program_id(0) % num_heads
    h = first_head + local_head
    tiles_v: tl.constexpr = (V + VT - 1) // VT
    kk = (tl.program_id(1) // tiles_v) * KT + tl.arange(0, KT)
    vv = (tl.program_id(1) % tiles_v) * VT + tl.arange(0, VT)
    tt = tl.arange(0, C)
    in_k, in_v = kk < K, vv < V
    in_tile = in_k[:, None] & in_v[None, :]
    tile = kk[:, None] * V + vv[None, :]
    if IS_PACKED:
        start = tl.load(cu_seqlens + n).to(tl.int64)
        num_tokens = (tl.load(cu_seqlens + n + 1) - start).to(tl.int32)
        chunk = tl.load(offsets + n).to(tl.int64)
    else:
        start = n.to(tl.int64) * T
        num_tokens = T
        chunk = n.to(tl.int64) * chunks_each
    prior_h = tl.load(prior + h).to(tl.float32)
    state = (n.to(tl.int64) * H + h) * (K * V) + tile
    if HAS_INITIAL:
        importance = tl.load(importance0 + state, mask=in_tile, other=1.0).to(tl.float32)
        M = importance * tl.load(mean0 + state, mask=in_tile, other=0.0).to(tl.float32)
        J = importance - prior_h
    else:
        M = tl.zeros([KT, VT], tl.float32)
        J = tl.zeros([KT, VT], tl.float32)
    out = (chunk * num_heads + local_head) * (K * V) + tile

    row = start * H + h
    k_at = k + row * K + tt[None, :] * (H * K) + kk[:, None]
    v_at = v + row * V + tt[:, None] * (H * V) + vv[None, :]
    beta_at = beta + row * V + tt[:, None] * (H * V) + vv[None, :]
    g_at = g + row + tt * H
    for first in range(0, num_tokens, C):
        if STORE_CHUNKS:
            tl.store(M_out + out, M, mask=in_tile)
            tl.store(J_out + out, J, mask=in_tile)
            out += num_heads * (K * V)
        left = num_tokens - first
        in_chunk = tt < left
        # Decay of token t's write until the end of the chunk: the sum of what comes after t, itself only sums.
        later = tl.load(g_at + H, mask=tt < tl.minimum(left, C) - 1, other=0.0).to(tl.float32)
        since = tl.exp(tl.cumsum(later, 0, reverse=True))
        total = tl.exp(tl.sum(tl.load(g_at, mask=in_chunk, other=0.0).to(tl.float32), 0))
        k_t = tl.load(k_at, mask=in_k[:, None] & in_chunk[None, :], other=0.0).to(tl.float32)
        in_v_t = in_chunk[:, None] & in_v[None, :]
        v_t = tl.load(v_at, mask=in_v_t, other=0.0).to(tl.float32) * since[:, None]
        beta_t = tl.load(beta_at, mask=in_v_t, other=0.0).to(tl.float32) * since[:, None]
        M = tl.dot(k_t, v_t, M * total, input_precision="tf32x3")
        J = tl.dot(k_t * k_t, beta_t, J * total, input_precision="tf32x3")
        k_at += C * H * K
        v_at += C * H * V
        beta_at += C * H * V
        g_at += C * H
    if STORE_FINAL:
        importance = J + prior_h
        tl.store(mean_out + state, M / importance, mask=in_tile)
        tl.store(importance_out + state, importance, mask=in_tile)


@triton.jit
def _widen_kernel(q, k, q32, k32, k_squared, scale, first_head, H, num_heads, K: tl.constexpr, BLOCK: tl.constexpr):
    """scale * q, k and k^2 in float32 for some of the heads: converted once, not once a tile of values."""
    t = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = i < num_heads * K
    source = (t * H + first_head) * K + i
    target = t * num_heads * K + i
    k_t = tl.load(k + source, mask=mask).to(tl.float32)
    tl.store(q32 + target, tl.load(q + source, mask=mask).to(tl.float32) * scale, mask=mask)
    tl.store(k32 + target, k_t, mask=mask)
    tl.store(k_squared + target, k_t * k_t, mask=mask)


@triton.jit
def _read_token(
    Ma, Ja, Mb, Jb, weight, prior_h,
    q_at, k_at, k2_at, v_at, beta_at, o_at, variance_at, o_sum_at, variance_sum_at,
    in_a, in_b, in_v, is_first, is_last, scale,
    HALF: tl.constexpr, EVEN_K: tl.constexpr, EVEN_V: tl.constexpr, ONE_TILE: tl.constexpr,
    IS_WIDE: tl.constexpr, HAS_VARIANCE: tl.constexpr, HAS_PTX: tl.constexpr,
):  # fmt: skip
    """Writes one token into the two halves of a tile and reads it: the states are divided by the decay since `weight`
    was 1, so that forgetting costs nothing here."""
    ka, kb = load(k_at, in_a, EVEN_K), load(k_at + HALF, in_b, EVEN_K)
    qa, qb = load(q_at, in_a, EVEN_K), load(q_at + HALF, in_b, EVEN_K)
    if IS_WIDE:
        k2a, k2b = load(k2_at, in_a, EVEN_K), load(k2_at + HALF, in_b, EVEN_K)
    else:
        k2a, k2b = ka * ka, kb * kb
    v_t = (load(v_at, in_v, EVEN_V) * weight)[None, :]
    beta_t = (load(beta_at, in_v, EVEN_V) * weight)[None, :]
    Ma += ka[:, None] * v_t
    Mb += kb[:, None] * v_t
    Ja += k2a[:, None] * beta_t
    Jb += k2b[:, None] * beta_t
    Ia, Ib = Ja + prior_h * weight, Jb + prior_h * weight
    # One reciprocal for two entries: x / a + y / b = (x b + y a) / (a b).
    inverse = reciprocal(Ia * Ib, HAS_PTX)
    o_t = tl.sum(((qa[:, None] * Ma) * Ib + (qb[:, None] * Mb) * Ia) * inverse, 0)
    if not IS_WIDE:
        o_t *= scale
    if ONE_TILE:
        store(o_at, o_t, in_v, EVEN_V)
    else:
        o_t += tl.load(o_sum_at, mask=in_v & (not is_first), other=0.0)
        tl.store(o_sum_at, o_t, mask=in_v & (not is_last))
        tl.store(o_at, o_t, mask=in_v & is_last)
    if HAS_VARIANCE:
        var_t = tl.sum(((qa * qa)[:, None] * Ib + (qb * qb)[:, None] * Ia) * inverse, 0) * weight
        if not IS_WIDE:
            var_t *= scale * scale
        if ONE_TILE:
            store(variance_at, var_t, in_v, EVEN_V)
        else:
            var_t += tl.load(variance_sum_at, mask=in_v & (not is_first), other=0.0)
            tl.store(variance_sum_at, var_t, mask=in_v & (not is_last))
            tl.store(variance_at, var_t, mask=in_v & is_last)
    return Ma, Ja, Mb, Jb


# The layout of a tile follows from how its states are loaded. Without a known alignment they are loaded one by one,
# lanes along V, and the sum over keys needs no exchange between threads.
@triton.jit(do_not_specialize_on_alignment=["M_in", "J_in"])
def _read_kernel(
    q, k, k_squared, v, beta, g, prior, M_in, J_in, o, variance, o_sum, variance_sum,
    cu_seqlens, offsets, sequence_of, T, H, first_head, num_heads, chunks_each, scale,
    K: tl.constexpr, V: tl.constexpr, KT: tl.constexpr, VT: tl.constexpr, C: tl.constexpr, S: tl.constexpr,
    IS_WIDE: tl.constexpr, HAS_VARIANCE: tl.constexpr, IS_PACKED: tl.constexpr,
    MAX_DECAY: tl.constexpr, HAS_PTX: tl.constexpr,
):  # fmt: skip
    """o and the variance of one chunk, head and tile of V; one tile of K after the other."""
    chunk = tl.program_id(0) // num_heads
    local_head = tl.program_id(0) % num_heads
    h = first_head + local_head
    _, _, start, num_tokens = locate(chunk, T, chunks_each, cu_seqlens, offsets, sequence_of, C, IS_PACKED)
    HALF: tl.constexpr = KT // 2
    EVEN_K: tl.constexpr = K % KT == 0
    EVEN_V: tl.constexpr = V % VT == 0
    ONE_TILE: tl.constexpr = K <= KT
    vv = tl.program_id(1) * VT + tl.arange(0, VT)
    in_v = vv < V
    prior_h = tl.load(prior + h).to(tl.float32)
    row = start * H + h
    wide_row = start * num_heads + local_head
    # Widened keys and queries hold the heads of this call alone.
    k_row = wide_row if IS_WIDE else row
    k_step = (num_heads if IS_WIDE else H) * K
    state = (chunk.to(tl.int64) * num_heads + local_head) * (K * V)

    for k0 in range(0, K, KT):
        is_first, is_last = k0 == 0, k0 + KT >= K
        kk = k0 + tl.arange(0, HALF)
        in_a, in_b = kk < K, kk + HALF < K
        tile = state + kk[:, None] * V + vv[None, :]
        mask_a, mask_b = in_a[:, None] & in_v[None, :], in_b[:, None] & in_v[None, :]
        Ma, Mb = load(M_in + tile, mask_a, EVEN_K and EVEN_V), load(M_in + tile + HALF * V, mask_b, EVEN_K and EVEN_V)
        Ja, Jb = load(J_in + tile, mask_a, EVEN_K and EVEN_V), load(J_in + tile + HALF * V, mask_b, EVEN_K and EVEN_V)
        q_at, k_at, k2_at = q + k_row * K + kk, k + k_row * K + kk, k_squared + k_row * K + kk
        v_at, beta_at, g_at = v + row * V + vv, beta + row * V + vv, g + row
        o_at, variance_at = o + row * V + vv, variance + row * V + vv
        o_sum_at, variance_sum_at = o_sum + wide_row * V + vv, variance_sum + wide_row * V + vv
        # Log decay since the states were last true to scale.
        decay = 0.0
        for first in range(0, num_tokens, S):
            num = tl.minimum(num_tokens - first, S)
            total = decay
            for i in tl.static_range(S):
                total += tl.load(g_at + i * H, mask=i < num, other=0.0).to(tl.float32)
            if (num == S) & (total > -MAX_DECAY):
                for i in tl.static_range(S):
                    decay += tl.load(g_at + i * H).to(tl.float32)
                    Ma, Ja, Mb, Jb = _read_token(
                        Ma, Ja, Mb, Jb, tl.exp(-decay), prior_h,
                        q_at + i * k_step, k_at + i * k_step, k2_at + i * k_step, v_at + i * H * V, beta_at + i * H * V,
                        o_at + i * H * V, variance_at + i * H * V,
                        o_sum_at + i * num_heads * V, variance_sum_at + i * num_heads * V,
                        in_a, in_b, in_v, is_first, is_last, scale,
                        HALF, EVEN_K, EVEN_V, ONE_TILE, IS_WIDE, HAS_VARIANCE, HAS_PTX,
                    )  # fmt: skip
            else:
                # The end of a sequence, or decays too strong to take together: each token forgets for itself.
                for j in range(num):
                    alpha = tl.exp(decay + tl.load(g_at + j * H).to(tl.float32))
                    decay = 0.0
                    Ma, Ja, Mb, Jb = _read_token(
                        Ma * alpha, Ja * alpha, Mb * alpha, Jb * alpha, 1.0, prior_h,
                        q_at + j * k_step, k_at + j * k_step, k2_at + j * k_step, v_at + j * H * V, beta_at + j * H * V,
                        o_at + j * H * V, variance_at + j * H * V,
                        o_sum_at + j * num_heads * V, variance_sum_at + j * num_heads * V,
                        in_a, in_b, in_v, is_first, is_last, scale,
                        HALF, EVEN_K, EVEN_V, ONE_TILE, IS_WIDE, HAS_VARIANCE, HAS_PTX,
                    )  # fmt: skip
            q_at += S * k_step
            k_at += S * k_step
            k2_at += S * k_step
            v_at += S * H * V
            beta_at += S * H * V
            g_at += S * H
            o_at += S * H * V
            variance_at += S * H * V
            o_sum_at += S * num_heads * V
            variance_sum_at += S * num_heads * V


class ForwardResult(NamedTuple):
    o: Tensor
    variance: Tensor | None
    mean: Tensor | None
    importance: Tensor | None


def chunk_states(
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor,
    prior: Tensor,
    mean0: Tensor | None,
    importance0: Tensor | None,
    cu_seqlens: Tensor | None,
    chunks: Pieces | None,
    first_head: int,
    num_heads: int,
    final: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor] | None:
    """M and J before every chunk, each [chunks, num_heads, K, V] float32; writes the final state where wanted."""
    B, T, H, K = k.shape
    V = v.shape[-1]
    N = B if cu_seqlens is None else cu_seqlens.numel() - 1
    states = None
    if chunks is not None:
        states = tuple(k.new_empty(chunks.count, num_heads, K, V, dtype=torch.float32) for _ in range(2))
    KT = power_of_two_tile(K, (32, 16))
    VT = power_of_two_tile(V, (64, 32, 16))
    grid = (N * num_heads, triton.cdiv(K, KT) * triton.cdiv(V, VT))
    # A pointer that is not used still has to be one.
    M_out, J_out = states or (prior, prior)
    mean_out, importance_out = final or (prior, prior)
    _states_kernel[grid](
        k, v, beta, g, prior, mean0, importance0, M_out, J_out, mean_out, importance_out,
        cu_seqlens, None if chunks is None else chunks.offsets, T, H, first_head, num_heads,
        0 if chunks is None else chunks.each,
        K, V, KT, VT, 64 if chunks is None else chunks.length,
        HAS_INITIAL=mean0 is not None, STORE_CHUNKS=chunks is not None, STORE_FINAL=final is not None,
        IS_PACKED=cu_seqlens is not None, num_warps=4,
    )  # fmt: skip
    return states


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor,
    importance_prior: Tensor,
    scale: float,
    mean0: Tensor | None,
    importance0: Tensor | None,
    output_final_state: bool,
    output_variance: bool,
    cu_seqlens: Tensor | None,
) -> ForwardResult:
    """The operator without checks and without autograd: contiguous arguments of `palimpsa`, in float32 or less."""
    B, T, H, K = q.shape
    V = v.shape[-1]
    N = B if cu_seqlens is None else cu_seqlens.numel() - 1
    o = torch.empty_like(v)
    variance = torch.empty_like(v) if output_variance else None
    final = None
    if output_final_state:
        final = tuple(q.new_empty(N, H, K, V, dtype=torch.float32) for _ in range(2))
    has_tokens = o.numel() > 0
    plan = plan_forward(B * T, N, H, K, V)
    chunks = cut(N, T, plan.chunk_size, cu_seqlens) if has_tokens else None
    wide = not plan.is_one_tile
    for first_head, num_heads in plan.head_slices if has_tokens or final else ():
        states = chunk_states(
            k, v, beta, g, importance_prior, mean0, importance0, cu_seqlens, chunks, first_head, num_heads, final
        )
        if states is None:
            continue
        qs = ks = k_squared = k
        sums = [o, o]
        if wide:
            qs, ks, k_squared = widen(q, k, scale, first_head, num_heads)
            sums = [v.new_empty(B * T, num_heads, V, dtype=torch.float32) for _ in range(1 + output_variance)] * 2
        _read_kernel[(chunks.count * num_heads, triton.cdiv(V, plan.VT))](
            qs if wide else q, ks, k_squared, v, beta, g, importance_prior, *states,
            o, variance if output_variance else o, sums[0], sums[1],
            cu_seqlens, chunks.offsets, chunks.sequence_of, T, H, first_head, num_heads, chunks.each, scale,
            K, V, plan.KT, plan.VT, plan.chunk_size, 4,
            IS_WIDE=wide, HAS_VARIANCE=output_variance, IS_PACKED=cu_seqlens is not None,
            MAX_DECAY=MAX_DECAY, HAS_PTX=HAS_PTX, num_warps=1,
        )  # fmt: skip
    return ForwardResult(o, variance, *(final or (None, None)))


def widen(q: Tensor, k: Tensor, scale: float, first_head: int, num_heads: int) -> list[Tensor]:
    """scale * q, k and k^2 as [B * T, num_heads, K] float32."""
    B, T, H, K = q.shape
    wide = [q.new_empty(B * T, num_heads, K, dtype=torch.float32) for _ in range(3)]
    BLOCK = 256
    _widen_kernel[(B * T, triton.cdiv(num_heads * K, BLOCK))](
        q, k, *wide, scale, first_head, H, num_heads, K, BLOCK, num_warps=2
    )
    return wide


class ForwardPlan(NamedTuple):
    chunk_size: int
    KT: int
    VT: int
    is_one_tile: bool
    head_slices: list[tuple[int, int]]


# Bytes that one call may take beyond its results; heads are done in groups to keep to it.
SCRATCH_BYTES = 384 * 2**20


def slice_heads(num_heads: int, bytes_a_head: int) -> list[tuple[int, int]]:
    """(first head, number of heads) of groups of nearly equal size whose scratch fits in SCRATCH_BYTES."""
    groups = min(num_heads, max(1, triton.cdiv(bytes_a_head * num_heads, SCRATCH_BYTES)))
    size = triton.cdiv(num_heads, max(1, groups))
    return [(first, min(size, num_heads - first)) for first in range(0, num_heads, size)]


def plan_forward(num_tokens: int, num_sequences: int, H: int, K: int, V: int) -> ForwardPlan:
    """The table of tile sizes, one entry a class of shapes."""
    KT = 16
    VT = power_of_two_tile(V, (64, 32, 16) if K > KT else (32, 16))
    # Longer chunks move fewer states; shorter ones fill the GPU.
    num_programs = triton.cdiv(num_tokens, 128) * H * triton.cdiv(V, VT)
    chunk_size = 128 if num_programs >= 4096 else 64
    num_chunks = num_tokens // chunk_size + num_sequences
    bytes_a_head = 8 * num_chunks * K * V
    if K > KT:
        bytes_a_head += 12 * num_tokens * K + 8 * num_tokens * V
    return ForwardPlan(chunk_size, KT, VT, K <= KT, slice_heads(H, bytes_a_head))
