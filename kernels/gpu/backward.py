"""The backward pass in Triton: states and flows are computed anew, and never kept for every token of a sequence.

kernels/README.md has the equations, the tiling and what it costs.
"""

# Triton's decorator hides the signatures of kernels, and that of its helpers for both worlds, from a type checker.
# pyright: reportCallIssue=false, reportArgumentType=false, reportReturnType=false, reportGeneralTypeIssues=false
# pyright: reportAssignmentType=false, reportAttributeAccessIssue=false

# B batch, T time, H heads, K key dim, V value dim, N sequences, C chunk size, M = I * mu, J = I - I_prior, E = -dI
# A flow is the gradient that reaches M and J of the token before a point from all tokens after it.
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import primitives
from .compilation import compile_once, launch, rehearsals
from .forward import STAGES, Sequences, num_heads_that_fit, prepare, scaled, scan, slice_heads
from .primitives import (
    HAS_PTX,
    INTERPRETED,
    MAX_DECAY,
    PRECISIONS,
    SCALARS,
    SIZES,
    aligned,
    cdiv,
    locate,
    next_power_of_2,
    reciprocal,
)

# Tokens between two states that the backward starts from: over more, taking tokens out of a state again would lose
# precision, and over fewer, the states would take more time to move than to use.
CHUNK = 32
# Tokens of the parts that a chunk is cut into where it forgets too much to be walked through backwards in one piece.
PART = 8
# Tokens of a segment where sequences are cut, and how much longer the flow between segments makes the way back.
SEGMENT = 128
FLOW_COST = 1.4
# Within so many tokens a smaller decay is better met token by token: the way back divides by it.
MAX_CHUNK_DECAY = 4.0


