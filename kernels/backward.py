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

from .forward import Sequences, chunk_states, scaled, scan, slice_heads, widen
from .primitives import HAS_PTX, INTERPRETED, MAX_DECAY, locate, reciprocal

# Tokens between two chunk states, and between two states that a program keeps in its scratch.
CHUNK = 32
BLOCK = 4


# Without a known alignment of the states the lanes lie along V: see forward.py.
@triton.jit(do_not_specialize_on_alignment=["M_in", "J_in", "flow_M", "flow_E"])
def _flow_kernel(
    q, k, k_squared, v, beta, g, prior, do, dvar, M_in, J_in, flow_M, flow_E, segment_decay,
    cu_seqlens, offsets, sequence_of, chunk_offsets, T, H, first_head, num_heads, segments_each, chunks_each,
    K: tl.constexpr, V: tl.constexpr, PAIRS: tl.constexpr, VT: tl.constexpr,
    SEGMENT: tl.constexpr, CHUNK: tl.constexpr, STAGES: tl.constexpr,
    HAS_DVAR: tl.constexpr, IS_PACKED: tl.constexpr, MAX_DECAY: tl.constexpr, HAS_PTX: tl.constexpr,
):  # fmt: skip
    """The flow that the tokens of one segment add to the state before it, and how much of a later flow they let pass.

    Two tokens an iteration and states divided by the decay since they were last true to scale, as in forward.py.
    """
    HALF: tl.constexpr = 8
    KT: tl.constexpr = 2 * HALF * PAIRS
    EVEN_K: tl.constexpr = K % KT == 0
    tiles_v: tl.constexpr = (V + VT - 1) // VT
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
    kk = (tl.program_id(1) // tiles_v) * KT + tl.arange(0, HALF)
    vv = (tl.program_id(1) % tiles_v) * VT + tl.arange(0, VT)
    in_v = vv < V
    both = tl.arange(0, 2)
    prior_h = tl.load(prior + h).to(tl.float32)

    if num_tokens > 0:
        state = (chunk * num_heads + local_head) * (K * V) + vv[None, :]
        out = (segment.to(tl.int64) * num_heads + local_head) * (K * V) + vv[None, :]
        Ms, Js, dMs, Es = (), (), (), ()
        for i in tl.static_range(2 * PAIRS):
            tile = (kk + i * HALF)[:, None] * V
            in_tile = (kk + i * HALF < K)[:, None] & in_v[None, :]
            Ms = Ms + (tl.load(M_in + state + tile, mask=in_tile, other=0.0),)
            Js = Js + (tl.load(J_in + state + tile, mask=in_tile, other=0.0),)
            dMs = dMs + (tl.zeros([HALF, VT], tl.float32),)
            Es = Es + (tl.zeros([HALF, VT], tl.float32),)
        row = start * H + h
        wide_row = start * num_heads + local_head
        k_step, v_step = num_heads * K, H * V
        pair = kk[:, None] + both[None, :] * HALF
        q_at, k_at, k2_at = q + wide_row * K + pair, k + wide_row * K + pair, k_squared + wide_row * K + pair
        value = row * V + vv[:, None] + both * v_step
        v_at, beta_at, do_at, dvar_at, g_at = v + value, beta + value, do + value, dvar + value, g + row
        # exp(decay): since the states were last true to scale; passed: from the segment's start until then.
        decay = 0.0
        passed = 1.0
        for t in tl.range(0, num_tokens, 2, num_stages=STAGES):
            in_v_t = in_v[:, None] & (t + both < num_tokens)[None, :]
            vs = tl.split(tl.load(v_at, mask=in_v_t, other=0.0).to(tl.float32))
            betas = tl.split(tl.load(beta_at, mask=in_v_t, other=0.0).to(tl.float32))
            dos = tl.split(tl.load(do_at, mask=in_v_t, other=0.0).to(tl.float32))
            if HAS_DVAR:
                dvars = tl.split(tl.load(dvar_at, mask=in_v_t, other=0.0).to(tl.float32))
            gs = (tl.load(g_at), tl.load(g_at + H, mask=t + 1 < num_tokens, other=0.0))
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
                    here = 2 * i * HALF
                    in_pair = pair + here < K
                    if EVEN_K:
                        in_pair = pair < K
                    in_pair = in_pair & (t + u < num_tokens)
                    ks = tl.split(tl.load(k_at + u * k_step + here, mask=in_pair, other=0.0))
                    qs = tl.split(tl.load(q_at + u * k_step + here, mask=in_pair, other=0.0))
                    k2s = tl.split(tl.load(k2_at + u * k_step + here, mask=in_pair, other=0.0))
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
            q_at += 2 * k_step
            k_at += 2 * k_step
            k2_at += 2 * k_step
            v_at += 2 * v_step
            beta_at += 2 * v_step
            do_at += 2 * v_step
            dvar_at += 2 * v_step
            g_at += 2 * H
        for i in tl.static_range(2 * PAIRS):
            tile = (kk + i * HALF)[:, None] * V
            in_tile = (kk + i * HALF < K)[:, None] & in_v[None, :]
            tl.store(flow_M + out + tile, dMs[i], mask=in_tile)
            tl.store(flow_E + out + tile, Es[i], mask=in_tile)
        if tl.program_id(1) == 0:
            tl.store(segment_decay + segment.to(tl.int64) * num_heads + local_head, passed * tl.exp(decay))


@triton.jit
def _sum_in_thread(x, EK: tl.constexpr, LK: tl.constexpr, VT: tl.constexpr):
    """[EK, LK, VT] -> [EK, LK, VT / 4]: the sums that need no exchange between threads, to be combined before those."""
    return tl.sum(tl.reshape(x, EK, LK, VT // 4, 4), 3)


@triton.jit
def _load_token(k_at, v_at, beta_at, in_k, in_v):
    """k, v and beta of one token, [EK, LK, 1] and [1, LK, VT]; nothing is written by zeros."""
    k_t = tl.load(k_at, mask=in_k, other=0.0).to(tl.float32)[:, :, None]
    v_t = tl.load(v_at, mask=in_v, other=0.0).to(tl.float32)[None, :, :]
    beta_t = tl.load(beta_at, mask=in_v, other=0.0).to(tl.float32)[None, :, :]
    return k_t, v_t, beta_t


@triton.jit
def _gradients_kernel(
    q, k, v, beta, g, prior, do, dvar, M_in, J_in, flow_M, flow_E,
    dq, dk, dv, dbeta, dv_sum, dbeta_sum, dg_terms, dg_anchor, E_terms, start_M, start_E, scratch,
    cu_seqlens, offsets, sequence_of, chunk_offsets, num_items, num_tokens_all, T, H, first_head, num_heads,
    segments_each, chunks_each, num_chunks, dq_scale,
    K: tl.constexpr, V: tl.constexpr, EK: tl.constexpr, LK: tl.constexpr, VT: tl.constexpr,
    SEGMENT: tl.constexpr, CHUNK: tl.constexpr, S: tl.constexpr, STAGES: tl.constexpr,
    FLOW: tl.constexpr, HAS_DVAR: tl.constexpr, IS_PACKED: tl.constexpr, WANTS_START: tl.constexpr,
    MAX_DECAY: tl.constexpr, HAS_PTX: tl.constexpr,
):  # fmt: skip
    """All gradients of one segment, head and tile of V: one tile of K after the other, chunks and tokens backwards.

    A state is [EK, LK, VT] with key ek + EK * lk: EK in registers, LK and VT / 4 over the lanes of one warp. In every
    chunk the states are computed forwards and kept once every S tokens; then, block by block from the end, S states
    are computed from the one kept and used in reverse.
    """
    KT: tl.constexpr = EK * LK
    EVEN_K: tl.constexpr = K % KT == 0
    ONE_TILE: tl.constexpr = K <= KT
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
        k_step, v_step, sum_step = num_heads * K, H * V, num_heads * V
        # Gradients of q and k are sums over tiles of V: with one tile they are final.
        of_tile = tile_v.to(tl.int64) * num_tokens_all * num_heads + wide_row
        dk_row = row if tiles_v == 1 else of_tile
        dk_step = (H if tiles_v == 1 else num_heads) * K
        sum_E = tl.zeros([LK, VT], tl.float32)

        for k0 in range(0, K, KT):
            is_first, is_last = k0 == 0, k0 + KT >= K
            kk = k0 + key
            in_k = key < KT if EVEN_K else kk < K
            in_tile = in_k[:, :, None] & in_v[None, :, :]
            tile = kk[:, :, None] * V + vv[None, :, :]
            q_0, k_0 = q + wide_row * K + kk, k + wide_row * K + kk
            dq_0, dk_0 = dq + dk_row * K + kk, dk + dk_row * K + kk
            v_0, beta_0, do_0, dvar_0 = v + row * V + vv, beta + row * V + vv, do + row * V + vv, dvar + row * V + vv
            dv_0, dbeta_0 = dv + row * V + vv, dbeta + row * V + vv
            dv_sum_0, dbeta_sum_0 = dv_sum + wide_row * V + vv, dbeta_sum + wide_row * V + vv
            g_0, dg_0 = g + row, dg_terms + of_tile
            if FLOW == 0:
                dM = tl.zeros([EK, LK, VT], tl.float32)
                E = tl.zeros([EK, LK, VT], tl.float32)
            else:
                if FLOW == 1:
                    flow = (n.to(tl.int64) * H + h) * (K * V) + tile
                else:
                    flow = (segment.to(tl.int64) * num_heads + local_head) * (K * V) + tile
                dM = tl.load(flow_M + flow, mask=in_tile, other=0.0)
                E = tl.load(flow_E + flow, mask=in_tile, other=0.0)

            num_inner = (num_tokens + CHUNK - 1) // CHUNK
            for back in range(num_inner):
                chunk_start = (num_inner - 1 - back) * CHUNK
                num_here = tl.minimum(num_tokens - chunk_start, CHUNK)
                num_blocks = (num_here + S - 1) // S
                state = ((first_chunk + num_inner - 1 - back) * num_heads + local_head) * (K * V) + tile
                M = tl.load(M_in + state, mask=in_tile, other=0.0)
                J = tl.load(J_in + state, mask=in_tile, other=0.0)
                # Nothing of the chunk before may still be read from the scratch.
                tl.debug_barrier()
                for block in tl.range(0, num_blocks, num_stages=STAGES):
                    t = chunk_start + block * S
                    tl.store(kept + block * (2 * KT * VT), M)
                    tl.store(kept + block * (2 * KT * VT) + KT * VT, J)
                    decay = 0.0
                    for i in tl.static_range(S):
                        is_token = t + i < num_tokens
                        k_t, v_t, beta_t = _load_token(
                            k_0 + (t + i) * k_step, v_0 + (t + i) * v_step, beta_0 + (t + i) * v_step,
                            in_k & is_token, in_v & is_token,
                        )  # fmt: skip
                        decay += tl.load(g_0 + (t + i) * H, mask=is_token, other=0.0).to(tl.float32)
                        if decay < -MAX_DECAY:
                            M, J = M * tl.exp(decay), J * tl.exp(decay)
                            decay = 0.0
                        weight = tl.exp(-decay)
                        M += k_t * (v_t * weight)
                        J += (k_t * k_t) * (beta_t * weight)
                    M, J = M * tl.exp(decay), J * tl.exp(decay)
                anchor_at = dg_anchor + (tile_v.to(tl.int64) * num_chunks + first_chunk + num_inner - 1 - back) * num_heads
                anchor = tl.sum(tl.reshape(dM * M - E * J, KT * VT))
                anchor += tl.load(anchor_at + local_head, mask=not is_first, other=0.0)
                tl.store(anchor_at + local_head, anchor)
                # What one thread has kept another one may read.
                tl.debug_barrier()

                for back_block in tl.range(0, num_blocks, num_stages=STAGES):
                    block = num_blocks - 1 - back_block
                    t = chunk_start + block * S
                    M = tl.load(kept + block * (2 * KT * VT))
                    J = tl.load(kept + block * (2 * KT * VT) + KT * VT)
                    # After every token: the states, the weight of their scale, and what a change of scale came to.
                    Ms, Js, weights, changes, tokens = (), (), (), (), ()
                    decay = 0.0
                    for i in tl.static_range(S):
                        is_token = t + i < num_tokens
                        token = _load_token(
                            k_0 + (t + i) * k_step, v_0 + (t + i) * v_step, beta_0 + (t + i) * v_step,
                            in_k & is_token, in_v & is_token,
                        )  # fmt: skip
                        decay += tl.load(g_0 + (t + i) * H, mask=is_token, other=0.0).to(tl.float32)
                        change = 1.0
                        if decay < -MAX_DECAY:
                            change = tl.exp(decay)
                            M, J = M * change, J * change
                            decay = 0.0
                        weight = tl.exp(-decay)
                        M += token[0] * (token[1] * weight)
                        J += (token[0] * token[0]) * (token[2] * weight)
                        Ms, Js, tokens = Ms + (M,), Js + (J,), tokens + (token,)
                        weights, changes = weights + (weight,), changes + (change,)
                    dM, E = dM * tl.exp(decay), E * tl.exp(decay)

                    for i in tl.static_range(S - 1, -1, -1):
                        is_token = t + i < num_tokens
                        M, J, weight = Ms[i], Js[i], weights[i]
                        k_t, v_t, beta_t = tokens[i]
                        q_t = tl.load(q_0 + (t + i) * k_step, mask=in_k & is_token, other=0.0)[:, :, None]
                        do_t = tl.load(do_0 + (t + i) * v_step, mask=in_v & is_token, other=0.0)
                        do_t = do_t.to(tl.float32)[None, :, :]
                        inverse = reciprocal(J + prior_h * weight, HAS_PTX)
                        mean = M * inverse
                        to_M = q_t * (do_t * inverse)
                        to_E = to_M * mean
                        dq_t = _sum_in_thread(mean * do_t, EK, LK, VT)
                        if HAS_DVAR:
                            dvar_t = tl.load(dvar_0 + (t + i) * v_step, mask=in_v & is_token, other=0.0)
                            dvar_t = dvar_t.to(tl.float32)[None, :, :] * weight
                            spread = q_t * (dvar_t * inverse)
                            to_E += q_t * (spread * inverse)
                            dq_t += 2.0 * _sum_in_thread(dvar_t * inverse, EK, LK, VT) * q_t
                        dM += to_M
                        E += to_E

                        at = (t + i) * dk_step
                        tl.store(dq_0 + at, tl.sum(dq_t, 2) * dq_scale, mask=in_k & is_token)
                        of_M = _sum_in_thread(dM * (v_t * weight), EK, LK, VT)
                        of_E = _sum_in_thread(E * (beta_t * weight), EK, LK, VT)
                        tl.store(dk_0 + at, tl.sum(of_M - (2.0 * k_t) * of_E, 2), mask=in_k & is_token)

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
                        at_v, at_sum, at_g = (t + i) * v_step, (t + i) * sum_step, (t + i) * num_heads
                        store_t = store_v & is_token
                        if not ONE_TILE:
                            again = in_v & is_token & (not is_first)
                            dv_t += tl.load(dv_sum_0 + at_sum, mask=again, other=0.0)
                            dbeta_t += tl.load(dbeta_sum_0 + at_sum, mask=again, other=0.0)
                            dg_t += tl.load(dg_0 + at_g, mask=is_token & (not is_first), other=0.0)
                            tl.store(dv_sum_0 + at_sum, dv_t, mask=store_t & (not is_last))
                            tl.store(dbeta_sum_0 + at_sum, dbeta_t, mask=store_t & (not is_last))
                        tl.store(dv_0 + at_v, dv_t, mask=store_t & is_last)
                        tl.store(dbeta_0 + at_v, dbeta_t, mask=store_t & is_last)
                        tl.store(dg_0 + at_g, dg_t, mask=is_token)
                        if changes[i] != 1.0:
                            dM, E = dM * changes[i], E * changes[i]
            if WANTS_START:
                if (index == 0) & (num_tokens > 0):
                    at_start = (n.to(tl.int64) * H + h) * (K * V) + tile
                    tl.store(start_M + at_start, dM, mask=in_tile)
                    tl.store(start_E + at_start, E, mask=in_tile)
            # The sums over tiles of keys pass from the threads that store them to those that load them.
            tl.debug_barrier()
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
    bytes_a_head = 8 * (num_chunks + num_segments) * K * V + 4 * num_tokens * tiles_v + 12 * num_tokens * K
    if tiles_v > 1:
        bytes_a_head += 8 * num_tokens * K * tiles_v
    if tiles_k > 1:
        bytes_a_head += 8 * num_tokens * V
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
    sequences = Sequences.of(g, importance_prior, mean0, importance0, cu_seqlens)
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
        programs = num_resident_programs(q.device)
        plan = plan_backward(num_tokens, N, H, K, V, programs)
        chunks, segments = sequences.cut(CHUNK), sequences.cut(plan.segment_size)
        is_single = plan.segment_size >= T
        tiles_k, tiles_v = triton.cdiv(K, plan.EK * plan.LK), triton.cdiv(V, plan.VT)
        dvar_or_any = do if dvar is None else dvar
        for first_head, num_heads in plan.head_slices:
            states = chunk_states(k, v, beta, g, importance_prior, sequences, chunks, first_head, num_heads)
            q32, k32, k_squared = widen(q, k, scale, first_head, num_heads)
            flow, kind = (final, 1) if final is not None else ((q32, q32), 0)
            if not is_single:
                flow, kind = tuple(torch.empty(segments.count, num_heads, K, V, **float32) for _ in range(2)), 2
                segment_decay = torch.empty(segments.count, num_heads, **float32)
                _flow_kernel[(segments.count * num_heads, triton.cdiv(K, 16) * triton.cdiv(V, plan.VT))](
                    q32, k32, k_squared, v, beta, g, importance_prior, do, dvar_or_any, *states, *flow,
                    segment_decay, cu_seqlens, segments.offsets, segments.sequence_of, chunks.offsets,
                    T, H, first_head, num_heads, segments.each, chunks.each,
                    K, V, 1, plan.VT, plan.segment_size, CHUNK, 3,
                    HAS_DVAR=dvar is not None, IS_PACKED=packed, MAX_DECAY=MAX_DECAY, HAS_PTX=HAS_PTX, num_warps=1,
                )  # fmt: skip
                scan(*flow, segment_decay, sequences, segments, final, None, H, first_head, reverse=True)
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
            scratch = torch.empty(num_here, CHUNK // BLOCK * 2 * plan.EK * plan.LK * plan.VT, **float32)
            _gradients_kernel[(num_here,)](
                q32, k32, v, beta, g, importance_prior, do, dvar_or_any, *states, *flow, *parts, dv, dbeta, *sums,
                dg_terms, dg_anchor, E_terms, *(start or (g, g)), scratch,
                cu_seqlens, segments.offsets, segments.sequence_of, chunks.offsets, num_items, num_tokens, T, H,
                first_head, num_heads, segments.each, chunks.each, chunks.count, scale,
                K, V, plan.EK, plan.LK, plan.VT, plan.segment_size, CHUNK, BLOCK, 2,
                FLOW=kind, HAS_DVAR=dvar is not None, IS_PACKED=packed, WANTS_START=start is not None,
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
    if final is not None:
        dprior -= final[1].sum((0, 2, 3))
    dmean0 = dimportance0 = None
    if mean0 is not None and importance0 is not None and start is not None:
        start_M, start_E = start
        dprior += start_E.sum((0, 2, 3))
        dmean0 = (importance0 * start_M).to(mean0.dtype)
        dimportance0 = (mean0 * start_M - start_E).to(importance0.dtype)
    return Gradients(dq, dk, dv, dbeta, dg, dprior.to(importance_prior.dtype), dmean0, dimportance0)
