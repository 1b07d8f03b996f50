"""The backward pass in Triton: states and flows are computed again, chunk by chunk, and never kept for a whole sequence.

README.md in this folder has the equations, the tiling and what it costs.
"""

# B batch, T time, H heads, K key dim, V value dim, N sequences, C chunk size, M = I * mu, J = I - I_prior, E = -dI
# A flow is the gradient that reaches M and J of the token before a point from all tokens after it.
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .forward import chunk_states, slice_heads, widen
from .primitives import HAS_PTX, INTERPRETED, MAX_DECAY, cut, load, locate, reciprocal, store

# Tokens between two chunk states, and between two states that a program keeps in its scratch.
CHUNK = 32
BLOCK = 4


@triton.jit
def _add_flow(
    M, J, dM, E, weight, prior_h, factor, dvar_factor, q_at, k_at, k2_at, v_at, beta_at, do_at, dvar_at, in_k, in_v,
    EVEN_K: tl.constexpr, EVEN_V: tl.constexpr, IS_WIDE: tl.constexpr, HAS_DVAR: tl.constexpr, HAS_PTX: tl.constexpr,
):  # fmt: skip
    """Writes one token into M and J, and adds what its read gives to the gradients of the states it started from."""
    k_t, q_t = load(k_at, in_k, EVEN_K)[:, None], load(q_at, in_k, EVEN_K)[:, None]
    if IS_WIDE:
        k2_t = load(k2_at, in_k, EVEN_K)[:, None]
    else:
        k2_t = k_t * k_t
    M += k_t * (load(v_at, in_v, EVEN_V) * weight)[None, :]
    J += k2_t * (load(beta_at, in_v, EVEN_V) * weight)[None, :]
    inverse = reciprocal(J + prior_h * weight, HAS_PTX)
    mean = M * inverse
    change = (load(do_at, in_v, EVEN_V) * factor)[None, :] * inverse
    dM += q_t * change
    E += q_t * (change * mean)
    if HAS_DVAR:
        dvar = load(dvar_at, in_v, EVEN_V) * dvar_factor
        E += (q_t * q_t) * (dvar[None, :] * inverse * inverse)
    return M, J, dM, E