# Without a known alignment of the states the lanes lie along V: see forward.py.
@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=["M_in", "J_in", "flow_M", "flow_E", *SCALARS])
def _flow_kernel(
    wide, v, beta, g, prior, do, dvar, M_in, J_in, flow_M, flow_E, segment_decay,
    cu_seqlens, offsets, sequence_of, chunk_offsets, num_tokens_all, T, H, first_head, segments_each,
    chunks_each, num_segments, num_chunks, segment_size,
    K: tl.constexpr, V: tl.constexpr, PAIRS: tl.constexpr, VT: tl.constexpr,
    CHUNK: tl.constexpr, STAGES: tl.constexpr,
    HAS_DVAR: tl.constexpr, IS_PACKED: tl.constexpr, IS_LARGE: tl.constexpr,
    MAX_DECAY: tl.constexpr, HAS_PTX: tl.constexpr,
):  # fmt: skip
    """The flow that the tokens of one segment add to the state before it, and how much of a later flow they let pass.

    Two tokens an iteration and states divided by the decay since they were last true to scale, as in forward.py.
    """
    HALF: tl.constexpr = 8
    KT: tl.constexpr = 2 * HALF * PAIRS
    tiles_v: tl.constexpr = (V + VT - 1) // VT
    tiles: tl.constexpr = (K + KT - 1) // KT * tiles_v
    tile_k = tl.program_id(0) % tiles // tiles_v
    tile_v = tl.program_id(0) % tiles_v
    segment = tl.program_id(0) // tiles
    local_head = tl.program_id(1)
    h = first_head + local_head
    n, index, start, num_tokens = locate(
        segment, T, segments_each, cu_seqlens, offsets, sequence_of, segment_size, IS_PACKED
    )
    # What reaches the start of a sequence is the gradients kernel's business.
    if index == 0:
        num_tokens = 0
    if IS_PACKED:
        chunk = tl.load(chunk_offsets + n).to(tl.int64) + index * (segment_size // CHUNK)
    else:
        chunk = n.to(tl.int64) * chunks_each + index * (segment_size // CHUNK)
    kk = tile_k * KT + tl.arange(0, HALF)
    vv = tile_v * VT + tl.arange(0, VT)
    in_v = vv < V
    both = tl.arange(0, 2)
    prior_h = tl.load(prior + h).to(tl.float32)

    if num_tokens > 0:
        state = (local_head.to(tl.int64) * num_chunks + chunk) * (K * V) + vv[None, :]
        of_segment = local_head.to(tl.int64) * num_segments + segment
        out = of_segment * (K * V) + vv[None, :]
        Ms, Js, dMs, Es = (), (), (), ()
        for i in tl.static_range(2 * PAIRS):
            tile = (kk + i * HALF)[:, None] * V
            in_tile = (kk + i * HALF < K)[:, None] & in_v[None, :]
            Ms = Ms + (tl.load(M_in + state + tile, mask=in_tile, other=0.0),)
            Js = Js + (tl.load(J_in + state + tile, mask=in_tile, other=0.0),)
            dMs = dMs + (tl.zeros([HALF, VT], tl.float32),)
            Es = Es + (tl.zeros([HALF, VT], tl.float32),)
        row = start * H + h
        wide_row = local_head.to(tl.int64) * num_tokens_all + start
        if not IS_LARGE:
            row, wide_row = row.to(tl.int32), wide_row.to(tl.int32)
        # exp(decay): since the states were last true to scale; passed: from the segment's start until then.
        decay = 0.0
        passed = 1.0
        for t in tl.range(0, num_tokens, 2, num_stages=STAGES):
            in_v_t = in_v[:, None] & (t + both < num_tokens)[None, :]
            at_v = (row + (t + both) * H)[None, :] * V + vv[:, None]
            vs = tl.split(tl.load(v + at_v, mask=in_v_t, other=0.0).to(tl.float32))
            betas = tl.split(tl.load(beta + at_v, mask=in_v_t, other=0.0).to(tl.float32))
            dos = tl.split(tl.load(do + at_v, mask=in_v_t, other=0.0).to(tl.float32))
            if HAS_DVAR:
                dvars = tl.split(tl.load(dvar + at_v, mask=in_v_t, other=0.0).to(tl.float32))
            gs = tl.split(tl.load(g + row + (t + both) * H, mask=t + both < num_tokens, other=0.0))
            for u in tl.static_range(2):
                decay += gs[u].to(tl.float32)
                if decay < -MAX_DECAY:
                    alpha = tl.exp(decay)
                    Ms, Js = scaled(Ms, alpha), scaled(Js, alpha)
                    passed *= alpha
                    decay = 0.0
                weight = tl.exp(-decay)
                v_t, beta_t = (vs[u] * weight)[None, :], (betas[u] * weight)[None, :]
                do_t = (dos[u] * passed)[None, :]
                new_Ms, new_Js, new_dMs, new_Es = (), (), (), ()
                for i in tl.static_range(PAIRS):
                    is_token = t + u < num_tokens
                    # One after the other, unlike in forward.py: there are no registers for all of them at once.
                    at = (wide_row + t + u) * (4 * K) + kk[:, None] + (both[None, :] + 2 * i) * HALF
                    in_pair = is_token & (kk[:, None] + (both[None, :] + 2 * i) * HALF < K)
                    ks = tl.split(tl.load(wide + at, mask=in_pair, other=0.0))
                    qs = tl.split(tl.load(wide + at + K, mask=in_pair, other=0.0))
                    k2s = tl.split(tl.load(wide + at + 2 * K, mask=in_pair, other=0.0))
                    for j in tl.static_range(2):
                        q_t = qs[j][:, None]
                        M, J = Ms[2 * i + j] + ks[j][:, None] * v_t, Js[2 * i + j] + k2s[j][:, None] * beta_t
                        inverse = reciprocal(J + prior_h * weight, HAS_PTX)
                        mean = M * inverse
                        change = do_t * inverse
                        dM, E = dMs[2 * i + j] + q_t * change, Es[2 * i + j] + q_t * (change * mean)
                        if HAS_DVAR:
                            E += (q_t * q_t) * ((dvars[u] * (passed * weight))[None, :] * inverse * inverse)
                        new_Ms, new_Js, new_dMs, new_Es = new_Ms + (M,), new_Js + (J,), new_dMs + (dM,), new_Es + (E,)
                Ms, Js, dMs, Es = new_Ms, new_Js, new_dMs, new_Es
        for i in tl.static_range(2 * PAIRS):
            tile = (kk + i * HALF)[:, None] * V
            in_tile = (kk + i * HALF < K)[:, None] & in_v[None, :]
            tl.store(flow_M + out + tile, dMs[i], mask=in_tile)
            tl.store(flow_E + out + tile, Es[i], mask=in_tile)
        if tl.program_id(0) % tiles == 0:
            tl.store(segment_decay + of_segment, passed * tl.exp(decay))


@triton.jit
def _sum_in_thread(x, EK: tl.constexpr, LK: tl.constexpr, VT: tl.constexpr):
    """[EK, LK, VT] -> [EK, LK, VT / 4]: the sums that need no exchange between threads, to be combined before those."""
    return tl.sum(tl.reshape(x, EK, LK, VT // 4, 4), 3)


@triton.jit
def _load_token(
    wide, v, beta, g, row, wide_row, m, H, kk, vv, in_k, in_v, K: tl.constexpr, V: tl.constexpr
):  # fmt: skip
    """k [EK, LK, 1], v and beta [1, LK, VT] and the log decay of token m of a segment."""
    k_m = tl.load(wide + ((wide_row + m) * (4 * K) + kk), mask=in_k, other=0.0)[:, :, None]
    at_m = (row + m * H) * V + vv
    v_m = tl.load(v + at_m, mask=in_v, other=0.0).to(tl.float32)[None, :, :]
    beta_m = tl.load(beta + at_m, mask=in_v, other=0.0).to(tl.float32)[None, :, :]
    return k_m, v_m, beta_m, tl.load(g + row + m * H).to(tl.float32)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=SCALARS)
def _gradients_kernel(
    wide, v, beta, g, prior, do, dvar, M_in, J_in, M_end, J_end, flow_M, flow_E,
    dq, dk, dv, dbeta, dv_sum, dbeta_sum, dg_terms, dg_anchor, E_terms, start_M, start_E,
    cu_seqlens, offsets, sequence_of, chunk_offsets, num_items, num_tokens_all, T, H, first_head,
    segments_each, chunks_each, num_segments, num_chunks, segment_size, flow_kind, dq_scale,
    K: tl.constexpr, V: tl.constexpr, EK: tl.constexpr, LK: tl.constexpr, VT: tl.constexpr,
    CHUNK: tl.constexpr, PART: tl.constexpr, STAGES: tl.constexpr,
    HAS_DVAR: tl.constexpr, IS_PACKED: tl.constexpr, WANTS_START: tl.constexpr,
    IS_LARGE: tl.constexpr, MAX_GROWTH: tl.constexpr, MAX_WRITES: tl.constexpr, MAX_DECAY: tl.constexpr,
    HAS_PTX: tl.constexpr,
):  # fmt: skip
    """All gradients of one segment, head and tile of V: one tile of K after the other, chunks and tokens backwards.

    flow_kind: 0 nothing reaches the end of the segment, 1 the flow after its sequence does, 2 that after the segment.

    A state is [EK, LK, VT] with key ek + EK * lk: EK in registers, LK and VT / 4 over the lanes of one warp. Each chunk
    starts from the state after it and takes its tokens out again one by one. That is exact to some units of rounding
    where no importance grew, and no sum of writes was, much larger than what stood before, and little was forgotten;
    else the same is tried with a part of the chunk, whose end is computed from the chunk's start, and where that fails
    too, every token's state is.
    """
    KT: tl.constexpr = EK * LK
    EVEN_K: tl.constexpr = K % KT == 0
    ONE_TILE: tl.constexpr = K <= KT
    tiles_v: tl.constexpr = (V + VT - 1) // VT
    key = tl.arange(0, EK)[:, None] + (tl.arange(0, LK) * EK)[None, :]
    lane_value = tl.zeros([LK, 1], tl.int32) + tl.arange(0, VT)[None, :]
    local_head = tl.program_id(1)

    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        tile_v = item % tiles_v
        segment = item // tiles_v
        h = first_head + local_head
        n, index, start, num_tokens = locate(
            segment, T, segments_each, cu_seqlens, offsets, sequence_of, segment_size, IS_PACKED
        )
        if IS_PACKED:
            first_chunk = tl.load(chunk_offsets + n).to(tl.int32)
        else:
            first_chunk = n * chunks_each
        # Numbers of entries, not offsets: 32 bits of a register for as long as the tokens go by.
        first_chunk += local_head * num_chunks + index * (segment_size // CHUNK)
        of_sequence = n * H + h
        if IS_PACKED:
            is_end = start + num_tokens == tl.load(cu_seqlens + n + 1)
        else:
            is_end = start + num_tokens == (n + 1).to(tl.int64) * T
        vv = tile_v * VT + lane_value
        in_v = vv < V
        # Every row of lanes holds the same sums over keys: the first one stores them.
        store_v = in_v & (tl.arange(0, LK)[:, None] == 0)
        prior_h = tl.load(prior + h).to(tl.float32)
        row = start * H + h
        # What is made for the heads of this call alone lies head by head: one token after the other.
        wide_row = local_head.to(tl.int64) * num_tokens_all + start
        tile_offset = (local_head.to(tl.int64) * tiles_v + tile_v) * num_tokens_all + start
        # Gradients of q and k are sums over tiles of V: with one tile they are final.
        dk_row = row if tiles_v == 1 else tile_offset
        dk_heads = H if tiles_v == 1 else 1
        if not IS_LARGE:
            # With 64 bits every address would be a value of its own in registers; so they stay constants.
            row, wide_row = row.to(tl.int32), wide_row.to(tl.int32)
            tile_offset, dk_row = tile_offset.to(tl.int32), dk_row.to(tl.int32)
        sum_E = tl.zeros([LK, VT], tl.float32)

        for k0 in range(0, K, KT):
            is_first, is_last = k0 == 0, k0 + KT >= K
            kk = k0 + key
            in_k = key < KT if EVEN_K else kk < K
            in_tile = in_k[:, :, None] & in_v[None, :, :]
            tile = kk[:, :, None] * V + vv[None, :, :]
            of_flow = tl.where(flow_kind == 1, of_sequence, local_head * num_segments + segment)
            flow = of_flow.to(tl.int64) * (K * V) + tile
            has_flow = in_tile & (flow_kind != 0)
            dM = tl.load(flow_M + flow, mask=has_flow, other=0.0)
            E = tl.load(flow_E + flow, mask=has_flow, other=0.0)

            M = tl.zeros([EK, LK, VT], tl.float32)
            J = tl.zeros([EK, LK, VT], tl.float32)
            # Log decay from the start of the chunk to the token, while the states are to be multiplied by it.
            decay = 0.0
            is_steep, from_start = False, False
            for back in tl.range(0, num_tokens, num_stages=STAGES):
                t = num_tokens - 1 - back
                at_v = (row + t * H) * V + vv
                at_wide = (wide_row + t) * (4 * K) + kk[:, :, None] + (tl.arange(0, 2) * K)[None, None, :]
                k_t, q_t = tl.split(tl.load(wide + at_wide, mask=in_k[:, :, None], other=0.0))
                k_t, q_t = k_t[:, :, None], q_t[:, :, None]
                v_t = tl.load(v + at_v, mask=in_v, other=0.0).to(tl.float32)[None, :, :]
                beta_t = tl.load(beta + at_v, mask=in_v, other=0.0).to(tl.float32)[None, :, :]
                do_t = tl.load(do + at_v, mask=in_v, other=0.0).to(tl.float32)[None, :, :]
                g_t = tl.load(g + row + t * H).to(tl.float32)
                if (t % CHUNK == CHUNK - 1) | (back == 0):
                    chunk = first_chunk + t // CHUNK
                    state = chunk.to(tl.int64) * (K * V)
                    end = of_sequence.to(tl.int64) * (K * V)
                    is_at_end = (back == 0) & is_end
                    after = state + K * V
                    M = tl.load(tl.where(is_at_end, M_end + end, M_in + after) + tile, mask=in_tile, other=0.0)
                    J = tl.load(tl.where(is_at_end, J_end + end, J_in + after) + tile, mask=in_tile, other=0.0)
                    M_before = tl.load(M_in + state + tile, mask=in_tile, other=0.0)
                    J_before = tl.load(J_in + state + tile, mask=in_tile, other=0.0)
                    anchor_at = dg_anchor + chunk * tiles_v + tile_v
                    anchor = tl.load(anchor_at, mask=not is_first, other=0.0)
                    chunk_tokens = t // CHUNK * CHUNK + tl.arange(0, CHUNK)
                    in_c = chunk_tokens <= t
                    g_c = tl.load(g + row + chunk_tokens * H, mask=in_c, other=0.0).to(tl.float32)
                    keys = k0 + tl.arange(0, KT)
                    k_c = wide + ((wide_row + chunk_tokens) * (4 * K))[:, None] + keys[None, :]
                    k_c = tl.load(k_c, mask=in_c[:, None] & (keys < K)[None, :], other=0.0)
                    values = tile_v * VT + tl.arange(0, VT)
                    v_c = v + ((row + chunk_tokens * H) * V)[:, None] + values[None, :]
                    v_c = tl.load(v_c, mask=in_c[:, None] & (values < V)[None, :], other=0.0).to(tl.float32)

                    tl.store(anchor_at, anchor + tl.sum(tl.reshape(dM * M - E * J, KT * VT)))
                    decay = tl.sum(g_c, 0)
                    # In the scale of the chunk's start importances only grow: by how much, at most?
                    grown = (J + prior_h) * tl.exp(-tl.maximum(decay, -MAX_DECAY))
                    grown = tl.max(tl.reshape(grown - MAX_GROWTH * (J_before + prior_h), KT * VT))
                    # M may also shrink: not what it is counts, but what was written, all of it together.
                    writes = tl.max(tl.abs(k_c), 1) * tl.max(tl.abs(v_c), 1)
                    writes *= tl.exp(tl.minimum(-tl.cumsum(g_c, 0), MAX_DECAY))
                    stood = tl.max(tl.reshape(tl.abs(M_before), KT * VT))
                    stood = tl.maximum(stood, tl.sum(tl.where(chunk_tokens % CHUNK == 0, writes, 0.0), 0))
                    is_steep = (grown > 0.0) | (decay < -MAX_DECAY) | (tl.sum(writes, 0) > MAX_WRITES * stood)
                    from_start = False
                    if is_steep:
                        decay = 0.0
                    up, down = tl.exp(-decay), tl.exp(decay)
                    M, J, dM, E = M * up, J * up, dM * down, E * down
                if is_steep & ((t % PART == PART - 1) | (back == 0)):
                    # The same for a part of the chunk, whose end is reached from the chunk's start.
                    state = (first_chunk + t // CHUNK).to(tl.int64) * (K * V)
                    M = tl.load(M_in + state + tile, mask=in_tile, other=0.0)
                    J = tl.load(J_in + state + tile, mask=in_tile, other=0.0)
                    begin = t // PART * PART
                    for m in tl.range(t // CHUNK * CHUNK, begin):
                        k_m, v_m, beta_m, g_m = _load_token(
                            wide, v, beta, g, row, wide_row, m, H, kk, vv, in_k, in_v, K, V
                        )
                        alpha = tl.exp(g_m)
                        M, J = M * alpha + k_m * v_m, J * alpha + (k_m * k_m) * beta_m
                    J_before = J
                    stood = tl.max(tl.reshape(tl.abs(M), KT * VT))
                    decay, written = 0.0, 0.0
                    for m in tl.range(begin, t + 1):
                        k_m, v_m, beta_m, g_m = _load_token(
                            wide, v, beta, g, row, wide_row, m, H, kk, vv, in_k, in_v, K, V
                        )
                        alpha = tl.exp(g_m)
                        M, J = M * alpha + k_m * v_m, J * alpha + (k_m * k_m) * beta_m
                        decay += g_m
                        write = tl.max(tl.reshape(tl.abs(k_m), KT)) * tl.max(tl.reshape(tl.abs(v_m), LK * VT))
                        write *= tl.exp(-tl.maximum(decay, -MAX_DECAY))
                        written += write
                        stood = tl.where(m == begin, tl.maximum(stood, write), stood)
                    grown = (J + prior_h) * tl.exp(-tl.maximum(decay, -MAX_DECAY))
                    grown = tl.max(tl.reshape(grown - MAX_GROWTH * (J_before + prior_h), KT * VT))
                    from_start = (grown > 0.0) | (decay < -MAX_DECAY) | (written > MAX_WRITES * stood)
                    if from_start:
                        decay = 0.0
                    up, down = tl.exp(-decay), tl.exp(decay)
                    M, J, dM, E = M * up, J * up, dM * down, E * down
                if from_start:
                    state = (first_chunk + t // CHUNK).to(tl.int64) * (K * V)
                    M = tl.load(M_in + state + tile, mask=in_tile, other=0.0)
                    J = tl.load(J_in + state + tile, mask=in_tile, other=0.0)
                    for m in tl.range(t // CHUNK * CHUNK, t + 1, num_stages=STAGES):
                        k_m, v_m, beta_m, g_m = _load_token(
                            wide, v, beta, g, row, wide_row, m, H, kk, vv, in_k, in_v, K, V
                        )
                        alpha = tl.exp(g_m)
                        M, J = M * alpha + k_m * v_m, J * alpha + (k_m * k_m) * beta_m
                weight = tl.exp(-decay)
                inverse = reciprocal(J + prior_h * weight, HAS_PTX)
                mean = M * inverse
                to_M = q_t * (do_t * inverse)
                to_E = to_M * mean
                dq_t = _sum_in_thread(mean * do_t, EK, LK, VT)
                if HAS_DVAR:
                    dvar_t = tl.load(dvar + at_v, mask=in_v, other=0.0).to(tl.float32)[None, :, :] * weight
                    spread = q_t * (dvar_t * inverse)
                    to_E += q_t * (spread * inverse)
                    dq_t += 2.0 * _sum_in_thread(dvar_t * inverse, EK, LK, VT) * q_t
                dM += to_M
                E += to_E

                v_w, beta_w = v_t * weight, beta_t * weight
                from_M = _sum_in_thread(dM * v_w, EK, LK, VT)
                from_E = _sum_in_thread(E * beta_w, EK, LK, VT)
                k2_t = k_t * k_t
                at_dk = (dk_row + t * dk_heads) * K + kk
                tl.store(dq + at_dk, tl.sum(dq_t, 2) * dq_scale, mask=in_k)
                tl.store(dk + at_dk, tl.sum(from_M - (2.0 * k_t) * from_E, 2), mask=in_k)
                dv_t = tl.sum(dM * k_t, 0) * weight
                dbeta_t = tl.sum(E * k2_t, 0) * -weight
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
                    tl.store(dv + at_v, dv_t, mask=store_v)
                    tl.store(dbeta + at_v, dbeta_t, mask=store_v)
                else:
                    at_sum = (wide_row + t) * V + vv
                    dv_t += tl.load(dv_sum + at_sum, mask=in_v & (not is_first), other=0.0)
                    dbeta_t += tl.load(dbeta_sum + at_sum, mask=in_v & (not is_first), other=0.0)
                    dg_t += tl.load(dg_terms + tile_offset + t, mask=not is_first, other=0.0)
                    tl.store(dv_sum + at_sum, dv_t, mask=store_v & (not is_last))
                    tl.store(dbeta_sum + at_sum, dbeta_t, mask=store_v & (not is_last))
                    tl.store(dv + at_v, dv_t, mask=store_v & is_last)
                    tl.store(dbeta + at_v, dbeta_t, mask=store_v & is_last)
                tl.store(dg_terms + tile_offset + t, dg_t)

                if from_start:
                    dM, E = dM * tl.exp(g_t), E * tl.exp(g_t)
                else:
                    decay -= g_t
                # Without effect where the states are to be computed from the chunk's start.
                M -= k_t * v_w
                J -= k2_t * beta_w
            if WANTS_START:
                if (index == 0) & (num_tokens > 0):
                    end = of_sequence.to(tl.int64) * (K * V)
                    tl.store(start_M + end + tile, dM, mask=in_tile)
                    tl.store(start_E + end + tile, E, mask=in_tile)
            # The sums over tiles of keys pass from the threads that store them to those that load them.
            tl.debug_barrier()
        tl.store(E_terms + local_head.to(tl.int64) * num_items + item, tl.sum(tl.reshape(sum_E, LK * VT)))


@triton.jit(do_not_specialize=SIZES)
def _sum_tiles_kernel(
    dq_parts, dk_parts, dq, dk, num_tokens, first_head, H, K: tl.constexpr, TILES: tl.constexpr, BLOCK: tl.constexpr
):
    """Adds the parts of dq, and after them of dk, that the tiles of V gave."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    t, key = i // K, i % K
    mask = t < num_tokens
    local_head = tl.program_id(1)
    size = num_tokens.to(tl.int64) * K
    is_q = tl.program_id(2) == 0
    own = tl.where(is_q, dq_parts, dk_parts) + i
    total = tl.zeros([BLOCK], tl.float32)
    for tile in tl.static_range(TILES):
        total += tl.load(own + (local_head * TILES + tile) * size, mask=mask, other=0.0)
    out = (t * H + first_head + local_head) * K + key
    tl.store(tl.where(is_q, dq, dk) + out, total, mask=mask)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=SCALARS)
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
            row = (local_head.to(tl.int64) * TILES + tile) * num_tokens_all + start + tt
            terms += tl.load(dg_terms + row, mask=mask, other=0.0)
            anchor += tl.load(dg_anchor + (local_head.to(tl.int64) * num_chunks + chunk) * TILES + tile)
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
    flow_pairs: int
    EK: int
    LK: int
    VT: int
    head_slices: list[tuple[int, int]]


def num_resident_programs() -> int:
    """Programs of one warp and 168 registers that the current GPU runs at a time."""
    if INTERPRETED:
        return 4
    return 12 * torch.cuda.get_device_properties().multi_processor_count


def plan_backward(num_tokens: int, num_sequences: int, H: int, K: int, V: int, num_programs: int) -> BackwardPlan:
    """The table of tile sizes, one entry a class of shapes."""
    EK, LK, VT = (4, 4, 32) if V > 16 else (2, 8, 16)
    tiles_k, tiles_v = cdiv(K, EK * LK), cdiv(V, VT)
    average = cdiv(num_tokens, max(1, num_sequences))

    def head_slices(segment: int) -> list[tuple[int, int]]:
        """Of the groups of heads that fit, those that leave the fewest programs idle, and of these the largest."""
        num_states = num_tokens // CHUNK + num_tokens // segment + 2 * num_sequences
        bytes_a_head = 8 * num_states * K * V + 4 * num_tokens * tiles_v + 16 * num_tokens * K
        if tiles_v > 1:
            bytes_a_head += 8 * num_tokens * K * tiles_v
        if tiles_k > 1:
            bytes_a_head += 8 * num_tokens * V
        sizes = range(1, min(H, num_heads_that_fit(bytes_a_head)) + 1)
        return min((slice_heads(H, size) for size in sizes), key=lambda slices: (rounds(segment, slices), len(slices)))

    def rounds(segment: int, slices: list[tuple[int, int]]) -> int:
        num_segments = num_sequences * cdiv(average, segment)
        # Programs are an equal number a head.
        return sum(cdiv(num_segments * tiles_v, max(1, num_programs // n)) * cdiv(n, num_programs) for _, n in slices)

    def cost(segment: int) -> float:
        """Tokens that a program meets one after the other, and more where sequences are cut."""
        alone = rounds(segment, head_slices(segment)) * min(segment, average)
        return alone if segment >= average else FLOW_COST * alone

    whole = max(CHUNK, next_power_of_2(average))
    segment = min((whole, min(SEGMENT, whole)), key=cost)
    # Two pairs of keys are a tenth faster and compile three times as long, which wide heads have no room for.
    flow_pairs = 2 if K % 32 == 0 and K <= 128 else 1
    return BackwardPlan(segment, flow_pairs, EK, LK, VT, head_slices(segment))


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
    """Gradients of `forward`'s arguments, in their dtypes; `mean`, `importance`: the final state, if dmean is given."""
    B, T, H, K = q.shape
    V = v.shape[-1]
    q, k, v, beta, do = aligned(q), aligned(k), aligned(v), aligned(beta), aligned(do)
    dvar = None if dvar is None else aligned(dvar)
    sequences = Sequences.from_arguments(g, importance_prior, mean0, importance0, cu_seqlens)
    N, num_tokens, packed = sequences.num, B * T, cu_seqlens is not None
    float32 = {"dtype": torch.float32, "device": q.device}
    dq, dk, dv, dbeta = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), torch.empty_like(beta)
    dg = torch.empty_like(g)
    final = None
    if dmean is not None and dimportance is not None and mean is not None and importance is not None:
        final_M = dmean.float() / importance
        final = (final_M, final_M * mean - dimportance)
    start = None
    if mean0 is not None:
        # A sequence without tokens passes what reaches its end.
        start = (torch.zeros(N, H, K, V, **float32), torch.zeros(N, H, K, V, **float32))
        if final is not None:
            start = (final[0].clone(), final[1].clone())
    sum_E = torch.zeros(H, **float32)

    if v.numel() > 0:
        programs = num_resident_programs()
        plan = plan_backward(num_tokens, N, H, K, V, programs)
        chunks, segments = sequences.cut(CHUNK), sequences.cut(plan.segment_size)
        is_single = plan.segment_size >= T
        tiles_k, tiles_v = cdiv(K, plan.EK * plan.LK), cdiv(V, plan.VT)
        is_large = num_tokens * H * max(4 * K, tiles_v * K, V) >= primitives.LARGE
        if not q.is_meta:

            def rehearse() -> None:
                for size in rehearsals(q, cu_seqlens, is_large=is_large):
                    tensors = [size.sequence(x) for x in (q, k, v, beta, g)]
                    states = [size.state(x) for x in (mean0, importance0, mean, importance)]
                    flows = [size.sequence(do), size.sequence(dvar), size.state(dmean), size.state(dimportance)]
                    backward(*tensors, size.prior(importance_prior), scale, *states, size.bounds(cu_seqlens), *flows)

            dtypes = [None if x is None else x.dtype for x in (q, beta, g, importance_prior, cu_seqlens)]
            compile_once(("backward", *dtypes, K, V, dvar is None, mean0 is None, is_large), rehearse)
        dvar_or_any = do if dvar is None else dvar
        precision = PRECISIONS[q.dtype]
        ends = (torch.empty(N, H, K, V, **float32), torch.empty(N, H, K, V, **float32))
        for first_head, num_heads in plan.head_slices:
            wide, states = prepare(q, k, v, beta, g, scale, sequences, chunks, first_head, num_heads, ends)
            flow, kind = (final, 1) if final is not None else ((wide, wide), 0)
            if not is_single:
                flow, kind = tuple(torch.empty(num_heads, segments.count, K, V, **float32) for _ in range(2)), 2
                pairs = plan.flow_pairs
                segment_decay = torch.empty(num_heads, segments.count, **float32)
                tiles = cdiv(K, 16 * pairs) * tiles_v
                launch(
                    _flow_kernel, (segments.count * tiles, num_heads),
                    wide, v, beta, g, importance_prior, do, dvar_or_any, *states, *flow,
                    segment_decay, cu_seqlens, segments.offsets, segments.sequence_of, chunks.offsets,
                    num_tokens, T, H, first_head, segments.each, chunks.each, segments.count, chunks.count,
                    plan.segment_size, K, V, pairs, plan.VT, CHUNK, STAGES,
                    HAS_DVAR=dvar is not None, IS_PACKED=packed, IS_LARGE=is_large, MAX_DECAY=MAX_DECAY,
                    HAS_PTX=HAS_PTX, num_warps=1, maxnreg=168 if pairs == 2 else 128,
                )  # fmt: skip
                scan(*flow, segment_decay, sequences, segments, final, None, H, first_head, reverse=True)
            parts: Any = (dq, dk)
            if tiles_v > 1:
                parts = tuple(torch.empty(num_heads, tiles_v, num_tokens, K, **float32) for _ in range(2))
            sums: Any = (dv, dbeta)
            if tiles_k > 1:
                sums = tuple(torch.empty(num_heads, num_tokens, V, **float32) for _ in range(2))
            dg_terms = torch.empty(num_heads, tiles_v, num_tokens, **float32)
            dg_anchor = torch.empty(num_heads, chunks.count, tiles_v, **float32)
            E_terms = torch.empty(num_heads, segments.count, tiles_v, **float32)
            num_items = segments.count * tiles_v
            launch(
                _gradients_kernel, (min(num_items, max(1, programs // num_heads)), num_heads),
                wide, v, beta, g, importance_prior, do, dvar_or_any, *states, *ends, *flow, *parts, dv, dbeta,
                *sums, dg_terms, dg_anchor, E_terms, *(start or (wide, wide)),
                cu_seqlens, segments.offsets, segments.sequence_of, chunks.offsets, num_items, num_tokens, T, H,
                first_head, segments.each, chunks.each, segments.count, chunks.count, plan.segment_size, kind, scale,
                K, V, plan.EK, plan.LK, plan.VT, CHUNK, PART, STAGES,
                HAS_DVAR=dvar is not None, IS_PACKED=packed, WANTS_START=start is not None,
                IS_LARGE=is_large, MAX_GROWTH=precision.max_growth, MAX_WRITES=precision.max_writes,
                MAX_DECAY=MAX_CHUNK_DECAY, HAS_PTX=HAS_PTX, num_warps=1, maxnreg=168,
            )  # fmt: skip
            if tiles_v > 1:
                block = 1024
                launch(
                    _sum_tiles_kernel,
                    (cdiv(num_tokens * K, block), num_heads, 2),
                    *parts,
                    dq,
                    dk,
                    num_tokens,
                    first_head,
                    H,
                    K,
                    tiles_v,
                    block,
                    num_warps=4,
                )
            launch(
                _decay_gradient_kernel, (chunks.count * num_heads,),
                dg_terms, dg_anchor, dg, cu_seqlens, chunks.offsets, chunks.sequence_of, T, H, first_head, num_heads,
                chunks.each, chunks.count, num_tokens, tiles_v, CHUNK, IS_PACKED=packed, num_warps=1,
            )  # fmt: skip
            sum_E[first_head : first_head + num_heads] = E_terms.sum((1, 2))

    # README.md: what forgetting gives back of the prior, over all tokens, telescopes.
    dprior = -sum_E
    if final is not None:
        dprior -= final[1].sum((0, 2, 3))
    dmean0 = dimportance0 = None
    if mean0 is not None and importance0 is not None and start is not None:
        start_M, start_E = start
        dprior += start_E.sum((0, 2, 3))
        dmean0 = (importance0 * start_M).to(mean0.dtype)
        dimportance0 = (mean0 * start_M - start_E).to(importance0.dtype)
    return Gradients(dq, dk, dv, dbeta, dg, dprior.to(importance_prior.dtype), dmean0, dimportance0)