# Without a known alignment of the states the lanes lie along V: see forward.py.
@triton.jit(do_not_specialize_on_alignment=["M_in", "J_in", "flow_M", "flow_E"])
def _flow_kernel(
    q, k, k_squared, v, beta, g, prior, do, dvar, M_in, J_in, flow_M, flow_E, segment_decay,
    cu_seqlens, offsets, sequence_of, chunk_offsets, T, H, first_head, num_heads, segments_each, chunks_each,
    do_scale, dvar_scale,
    K: tl.constexpr, V: tl.constexpr, KT: tl.constexpr, VT: tl.constexpr, SEGMENT: tl.constexpr, CHUNK: tl.constexpr,
    S: tl.constexpr, IS_WIDE: tl.constexpr, HAS_DVAR: tl.constexpr, IS_PACKED: tl.constexpr,
    MAX_DECAY: tl.constexpr, HAS_PTX: tl.constexpr,
):  # fmt: skip
    """The flow that the tokens of one segment add to the state before it, and how much of a later flow they let pass."""
    segment = tl.program_id(0) // num_heads
    local_head = tl.program_id(0) % num_heads
    h = first_head + local_head
    n, index, start, num_tokens = locate(segment, T, segments_each, cu_seqlens, offsets, sequence_of, SEGMENT, IS_PACKED)
    # What reaches the start of a sequence is the gradients kernel's business.
    if index == 0:
        num_tokens = 0
    if IS_PACKED:
        chunk = tl.load(chunk_offsets + n).to(tl.int64) + index * (SEGMENT // CHUNK)
    else:
        chunk = n.to(tl.int64) * chunks_each + index * (SEGMENT // CHUNK)
    EVEN_K: tl.constexpr = K % KT == 0
    EVEN_V: tl.constexpr = V % VT == 0
    tiles_v: tl.constexpr = (V + VT - 1) // VT
    kk = (tl.program_id(1) // tiles_v) * KT + tl.arange(0, KT)
    vv = (tl.program_id(1) % tiles_v) * VT + tl.arange(0, VT)
    in_k, in_v = kk < K, vv < V
    in_tile = in_k[:, None] & in_v[None, :]
    tile = kk[:, None] * V + vv[None, :]
    prior_h = tl.load(prior + h).to(tl.float32)
    row = start * H + h
    k_row = start * num_heads + local_head if IS_WIDE else row
    k_step = (num_heads if IS_WIDE else H) * K
    q_at, k_at, k2_at = q + k_row * K + kk, k + k_row * K + kk, k_squared + k_row * K + kk
    v_at, beta_at, g_at = v + row * V + vv, beta + row * V + vv, g + row
    do_at, dvar_at = do + row * V + vv, dvar + row * V + vv

    if num_tokens > 0:
        state = (chunk * num_heads + local_head) * (K * V) + tile
        M, J = load(M_in + state, in_tile, EVEN_K and EVEN_V), load(J_in + state, in_tile, EVEN_K and EVEN_V)
        dM = tl.zeros([KT, VT], tl.float32)
        E = tl.zeros([KT, VT], tl.float32)
        # exp(decay): since the states were last true to scale; passed: from the segment's start until then.
        decay = 0.0
        passed = 1.0
        for first in range(0, num_tokens, S):
            num = tl.minimum(num_tokens - first, S)
            total = decay
            for i in tl.static_range(S):
                total += tl.load(g_at + i * H, mask=i < num, other=0.0).to(tl.float32)
            if (num == S) & (total > -MAX_DECAY):
                for i in tl.static_range(S):
                    decay += tl.load(g_at + i * H).to(tl.float32)
                    M, J, dM, E = _add_flow(
                        M, J, dM, E, tl.exp(-decay), prior_h, passed * do_scale, passed * tl.exp(-decay) * dvar_scale,
                        q_at + i * k_step, k_at + i * k_step, k2_at + i * k_step, v_at + i * H * V, beta_at + i * H * V,
                        do_at + i * H * V, dvar_at + i * H * V, in_k, in_v, EVEN_K, EVEN_V, IS_WIDE, HAS_DVAR, HAS_PTX,
                    )  # fmt: skip
            else:
                for j in range(num):
                    alpha = tl.exp(decay + tl.load(g_at + j * H).to(tl.float32))
                    decay = 0.0
                    passed *= alpha
                    M, J, dM, E = _add_flow(
                        M * alpha, J * alpha, dM, E, 1.0, prior_h, passed * do_scale, passed * dvar_scale,
                        q_at + j * k_step, k_at + j * k_step, k2_at + j * k_step, v_at + j * H * V, beta_at + j * H * V,
                        do_at + j * H * V, dvar_at + j * H * V, in_k, in_v, EVEN_K, EVEN_V, IS_WIDE, HAS_DVAR, HAS_PTX,
                    )  # fmt: skip
            q_at += S * k_step
            k_at += S * k_step
            k2_at += S * k_step
            v_at += S * H * V
            beta_at += S * H * V
            g_at += S * H
            do_at += S * H * V
            dvar_at += S * H * V
        out = (segment.to(tl.int64) * num_heads + local_head) * (K * V) + tile
        store(flow_M + out, dM, in_tile, EVEN_K and EVEN_V)
        store(flow_E + out, E, in_tile, EVEN_K and EVEN_V)
        if tl.program_id(1) == 0:
            tl.store(segment_decay + segment.to(tl.int64) * num_heads + local_head, passed * tl.exp(decay))


@triton.jit
def _flow_scan_kernel(
    flow_M, flow_E, segment_decay, final_M, final_E, offsets, H, first_head, num_heads, segments_each,
    SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr, HAS_FINAL: tl.constexpr, IS_PACKED: tl.constexpr,
):  # fmt: skip
    """Turns what each segment adds into the flow that reaches its end, from the last segment back, in place."""
    n = tl.program_id(0) // num_heads
    local_head = tl.program_id(0) % num_heads
    if IS_PACKED:
        first = tl.load(offsets + n).to(tl.int64)
        num = (tl.load(offsets + n + 1) - first).to(tl.int32)
    else:
        first = n.to(tl.int64) * segments_each
        num = segments_each
    i = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = i < SIZE
    if HAS_FINAL:
        final = (n.to(tl.int64) * H + first_head + local_head) * SIZE + i
        dM = tl.load(final_M + final, mask=mask, other=0.0)
        E = tl.load(final_E + final, mask=mask, other=0.0)
    else:
        dM = tl.zeros([BLOCK_SIZE], tl.float32)
        E = tl.zeros([BLOCK_SIZE], tl.float32)
    for step in range(num):
        segment = (first + (num - 1 - step)) * num_heads + local_head
        at = segment * SIZE + i
        # The first segment has added nothing: nobody asks for the flow before it here.
        inner = mask & (step < num - 1)
        own_M = tl.load(flow_M + at, mask=inner, other=0.0)
        own_E = tl.load(flow_E + at, mask=inner, other=0.0)
        passed = tl.load(segment_decay + segment, mask=step < num - 1, other=0.0)
        tl.store(flow_M + at, dM, mask=mask)
        tl.store(flow_E + at, E, mask=mask)
        dM = dM * passed + own_M
        E = E * passed + own_E


@triton.jit
def _load_keys(pointers, mask, EVEN_K: tl.constexpr):
    return load(pointers, mask, EVEN_K)[:, :, None]


@triton.jit
def _load_values(pointers, mask, EVEN_V: tl.constexpr):
    return load(pointers, mask, EVEN_V)[None, :, :]


@triton.jit
def _write_token(M, J, weight, k_at, v_at, beta_at, in_k, in_v, EVEN_K: tl.constexpr, EVEN_V: tl.constexpr):
    k_t = _load_keys(k_at, in_k, EVEN_K)
    M += k_t * (_load_values(v_at, in_v, EVEN_V) * weight)
    J += (k_t * k_t) * (_load_values(beta_at, in_v, EVEN_V) * weight)
    return M, J


@triton.jit
def _sum_in_thread(x, EK: tl.constexpr, LK: tl.constexpr, VT: tl.constexpr):
    """[EK, LK, VT] -> [EK, LK, VT / 4]: the sums that need no exchange between threads, so they can be combined first."""
    return tl.sum(tl.reshape(x, EK, LK, VT // 4, 4), 3)


@triton.jit
def _token_gradients(
    M, J, dM, E, sum_E, weight, prior_h,
    q_at, k_at, v_at, beta_at, do_at, dvar_at, dq_at, dk_at, dv_at, dbeta_at, dv_sum_at, dbeta_sum_at, dg_at,
    in_k, in_v, store_v, is_first, is_last, do_scale, dvar_scale, dq_scale,
    EK: tl.constexpr, LK: tl.constexpr, VT: tl.constexpr, EVEN_K: tl.constexpr, EVEN_V: tl.constexpr,
    ONE_TILE: tl.constexpr, HAS_DVAR: tl.constexpr, HAS_PTX: tl.constexpr,
):  # fmt: skip
    """All gradients of one token, given M and J after it and the flow that reaches it, in the scale of `weight`."""
    q_t, k_t = _load_keys(q_at, in_k, EVEN_K), _load_keys(k_at, in_k, EVEN_K)
    do_t = _load_values(do_at, in_v, EVEN_V) * do_scale
    inverse = reciprocal(J + prior_h * weight, HAS_PTX)
    mean = M * inverse
    to_M = q_t * (do_t * inverse)
    to_E = to_M * mean
    dq_t = _sum_in_thread(mean * do_t, EK, LK, VT)
    if HAS_DVAR:
        dvar_t = _load_values(dvar_at, in_v, EVEN_V) * (dvar_scale * weight)
        spread = q_t * (dvar_t * inverse)
        to_E += q_t * (spread * inverse)
        dq_t += 2.0 * _sum_in_thread(dvar_t * inverse, EK, LK, VT) * q_t
    dM += to_M
    E += to_E

    v_t, beta_t = _load_values(v_at, in_v, EVEN_V), _load_values(beta_at, in_v, EVEN_V)
    tl.store(dq_at, tl.sum(dq_t, 2) * dq_scale, mask=in_k)
    of_M = _sum_in_thread(dM * (v_t * weight), EK, LK, VT)
    of_E = _sum_in_thread(E * (beta_t * weight), EK, LK, VT)
    tl.store(dk_at, tl.sum(of_M - (2.0 * k_t) * of_E, 2), mask=in_k)

    dv_t = tl.sum(dM * k_t, 0) * weight
    dbeta_t = tl.sum(E * (k_t * k_t), 0) * -weight
    own_E = tl.sum(to_E, 0) * weight
    sum_E += own_E
    # What this token adds to the sum over time that is the gradient of its log decay: README.md.
    dg_t = prior_h * own_E - tl.reshape(v_t, LK, VT) * dv_t - tl.reshape(beta_t, LK, VT) * dbeta_t
    if HAS_DVAR:
        dg_t -= tl.sum(q_t * spread, 0)
    dg_t = tl.sum(tl.reshape(dg_t, LK * VT))
    dv_t = tl.broadcast_to(tl.sum(dv_t, 0)[None, :], LK, VT)
    dbeta_t = tl.broadcast_to(tl.sum(dbeta_t, 0)[None, :], LK, VT)
    if ONE_TILE:
        tl.store(dv_at, dv_t, mask=store_v)
        tl.store(dbeta_at, dbeta_t, mask=store_v)
    else:
        again = in_v & (not is_first)
        dv_t += tl.load(dv_sum_at, mask=again, other=0.0)
        dbeta_t += tl.load(dbeta_sum_at, mask=again, other=0.0)
        tl.store(dv_sum_at, dv_t, mask=store_v & (not is_last))
        tl.store(dbeta_sum_at, dbeta_t, mask=store_v & (not is_last))
        tl.store(dv_at, dv_t, mask=store_v & is_last)
        tl.store(dbeta_at, dbeta_t, mask=store_v & is_last)
        dg_t += tl.load(dg_at, mask=not is_first, other=0.0)
    tl.store(dg_at, dg_t)
    return dM, E, sum_E


@triton.jit
def _gradients_kernel(
    q, k, v, beta, g, prior, do, dvar, M_in, J_in, flow_M, flow_E,
    dq, dk, dv, dbeta, dv_sum, dbeta_sum, dg_terms, dg_anchor, E_terms, start_M, start_E, scratch,
    cu_seqlens, offsets, sequence_of, chunk_offsets, num_items, num_tokens_all, T, H, first_head, num_heads,
    segments_each, chunks_each, num_chunks, do_scale, dvar_scale, dq_scale,
    K: tl.constexpr, V: tl.constexpr, EK: tl.constexpr, LK: tl.constexpr, VT: tl.constexpr,
    SEGMENT: tl.constexpr, CHUNK: tl.constexpr,
    IS_WIDE: tl.constexpr, FLOW: tl.constexpr, HAS_DVAR: tl.constexpr, IS_PACKED: tl.constexpr,
    WANTS_START: tl.constexpr, MAX_DECAY: tl.constexpr, HAS_PTX: tl.constexpr,
):  # fmt: skip
    """All gradients of one segment, head and tile of V: one tile of K after the other, chunks and tokens backwards.

    A state is [EK, LK, VT] with key ek + EK * lk: EK in registers, LK and VT / 4 over the lanes of one warp.
    """
    KT: tl.constexpr = EK * LK
    EVEN_K: tl.constexpr = K % KT == 0
    EVEN_V: tl.constexpr = V % VT == 0
    ONE_TILE: tl.constexpr = K <= KT
    S: tl.constexpr = 4
    tiles_v: tl.constexpr = (V + VT - 1) // VT
    key = tl.arange(0, EK)[:, None] + (tl.arange(0, LK) * EK)[None, :]
    lane_value = tl.zeros([LK, 1], tl.int32) + tl.arange(0, VT)[None, :]
    slot = (tl.arange(0, EK)[:, None, None] * LK + tl.arange(0, LK)[None, :, None]) * VT
    slot += tl.arange(0, VT)[None, None, :]
    kept = scratch + tl.program_id(0).to(tl.int64) * (CHUNK // S * 2 * KT * VT) + slot

    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        tile_v = item % tiles_v
        local_head = (item // tiles_v) % num_heads
        segment = item // tiles_v // num_heads
        h = first_head + local_head
        n, index, start, num_tokens = locate(
            segment, T, segments_each, cu_seqlens, offsets, sequence_of, SEGMENT, IS_PACKED
        )
        if IS_PACKED:
            first_chunk = tl.load(chunk_offsets + n).to(tl.int64) + index * (SEGMENT // CHUNK)
        else:
            first_chunk = n.to(tl.int64) * chunks_each + index * (SEGMENT // CHUNK)
        vv = tile_v * VT + lane_value
        in_v = vv < V
        # Every row of lanes holds the same sums over keys: the first one stores them.
        store_v = in_v & (tl.arange(0, LK)[:, None] == 0)
        prior_h = tl.load(prior + h).to(tl.float32)
        row = start * H + h
        wide_row = start * num_heads + local_head
        k_row = wide_row if IS_WIDE else row
        k_step = (num_heads if IS_WIDE else H) * K
        # Gradients of q and k are sums over tiles of V: with one tile they are final.
        dk_row = row if tiles_v == 1 else tile_v.to(tl.int64) * num_tokens_all * num_heads + wide_row
        dk_step = (H if tiles_v == 1 else num_heads) * K
        sum_E = tl.zeros([LK, VT], tl.float32)

        for k0 in range(0, K, KT):
            is_first, is_last = k0 == 0, k0 + KT >= K
            kk = k0 + key
            in_k = kk < K
            in_tile = in_k[:, :, None] & in_v[None, :, :]
            tile = kk[:, :, None] * V + vv[None, :, :]
            q_0, k_0 = q + k_row * K + kk, k + k_row * K + kk
            dq_0, dk_0 = dq + dk_row * K + kk, dk + dk_row * K + kk
            v_0, beta_0, do_0, dvar_0 = v + row * V + vv, beta + row * V + vv, do + row * V + vv, dvar + row * V + vv
            dv_0, dbeta_0 = dv + row * V + vv, dbeta + row * V + vv
            dv_sum_0, dbeta_sum_0 = dv_sum + wide_row * V + vv, dbeta_sum + wide_row * V + vv
            g_0, dg_0 = g + row, dg_terms + tile_v.to(tl.int64) * num_tokens_all * num_heads + wide_row
            if FLOW == 0:
                dM = tl.zeros([EK, LK, VT], tl.float32)
                E = tl.zeros([EK, LK, VT], tl.float32)
            else:
                if FLOW == 1:
                    flow = (n.to(tl.int64) * H + h) * (K * V) + tile
                else:
                    flow = (segment.to(tl.int64) * num_heads + local_head) * (K * V) + tile
                dM = load(flow_M + flow, in_tile, EVEN_K and EVEN_V)
                E = load(flow_E + flow, in_tile, EVEN_K and EVEN_V)

            num_inner = (num_tokens + CHUNK - 1) // CHUNK
            for back in range(num_inner):
                inner = num_inner - 1 - back
                num_here = tl.minimum(num_tokens - inner * CHUNK, CHUNK)
                state = ((first_chunk + inner) * num_heads + local_head) * (K * V) + tile
                M = load(M_in + state, in_tile, EVEN_K and EVEN_V)
                J = load(J_in + state, in_tile, EVEN_K and EVEN_V)
                # Forwards: the states before every block of S tokens.
                for first in range(0, num_here, S):
                    t = inner * CHUNK + first
                    tl.store(kept + first // S * (2 * KT * VT), M)
                    tl.store(kept + first // S * (2 * KT * VT) + KT * VT, J)
                    num = tl.minimum(num_here - first, S)
                    total = 0.0
                    for i in tl.static_range(S):
                        total += tl.load(g_0 + (t + i) * H, mask=i < num, other=0.0).to(tl.float32)
                    if (num == S) & (total > -MAX_DECAY):
                        decay = 0.0
                        for i in tl.static_range(S):
                            decay += tl.load(g_0 + (t + i) * H).to(tl.float32)
                            M, J = _write_token(
                                M, J, tl.exp(-decay), k_0 + (t + i) * k_step, v_0 + (t + i) * H * V,
                                beta_0 + (t + i) * H * V, in_k, in_v, EVEN_K, EVEN_V,
                            )  # fmt: skip
                        M *= tl.exp(total)
                        J *= tl.exp(total)
                    else:
                        for j in range(num):
                            alpha = tl.exp(tl.load(g_0 + (t + j) * H).to(tl.float32))
                            M, J = _write_token(
                                M * alpha, J * alpha, 1.0, k_0 + (t + j) * k_step, v_0 + (t + j) * H * V,
                                beta_0 + (t + j) * H * V, in_k, in_v, EVEN_K, EVEN_V,
                            )  # fmt: skip
                anchor_at = dg_anchor + (tile_v.to(tl.int64) * num_chunks + first_chunk + inner) * num_heads + local_head
                anchor = tl.sum(tl.reshape(dM * M - E * J, KT * VT))
                tl.store(anchor_at, anchor + tl.load(anchor_at, mask=not is_first, other=0.0))

                num_blocks = (num_here + S - 1) // S
                for back_block in range(num_blocks):
                    first = (num_blocks - 1 - back_block) * S
                    t = inner * CHUNK + first
                    M = tl.load(kept + first // S * (2 * KT * VT))
                    J = tl.load(kept + first // S * (2 * KT * VT) + KT * VT)
                    num = tl.minimum(num_here - first, S)
                    total = 0.0
                    for i in tl.static_range(S):
                        total += tl.load(g_0 + (t + i) * H, mask=i < num, other=0.0).to(tl.float32)
                    k_t, v_t, beta_t = k_0 + t * k_step, v_0 + t * H * V, beta_0 + t * H * V
                    if (num == S) & (total > -MAX_DECAY):
                        g_t = g_0 + t * H
                        d1 = tl.load(g_t).to(tl.float32)
                        d2 = d1 + tl.load(g_t + H).to(tl.float32)
                        d3 = d2 + tl.load(g_t + 2 * H).to(tl.float32)
                        w1, w2, w3, w4 = tl.exp(-d1), tl.exp(-d2), tl.exp(-d3), tl.exp(-total)
                        M1, J1 = _write_token(M, J, w1, k_t, v_t, beta_t, in_k, in_v, EVEN_K, EVEN_V)
                        M2, J2 = _write_token(
                            M1, J1, w2, k_t + k_step, v_t + H * V, beta_t + H * V, in_k, in_v, EVEN_K, EVEN_V
                        )
                        M3, J3 = _write_token(
                            M2, J2, w3, k_t + 2 * k_step, v_t + 2 * H * V, beta_t + 2 * H * V,
                            in_k, in_v, EVEN_K, EVEN_V,
                        )  # fmt: skip
                        M4, J4 = _write_token(
                            M3, J3, w4, k_t + 3 * k_step, v_t + 3 * H * V, beta_t + 3 * H * V,
                            in_k, in_v, EVEN_K, EVEN_V,
                        )  # fmt: skip
                        dM *= tl.exp(total)
                        E *= tl.exp(total)
                        for i in tl.static_range(S - 1, -1, -1):
                            if i == 3:
                                Mi, Ji, wi = M4, J4, w4
                            elif i == 2:
                                Mi, Ji, wi = M3, J3, w3
                            elif i == 1:
                                Mi, Ji, wi = M2, J2, w2
                            else:
                                Mi, Ji, wi = M1, J1, w1
                            at_v = (t + i) * H * V
                            at_sum = (t + i) * num_heads * V
                            dM, E, sum_E = _token_gradients(
                                Mi, Ji, dM, E, sum_E, wi, prior_h,
                                q_0 + (t + i) * k_step, k_0 + (t + i) * k_step, v_0 + at_v, beta_0 + at_v,
                                do_0 + at_v, dvar_0 + at_v, dq_0 + (t + i) * dk_step, dk_0 + (t + i) * dk_step,
                                dv_0 + at_v, dbeta_0 + at_v, dv_sum_0 + at_sum, dbeta_sum_0 + at_sum,
                                dg_0 + (t + i) * num_heads,
                                in_k, in_v, store_v, is_first, is_last, do_scale, dvar_scale, dq_scale,
                                EK, LK, VT, EVEN_K, EVEN_V, ONE_TILE, HAS_DVAR, HAS_PTX,
                            )  # fmt: skip
                    else:
                        # The end of a sequence, or decays too strong to take together: token by token, each from the
                        # state before the block.
                        for back_j in range(num):
                            j = num - 1 - back_j
                            Mj, Jj = M, J
                            alpha_j = 1.0
                            for m in range(j + 1):
                                alpha_j = tl.exp(tl.load(g_0 + (t + m) * H).to(tl.float32))
                                Mj, Jj = _write_token(
                                    Mj * alpha_j, Jj * alpha_j, 1.0, k_t + m * k_step, v_t + m * H * V,
                                    beta_t + m * H * V, in_k, in_v, EVEN_K, EVEN_V,
                                )  # fmt: skip
                            at_w = (t + j) * H * V
                            at_total = (t + j) * num_heads * V
                            dM, E, sum_E = _token_gradients(
                                Mj, Jj, dM, E, sum_E, 1.0, prior_h,
                                q_0 + (t + j) * k_step, k_0 + (t + j) * k_step, v_0 + at_w, beta_0 + at_w,
                                do_0 + at_w, dvar_0 + at_w, dq_0 + (t + j) * dk_step, dk_0 + (t + j) * dk_step,
                                dv_0 + at_w, dbeta_0 + at_w, dv_sum_0 + at_total, dbeta_sum_0 + at_total,
                                dg_0 + (t + j) * num_heads,
                                in_k, in_v, store_v, is_first, is_last, do_scale, dvar_scale, dq_scale,
                                EK, LK, VT, EVEN_K, EVEN_V, ONE_TILE, HAS_DVAR, HAS_PTX,
                            )  # fmt: skip
                            dM *= alpha_j
                            E *= alpha_j
            if WANTS_START:
                if (index == 0) & (num_tokens > 0):
                    at = (n.to(tl.int64) * H + h) * (K * V) + tile
                    store(start_M + at, dM, in_tile, EVEN_K and EVEN_V)
                    store(start_E + at, E, in_tile, EVEN_K and EVEN_V)
        tl.store(
            E_terms + (segment.to(tl.int64) * num_heads + local_head) * tiles_v + tile_v,
            tl.sum(tl.reshape(sum_E, LK * VT)),
        )


@triton.jit
def _sum_tiles_kernel(parts, out, num_tokens, first_head, H, num_heads, K: tl.constexpr, TILES: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Adds the parts of dq or dk that the tiles of V gave."""
    t = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = i < num_heads * K
    total = tl.zeros([BLOCK_SIZE], tl.float32)
    for tile in tl.static_range(TILES):
        total += tl.load(parts + (tile * num_tokens + t) * num_heads * K + i, mask=mask, other=0.0)
    tl.store(out + (t * H + first_head) * K + i, total, mask=mask)


@triton.jit
def _decay_gradient_kernel(
    dg_terms, dg_anchor, dg, cu_seqlens, offsets, sequence_of, T, H, first_head, num_heads, chunks_each, num_chunks,
    num_tokens_all, TILES: tl.constexpr, CHUNK: tl.constexpr, IS_PACKED: tl.constexpr,
):  # fmt: skip
    """dg: the reverse sum over the tokens of a chunk, from what is exactly known at its end."""
    chunk = tl.program_id(0) // num_heads
    local_head = tl.program_id(0) % num_heads
    _, _, start, num_tokens = locate(chunk, T, chunks_each, cu_seqlens, offsets, sequence_of, CHUNK, IS_PACKED)
    if num_tokens > 0:
        tt = tl.arange(0, CHUNK)
        mask = tt < num_tokens
        terms = tl.zeros([CHUNK], tl.float32)
        anchor = 0.0
        for tile in range(TILES):
            row = (tile * num_tokens_all + start + tt) * num_heads + local_head
            terms += tl.load(dg_terms + row, mask=mask, other=0.0)
            anchor += tl.load(dg_anchor + (tile * num_chunks + chunk.to(tl.int64)) * num_heads + local_head)
        result = anchor + tl.cumsum(terms, 0, reverse=True)
        tl.store(dg + (start + tt) * H + first_head + local_head, result, mask=mask)


class Gradients(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    g: Tensor
    importance_prior: Tensor
    mean0: Tensor | None
    importance0: Tensor | None


class BackwardPlan(NamedTuple):
    segment_size: int
    EK: int
    LK: int
    VT: int
    head_slices: list[tuple[int, int]]


def num_resident_programs(device: torch.device) -> int:
    """Programs of one warp and 255 registers that a GPU runs at a time."""
    if INTERPRETED:
        return 4
    return 8 * torch.cuda.get_device_properties(device).multi_processor_count


def plan_backward(num_tokens: int, num_sequences: int, H: int, K: int, V: int, num_programs: int) -> BackwardPlan:
    """The table of tile sizes, one entry a class of shapes."""
    EK, LK, VT = (4, 4, 32) if V > 16 else (2, 8, 16)
    tiles_k, tiles_v = triton.cdiv(K, EK * LK), triton.cdiv(V, VT)
    segment = 128
    num_chunks = num_tokens // CHUNK + num_sequences
    num_segments = num_tokens // segment + num_sequences
    bytes_a_head = 8 * num_chunks * K * V + 8 * num_segments * K * V + 4 * num_tokens * tiles_v
    if tiles_v > 1:
        bytes_a_head += 8 * num_tokens * K * tiles_v
    if tiles_k > 1:
        bytes_a_head += 12 * num_tokens * K + 8 * num_tokens * V
    slices = slice_heads(H, bytes_a_head)
    # One segment a sequence needs no flows from others, and is best where sequences and heads alone fill the GPU.
    longest = triton.cdiv(num_tokens, max(1, num_sequences))
    if num_sequences * slices[0][1] * tiles_v >= 0.9 * num_programs and longest <= 16384:
        segment = max(CHUNK, triton.next_power_of_2(longest))
    return BackwardPlan(segment, EK, LK, VT, slices)


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor,
    importance_prior: Tensor,
    scale: float,
    mean0: Tensor | None,
    importance0: Tensor | None,
    mean: Tensor | None,
    importance: Tensor | None,
    cu_seqlens: Tensor | None,
    do: Tensor,
    dvar: Tensor | None,
    dmean: Tensor | None,
    dimportance: Tensor | None,
) -> Gradients:
    """Gradients of `forward`'s arguments, in their dtypes; `mean` and `importance` are the final state if dmean is given."""
    B, T, H, K = q.shape
    V = v.shape[-1]
    N = B if cu_seqlens is None else cu_seqlens.numel() - 1
    num_tokens = B * T
    float32 = {"dtype": torch.float32, "device": q.device}
    dq, dk, dv, dbeta = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), torch.empty_like(beta)
    dg = torch.empty_like(g)
    final_M = final_E = None
    if dmean is not None and dimportance is not None and mean is not None and importance is not None:
        final_M = dmean / importance
        final_E = final_M * mean - dimportance
    start_M = start_E = None
    if mean0 is not None:
        # A sequence without tokens passes what reaches its end.
        zeros = torch.zeros(N, H, K, V, **float32)
        start_M, start_E = (zeros, zeros.clone()) if final_M is None else (final_M.clone(), final_E.clone())
    sum_E = torch.zeros(H, **float32)

    if v.numel() > 0:
        programs = num_resident_programs(q.device)
        plan = plan_backward(num_tokens, N, H, K, V, programs)
        chunks = cut(N, T, CHUNK, cu_seqlens)
        segments = cut(N, T, plan.segment_size, cu_seqlens)
        longest = T if cu_seqlens is not None else segments.each * plan.segment_size
        is_single = segments.each == 1 or longest <= plan.segment_size
        tiles_k, tiles_v = triton.cdiv(K, plan.EK * plan.LK), triton.cdiv(V, plan.VT)
        packed = cu_seqlens is not None
        wide = tiles_v > 1
        for first_head, num_heads in plan.head_slices:
            states = chunk_states(
                k, v, beta, g, importance_prior, mean0, importance0, cu_seqlens, chunks, first_head, num_heads, None
            )
            qs, ks, k_squared = widen(q, k, scale, first_head, num_heads) if wide else (q, k, k)
            do_scale, dq_scale = (1.0, scale) if wide else (scale, 1.0)
            dvar_scale = do_scale * do_scale
            flow = (final_M, final_E) if final_M is not None else (q, q)
            kind = 0 if final_M is None else 1
            if not is_single:
                kind = 2
                flow = tuple(torch.empty(segments.count, num_heads, K, V, **float32) for _ in range(2))
                segment_decay = torch.empty(segments.count, num_heads, **float32)
                KT, VT = 16, plan.VT
                _flow_kernel[(segments.count * num_heads, triton.cdiv(K, KT) * triton.cdiv(V, VT))](
                    qs, ks, k_squared, v, beta, g, importance_prior, do, do if dvar is None else dvar, *states, *flow,
                    segment_decay, cu_seqlens, segments.offsets, segments.sequence_of, chunks.offsets,
                    T, H, first_head, num_heads, segments.each, chunks.each, do_scale, dvar_scale,
                    K, V, KT, VT, plan.segment_size, CHUNK, BLOCK,
                    IS_WIDE=wide, HAS_DVAR=dvar is not None, IS_PACKED=packed, MAX_DECAY=MAX_DECAY, HAS_PTX=HAS_PTX,
                    num_warps=1, maxnreg=168,
                )  # fmt: skip
                size = 128
                _flow_scan_kernel[(N * num_heads, triton.cdiv(K * V, size))](
                    *flow, segment_decay, final_M, final_E, segments.offsets, H, first_head, num_heads, segments.each,
                    K * V, size, HAS_FINAL=final_M is not None, IS_PACKED=packed, num_warps=1,
                )  # fmt: skip
            parts = [dq, dk]
            if tiles_v > 1:
                parts = [torch.empty(tiles_v, num_tokens, num_heads, K, **float32) for _ in range(2)]
            sums = [dv, dbeta]
            if tiles_k > 1:
                sums = [torch.empty(num_tokens, num_heads, V, **float32) for _ in range(2)]
            dg_terms = torch.empty(tiles_v, num_tokens, num_heads, **float32)
            dg_anchor = torch.empty(tiles_v, chunks.count, num_heads, **float32)
            E_terms = torch.empty(segments.count, num_heads, tiles_v, **float32)
            num_items = segments.count * num_heads * tiles_v
            num_here = min(num_items, programs)
            tile = plan.EK * plan.LK * plan.VT
            scratch = torch.empty(num_here, CHUNK // BLOCK * 2 * tile, **float32)
            _gradients_kernel[(num_here,)](
                qs, ks, v, beta, g, importance_prior, do, do if dvar is None else dvar, *states, *flow,
                *parts, dv, dbeta, *sums, dg_terms, dg_anchor, E_terms,
                g if start_M is None else start_M, g if start_E is None else start_E, scratch,
                cu_seqlens, segments.offsets, segments.sequence_of, chunks.offsets, num_items, num_tokens, T, H,
                first_head, num_heads, segments.each, chunks.each, chunks.count, do_scale, dvar_scale, dq_scale,
                K, V, plan.EK, plan.LK, plan.VT, plan.segment_size, CHUNK,
                IS_WIDE=wide, FLOW=kind, HAS_DVAR=dvar is not None, IS_PACKED=packed, WANTS_START=start_M is not None,
                MAX_DECAY=MAX_DECAY, HAS_PTX=HAS_PTX, num_warps=1,
            )  # fmt: skip
            if tiles_v > 1:
                size = 256
                for part, out in zip(parts, (dq, dk), strict=True):
                    _sum_tiles_kernel[(num_tokens, triton.cdiv(num_heads * K, size))](
                        part, out, num_tokens, first_head, H, num_heads, K, tiles_v, size, num_warps=2
                    )
            _decay_gradient_kernel[(chunks.count * num_heads,)](
                dg_terms, dg_anchor, dg, cu_seqlens, chunks.offsets, chunks.sequence_of, T, H, first_head, num_heads,
                chunks.each, chunks.count, num_tokens, tiles_v, CHUNK, IS_PACKED=packed, num_warps=1,
            )  # fmt: skip
            sum_E[first_head : first_head + num_heads] = E_terms.sum((0, 2))

    # README.md: what forgetting gives back of the prior, over all tokens, telescopes.
    dprior = -sum_E
    if final_E is not None:
        dprior -= final_E.sum((0, 2, 3))
    dmean0 = dimportance0 = None
    if mean0 is not None and importance0 is not None and start_M is not None and start_E is not None:
        dprior += start_E.sum((0, 2, 3))
        dmean0 = (importance0 * start_M).to(mean0.dtype)
        dimportance0 = (mean0 * start_M - start_E).to(importance0.dtype)
    return Gradients(dq, dk, dv, dbeta, dg, dprior.to(importance_prior.dtype), dmean0, dimportance0)
