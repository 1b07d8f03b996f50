"""The forward pass in Triton: states at the start of every chunk, then all tokens of all chunks in parallel.

kernels/README.md has the equations, the tiling and what it costs.
"""

# Triton's decorator hides the signatures of kernels, and that of its helpers for both worlds, from a type checker.
# pyright: reportCallIssue=false, reportArgumentType=false, reportReturnType=false, reportGeneralTypeIssues=false
# pyright: reportAssignmentType=false, reportAttributeAccessIssue=false

# B batch, T time, H heads, K key dim, V value dim, N sequences, C chunk size, M = I * mu, J = I - I_prior
from itertools import pairwise
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import primitives
from .compilation import compile_once, launch, rehearsals
from .primitives import (
    HAS_PTX,
    INTERPRETED,
    MAX_DECAY,
    PRECISIONS,
    SCALARS,
    SIZES,
    Pieces,
    aligned,
    cdiv,
    cut,
    locate,
    next_power_of_2,
    reciprocal,
    smallest_cover,
)


@triton.jit
def split(x, HAS_BF16: tl.constexpr):
    """Two bfloat16 that hold the first 16 bits of a float32, and all bits of a bfloat16 or of a product of two.

    Without bfloat16 the same two numbers in float32.
    """
    if HAS_BF16:
        high = x.to(tl.bfloat16)
        low = (x - high.to(tl.float32)).to(tl.bfloat16)
    else:
        high = _round_to_bfloat16(x)
        low = _round_to_bfloat16(x - high)
    return high, low


@triton.jit
def _round_to_bfloat16(x):
    bits = x.to(tl.int32, bitcast=True)
    # Half of the last bit that stays, and as much less as makes ties even.
    bits += 0x7FFF + ((bits >> 16) & 1)
    return ((bits >> 16) << 16).to(tl.float32, bitcast=True)


@triton.jit
def exact_dot(a, b, sum, IS_SPLIT: tl.constexpr, HAS_BF16: tl.constexpr):
    """sum + a b in (nearly) float32, from the faster products that a GPU has; b and sum are float32.

    Two bfloat16 are enough where the arguments had 8 or 11 bits. The product of the two low parts would be the size of
    the rounding of all others.
    """
    if IS_SPLIT:
        b_high, b_low = split(b, HAS_BF16)
        if HAS_BF16 and a.dtype == tl.bfloat16:
            result = tl.dot(a, b_high, tl.dot(a, b_low, sum))
        else:
            a_high, a_low = split(a.to(tl.float32), HAS_BF16)
            result = tl.dot(a_high, b_high, tl.dot(a_high, b_low, tl.dot(a_low, b_high, sum)))
    else:
        result = tl.dot(a.to(tl.float32), b, sum, input_precision="tf32x3")
    return result


@triton.jit
def _states(
    program, k, v, beta, g, M_start, J_start, M_out, J_out, M_end, J_end, decay_end,
    cu_seqlens, offsets, sequence_of, chunk_offsets, T, H, first_head, num_heads, segments_each, chunks_each,
    num_segments, num_chunks, segment_size, chunk_size, start_kind, stores_chunks, end_kind,
    K: tl.constexpr, V: tl.constexpr, KT: tl.constexpr, VT: tl.constexpr, DOT: tl.constexpr,
    IS_PACKED: tl.constexpr, IS_SPLIT: tl.constexpr, HAS_BF16: tl.constexpr,
):  # fmt: skip
    """M and J through one segment and head, by matrix products over DOT tokens: one program a tile of [K, V].

    start_kind: 0 from zero, 1 from the state before the sequence, 2 from the state before the segment.
    stores_chunks: whether to store the states before every chunk; chunk_size is a power of 2.
    end_kind: 1 stores the state after the sequence, 2 the state after the segment and its decay.
    """
    tiles_v: tl.constexpr = (V + VT - 1) // VT
    tiles: tl.constexpr = (K + KT - 1) // KT * tiles_v
    segment = program // tiles // num_heads
    local_head = program // tiles % num_heads
    h = first_head + local_head
    n, index, start, num_tokens = locate(
        segment, T, segments_each, cu_seqlens, offsets, sequence_of, segment_size, IS_PACKED
    )
    kk = (program % tiles // tiles_v) * KT + tl.arange(0, KT)
    vv = (program % tiles_v) * VT + tl.arange(0, VT)
    tt = tl.arange(0, DOT)
    in_k, in_v = kk < K, vv < V
    in_tile = in_k[:, None] & in_v[None, :]
    tile = kk[:, None] * V + vv[None, :]
    of_sequence = n.to(tl.int64) * H + h
    of_segment = local_head.to(tl.int64) * num_segments + segment
    before = tl.where(start_kind == 1, of_sequence, of_segment) * (K * V) + tile
    is_given = in_tile & (start_kind != 0)
    M = tl.load(M_start + before, mask=is_given, other=0.0)
    J = tl.load(J_start + before, mask=is_given, other=0.0)
    if IS_PACKED:
        chunk = tl.load(chunk_offsets + n).to(tl.int64) + index * (segment_size // chunk_size)
    else:
        chunk = n.to(tl.int64) * chunks_each + index * (segment_size // chunk_size)
    out = (local_head.to(tl.int64) * num_chunks + chunk) * (K * V) + tile

    row = start * H + h
    k_at = k + row * K + tt[None, :] * (H * K) + kk[:, None]
    v_at = v + row * V + tt[:, None] * (H * V) + vv[None, :]
    beta_at = beta + row * V + tt[:, None] * (H * V) + vv[None, :]
    g_at = g + row + tt * H
    passed = 1.0
    for first in range(0, num_tokens, DOT):
        if (stores_chunks != 0) & ((first & (chunk_size - 1)) == 0):
            tl.store(M_out + out, M, mask=in_tile)
            tl.store(J_out + out, J, mask=in_tile)
            out += K * V
        num_left = num_tokens - first
        in_dot = tt < num_left
        # Decay of token t's write until the end of these tokens: a sum of what comes after t. A difference of two sums
        # would lose small decays, and turn a reset into NaN.
        later = tl.load(g_at + H, mask=tt < tl.minimum(num_left, DOT) - 1, other=0.0).to(tl.float32)
        since = tl.exp(tl.cumsum(later, 0, reverse=True))
        total = tl.exp(tl.sum(tl.load(g_at, mask=in_dot, other=0.0).to(tl.float32), 0))
        passed *= total
        k_t = tl.load(k_at, mask=in_k[:, None] & in_dot[None, :], other=0.0)
        in_v_t = in_dot[:, None] & in_v[None, :]
        v_t = tl.load(v_at, mask=in_v_t, other=0.0).to(tl.float32) * since[:, None]
        beta_t = tl.load(beta_at, mask=in_v_t, other=0.0).to(tl.float32) * since[:, None]
        M = exact_dot(k_t, v_t, M * total, IS_SPLIT, HAS_BF16)
        k_t = k_t.to(tl.float32)
        J = exact_dot(k_t * k_t, beta_t, J * total, IS_SPLIT, HAS_BF16)
        k_at += DOT * H * K
        v_at += DOT * H * V
        beta_at += DOT * H * V
        g_at += DOT * H
    if end_kind == 1:
        # A piece beyond the last one is no sequence.
        if index == 0:
            tl.store(M_end + of_sequence * (K * V) + tile, M, mask=in_tile)
            tl.store(J_end + of_sequence * (K * V) + tile, J, mask=in_tile)
    if end_kind == 2:
        if num_tokens > 0:
            tl.store(M_end + of_segment * (K * V) + tile, M, mask=in_tile)
            tl.store(J_end + of_segment * (K * V) + tile, J, mask=in_tile)
            if program % tiles == 0:
                tl.store(decay_end + of_segment, passed)


@triton.jit
def _widen(
    program, q, k, wide, scale, num_tokens, first_head, H, num_heads,
    K: tl.constexpr, KT: tl.constexpr, TT: tl.constexpr,
):  # fmt: skip
    """k, scale * q and k^2 of TT tokens of one head in float32: converted once, not once a tile of values."""
    local_head = program % num_heads
    tt = program // num_heads * TT + tl.arange(0, TT)
    kk = tl.arange(0, KT)[None, :]
    mask = (tt < num_tokens)[:, None] & (kk < K)
    source = (tt.to(tl.int64) * H + first_head + local_head)[:, None] * K + kk
    k_t = tl.load(k + source, mask=mask).to(tl.float32)
    q_t = tl.load(q + source, mask=mask).to(tl.float32) * scale
    at = wide + (local_head.to(tl.int64) * num_tokens + tt)[:, None] * (4 * K) + kk
    tl.store(at, k_t, mask=mask)
    tl.store(at + K, q_t, mask=mask)
    tl.store(at + 2 * K, k_t * k_t, mask=mask)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=SCALARS)
def _prepare_kernel(
    q, k, v, beta, g, M_start, J_start, M_out, J_out, M_end, J_end, decay_end, wide, scale,
    cu_seqlens, offsets, sequence_of, chunk_offsets, num_tokens_all, T, H, first_head, num_heads, segments_each,
    chunks_each, num_segments, num_chunks, segment_size, chunk_size, start_kind, stores_chunks, end_kind, num_states,
    K: tl.constexpr, V: tl.constexpr, KT: tl.constexpr, VT: tl.constexpr, DOT: tl.constexpr,
    IS_PACKED: tl.constexpr, IS_SPLIT: tl.constexpr, HAS_BF16: tl.constexpr,
    WIDE_KT: tl.constexpr, WIDE_TT: tl.constexpr,
):  # fmt: skip
    """The first num_states programs compute states, bound by latency; the others move memory beside them: _widen."""
    program = tl.program_id(0)
    if program < num_states:
        _states(
            program, k, v, beta, g, M_start, J_start, M_out, J_out, M_end, J_end, decay_end,
            cu_seqlens, offsets, sequence_of, chunk_offsets, T, H, first_head, num_heads, segments_each, chunks_each,
            num_segments, num_chunks, segment_size, chunk_size, start_kind, stores_chunks, end_kind,
            K, V, KT, VT, DOT, IS_PACKED, IS_SPLIT, HAS_BF16,
        )  # fmt: skip
    else:
        _widen(program - num_states, q, k, wide, scale, num_tokens_all, first_head, H, num_heads, K, WIDE_KT, WIDE_TT)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=SCALARS)
def scan_kernel(
    a, b, decay, a_start, b_start, a_end, b_end, offsets, H, first_head, num_heads, segments_each,
    num_segments, has_start, has_end, is_reverse,
    SIZE: tl.constexpr, BLOCK_SIZE: tl.constexpr, AHEAD: tl.constexpr, IS_PACKED: tl.constexpr,
):  # fmt: skip
    """x_s -> what came before segment s: x = decay_s x + own_s from segment to segment, in place, for a and b.

    Forwards from a state before the sequence, in reverse from a flow after it; what is left goes to a_end and b_end.
    In reverse the first segment has nothing of its own, because nobody asks what comes before it.
    """
    n = tl.program_id(0) // num_heads
    local_head = tl.program_id(0) % num_heads
    if IS_PACKED:
        first = tl.load(offsets + n).to(tl.int64)
        num = (tl.load(offsets + n + 1) - first).to(tl.int32)
    else:
        first = n.to(tl.int64) * segments_each
        num = segments_each
    i = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    inside = i < SIZE
    sequence_offset = (n.to(tl.int64) * H + first_head + local_head) * SIZE + i
    x = tl.load(a_start + sequence_offset, mask=inside & (has_start != 0), other=0.0)
    y = tl.load(b_start + sequence_offset, mask=inside & (has_start != 0), other=0.0)
    origin = local_head.to(tl.int64) * num_segments + first + is_reverse * (num - 1)
    direction = 1 - 2 * is_reverse
    num_own = num - is_reverse
    for step in range(0, num, AHEAD):
        # All loads before all stores: the compiler cannot know that they never meet.
        own_x, own_y, passed = (), (), ()
        for j in tl.static_range(AHEAD):
            s = step + j
            segment = origin + direction * s
            own_x = own_x + (tl.load(a + segment * SIZE + i, mask=inside & (s < num_own), other=0.0),)
            own_y = own_y + (tl.load(b + segment * SIZE + i, mask=inside & (s < num_own), other=0.0),)
            passed = passed + (tl.load(decay + segment, mask=s < num_own, other=1.0),)
        for j in tl.static_range(AHEAD):
            s = step + j
            segment = origin + direction * s
            tl.store(a + segment * SIZE + i, x, mask=inside & (s < num))
            tl.store(b + segment * SIZE + i, y, mask=inside & (s < num))
            x = x * passed[j] + own_x[j]
            y = y * passed[j] + own_y[j]
    if has_end != 0:
        tl.store(a_end + sequence_offset, x, mask=inside)
        tl.store(b_end + sequence_offset, y, mask=inside)


@triton.jit
def scaled(tiles, factor):
    out = ()
    for i in tl.static_range(len(tiles)):
        out = out + (tiles[i] * factor,)
    return out


@triton.jit
def load_pair(wide, row, is_token, kk, K: tl.constexpr):
    """((ka, kb), (qa, qb), (ka^2, kb^2)) of one token, each of the shape of kk, the first block of keys; b is the next.

    In one copy, because each takes instructions of its own, however little it moves.
    """
    HALF: tl.constexpr = kk.shape[0]
    both = tl.arange(0, 2)
    key = kk[:, None] + both[None, :] * HALF
    # [HALF, 2, 2, 2]: planes k, q, k^2 and none.
    plane = 2 * both[None, None, :, None] + both[None, :, None, None]
    mask = (is_token & (key < K))[:, None, None, :] & (plane < 3)
    a, b = tl.split(tl.load(wide + row * (4 * K) + plane * K + key[:, None, None, :], mask=mask, other=0.0))
    first_a, squared_a = tl.split(a)
    first_b, squared_b = tl.split(b)
    ka, qa = tl.split(first_a)
    kb, qb = tl.split(first_b)
    squared_a, _ = tl.split(squared_a)
    squared_b, _ = tl.split(squared_b)
    return (ka, kb), (qa, qb), (squared_a, squared_b)


@triton.jit
def _read_tile(
    wide, v, beta, g, M_in, J_in, o, variance, o_sum, variance_sum, prior_h, row, wide_row, state, vv, num_tokens, H,
    k0, IS_FIRST: tl.constexpr, IS_LAST: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, PAIRS: tl.constexpr, VT: tl.constexpr, STAGES: tl.constexpr,
    HAS_VARIANCE: tl.constexpr, MAX_DECAY: tl.constexpr, HAS_PTX: tl.constexpr,
):  # fmt: skip
    """What the keys from k0 on add to o and the variance of one chunk: the first tile starts sums, the last ends them.

    Two tokens an iteration, so that what is read ahead of them is at least four bytes a thread, which the copy engine
    needs. States are divided by the decay since they were last true to scale: forgetting costs nothing here.
    """
    HALF: tl.constexpr = 8
    in_v = vv < V
    both = tl.arange(0, 2)
    kk = k0 + tl.arange(0, HALF)
    Ms, Js = (), ()
    for i in tl.static_range(2 * PAIRS):
        tile = state + (kk + i * HALF)[:, None] * V
        in_tile = (kk + i * HALF < K)[:, None] & in_v[None, :]
        Ms = Ms + (tl.load(M_in + tile, mask=in_tile, other=0.0),)
        Js = Js + (tl.load(J_in + tile, mask=in_tile, other=0.0),)
    # Log decay since the states were last true to scale.
    decay = 0.0
    for t in tl.range(0, num_tokens, 2, num_stages=STAGES):
        in_v_t = in_v[:, None] & (t + both < num_tokens)[None, :]
        at_v = (row + (t + both) * H)[None, :] * V + vv[:, None]
        vs = tl.split(tl.load(v + at_v, mask=in_v_t, other=0.0).to(tl.float32))
        betas = tl.split(tl.load(beta + at_v, mask=in_v_t, other=0.0).to(tl.float32))
        if not IS_FIRST:
            at_sum = (wide_row + t + both)[None, :] * V + vv[:, None]
            os = tl.split(tl.load(o_sum + at_sum, mask=in_v_t, other=0.0))
            if HAS_VARIANCE:
                variances = tl.split(tl.load(variance_sum + at_sum, mask=in_v_t, other=0.0))
        gs = tl.split(tl.load(g + row + (t + both) * H, mask=t + both < num_tokens, other=0.0))
        for u in tl.static_range(2):
            is_token = t + u < num_tokens
            decay += gs[u].to(tl.float32)
            # Rare: before the weights below grow too large, and for a reset.
            if decay < -MAX_DECAY:
                Ms, Js = scaled(Ms, tl.exp(decay)), scaled(Js, tl.exp(decay))
                decay = 0.0
            weight = tl.exp(-decay)
            v_t, beta_t = (vs[u] * weight)[None, :], (betas[u] * weight)[None, :]
            if IS_FIRST:
                o_t = tl.zeros([VT], tl.float32)
                variance_t = tl.zeros([VT], tl.float32)
            else:
                o_t = os[u]
                if HAS_VARIANCE:
                    variance_t = variances[u]
            new_Ms, new_Js = (), ()
            for i in tl.static_range(PAIRS):
                ks, qs, k2s = load_pair(wide, wide_row + t + u, is_token, kk + 2 * i * HALF, K)
                qa, qb = qs[0][:, None], qs[1][:, None]
                Ma, Mb = Ms[2 * i] + ks[0][:, None] * v_t, Ms[2 * i + 1] + ks[1][:, None] * v_t
                Ja, Jb = Js[2 * i] + k2s[0][:, None] * beta_t, Js[2 * i + 1] + k2s[1][:, None] * beta_t
                new_Ms, new_Js = new_Ms + (Ma, Mb), new_Js + (Ja, Jb)
                Ia, Ib = Ja + prior_h * weight, Jb + prior_h * weight
                # One reciprocal for two entries: x / a + y / b = (x b + y a) / (a b).
                inverse = reciprocal(Ia * Ib, HAS_PTX)
                o_t += tl.sum((qa * Ma * Ib + qb * Mb * Ia) * inverse, 0)
                if HAS_VARIANCE:
                    variance_t += tl.sum((qa * qa * Ib + qb * qb * Ia) * inverse, 0) * weight
            Ms, Js = new_Ms, new_Js
            in_o = in_v & is_token
            if IS_LAST:
                at_o = (row + (t + u) * H) * V + vv
                tl.store(o + at_o, o_t, mask=in_o)
                if HAS_VARIANCE:
                    tl.store(variance + at_o, variance_t, mask=in_o)
            else:
                at_o_sum = (wide_row + t + u) * V + vv
                tl.store(o_sum + at_o_sum, o_t, mask=in_o)
                if HAS_VARIANCE:
                    tl.store(variance_sum + at_o_sum, variance_t, mask=in_o)
    # What one thread has stored for the next tile of keys another one may load.
    tl.debug_barrier()


# The layout of a tile follows from how its states are loaded. Without a known alignment they are loaded one by one,
# lanes along V, and the sum over keys needs no exchange between threads.
@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=["M_in", "J_in", *SCALARS])
def _read_kernel(
    wide, v, beta, g, prior, M_in, J_in, o, variance, o_sum, variance_sum,
    cu_seqlens, offsets, sequence_of, num_tokens_all, T, H, first_head, chunks_each, num_chunks,
    tile_k,
    IS_FIRST: tl.constexpr, IS_LAST: tl.constexpr, HAS_TWO: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, PAIRS: tl.constexpr, VT: tl.constexpr, C: tl.constexpr, STAGES: tl.constexpr,
    HAS_VARIANCE: tl.constexpr, IS_PACKED: tl.constexpr, IS_LARGE: tl.constexpr,
    MAX_DECAY: tl.constexpr, HAS_PTX: tl.constexpr,
):  # fmt: skip
    """o and the variance of one chunk, head and tile of V from the PAIRS * 16 keys of tile_k; HAS_TWO: the next, too.

    C is a constant, unlike other sizes: with K = 96 the state of a second tile spills more where it is none.
    """
    KT: tl.constexpr = 16 * PAIRS
    tiles_v: tl.constexpr = (V + VT - 1) // VT
    # Divisors are constants: what follows from a division by a variable would not be known to be the same for all
    # lanes, and every address would take their registers.
    chunk = tl.program_id(0) // tiles_v
    local_head = tl.program_id(1)
    h = first_head + local_head
    _, _, start, num_tokens = locate(chunk, T, chunks_each, cu_seqlens, offsets, sequence_of, C, IS_PACKED)
    vv = (tl.program_id(0) % tiles_v) * VT + tl.arange(0, VT)
    prior_h = tl.load(prior + h).to(tl.float32)
    row = start * H + h
    # Widened keys and queries hold the heads of this call alone, one after the other, and so do the sums over tiles of
    # keys.
    wide_row = local_head.to(tl.int64) * num_tokens_all + start
    if not IS_LARGE:
        # With 64 bits every address would be a value of its own in registers; so they stay constants.
        row, wide_row = row.to(tl.int32), wide_row.to(tl.int32)
    state = (local_head.to(tl.int64) * num_chunks + chunk) * (K * V) + vv[None, :]
    # A body of its own for the first and the last tile: asking within one costs an instruction in ten. Not more than
    # two in a kernel: compiling takes more than twice as long for twice the code.
    _read_tile(
        wide, v, beta, g, M_in, J_in, o, variance, o_sum, variance_sum, prior_h, row, wide_row, state, vv,
        num_tokens, H, 0 if IS_FIRST else tile_k * KT, IS_FIRST, IS_LAST and not HAS_TWO,
        K, V, PAIRS, VT, STAGES, HAS_VARIANCE, MAX_DECAY, HAS_PTX,
    )  # fmt: skip
    if HAS_TWO:
        _read_tile(
            wide, v, beta, g, M_in, J_in, o, variance, o_sum, variance_sum, prior_h, row, wide_row, state, vv,
            num_tokens, H, KT, False, True, K, V, PAIRS, VT, STAGES, HAS_VARIANCE, MAX_DECAY, HAS_PTX,
        )  # fmt: skip


class ForwardResult(NamedTuple):
    o: Tensor
    variance: Tensor | None
    mean: Tensor | None
    importance: Tensor | None


class Sequences(NamedTuple):
    """Where the sequences of a call lie in memory, and the states before them."""

    num: int
    num_tokens: int
    cu_seqlens: Tensor | None
    M_start: Tensor | None
    J_start: Tensor | None

    @classmethod
    def from_arguments(
        cls, g: Tensor, prior: Tensor, mean0: Tensor | None, importance0: Tensor | None, cu_seqlens: Tensor | None
    ) -> "Sequences":
        num = g.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
        M_start = J_start = None
        if mean0 is not None and importance0 is not None:
            importance0 = importance0.float()
            M_start = (mean0.float() * importance0).contiguous()
            J_start = (importance0 - prior.float()[:, None, None]).contiguous()
        return cls(num, g.shape[1], cu_seqlens, M_start, J_start)

    def cut(self, length: int) -> Pieces:
        return cut(self.num, self.num_tokens, length, self.cu_seqlens)


# Tokens a matrix product of _states takes: with more, the three products that stand for one in float32 spill.
DOT = 32
# Iterations that loads run ahead, plus one.
STAGES = 3
# Warps from which on the sequences and heads alone keep a GPU busy.
MANY_WARPS = 1024


def scan(
    a: Tensor,
    b: Tensor,
    decay: Tensor,
    sequences: Sequences,
    segments: Pieces,
    start: tuple[Tensor, Tensor] | None,
    end: tuple[Tensor, Tensor] | None,
    H: int,
    first_head: int,
    reverse: bool,
) -> None:
    """Runs `scan_kernel` over a and b, each [num_heads, segments, K, V]."""
    size, num_heads = a.shape[2] * a.shape[3], a.shape[0]
    # Small blocks where there are few sequences: they are what runs side by side. A rehearsal stands for calls of all
    # sizes.
    blocks = (32, 128) if a.is_meta else (128,) if sequences.num * num_heads * size >= 2**19 else (32,)
    for block in blocks:
        launch(
            scan_kernel, (sequences.num * num_heads, cdiv(size, block)),
            a, b, decay, *(start or (a, b)), *(end or (a, b)), segments.offsets, H, first_head, num_heads,
            segments.each, segments.count, int(start is not None), int(end is not None), int(reverse),
            size, block, 4, IS_PACKED=sequences.cu_seqlens is not None, num_warps=1,
        )  # fmt: skip


class PreparePlan(NamedTuple):
    KT: int
    VT: int
    num_warps: int
    maxnreg: int | None


def plan_prepare(K: int, V: int, is_split: bool) -> PreparePlan:
    """Tiles, warps and registers of `_prepare_kernel`, one entry a class of shapes."""
    KT = min(64, max(16, next_power_of_2(K)))
    # What one side of a tile brings is split for the products once for the other side.
    VT = 16 if V <= 16 else 64 if K > 64 and V > 32 else 32
    num_warps = {16: 1, 32: 2}.get(KT, 4)
    maxnreg = None
    if num_warps == 1:
        maxnreg = 168
    elif num_warps == 4 and VT <= 32 and is_split:
        # Four programs a multiprocessor: room for those that widen beside those that wait.
        maxnreg = 128
    return PreparePlan(KT, VT, num_warps, maxnreg)


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor,
    scale: float,
    sequences: Sequences,
    chunks: Pieces,
    first_head: int,
    num_heads: int,
    end: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What the kernels that go token by token start from, for some of the heads; all float32.

    Args:
        end: takes M and J after every sequence.

    Returns:
        [num_heads, B * T, 4, K], the planes k, scale * q, k^2, and one that nobody reads; M and J before every chunk,
        each [num_heads, chunks, K, V].
    """
    B, T, H, K = k.shape
    V = v.shape[-1]
    is_split = PRECISIONS[k.dtype].is_split
    KT, VT, num_warps, maxnreg = plan_prepare(K, V, is_split)
    tiles = cdiv(K, KT) * cdiv(V, VT)
    wide = k.new_empty(num_heads, B * T, 4, K, dtype=torch.float32)
    wide_KT = next_power_of_2(K)
    wide_TT = max(1, 512 * num_warps // wide_KT)

    def empty(count: int) -> tuple[Tensor, Tensor]:
        x, y = (k.new_empty(num_heads, count, K, V, dtype=torch.float32) for _ in range(2))
        return x, y

    def run(
        segments: Pieces,
        start: tuple[Tensor, Tensor] | None,
        start_kind: int,
        out: tuple[Tensor, Tensor] | None,
        ends: tuple[Tensor, Tensor] | None,
        end_kind: int,
        decay: Tensor,
        widens: bool,
    ) -> None:
        num_states = segments.count * num_heads * tiles
        num_wide = cdiv(B * T, wide_TT) * num_heads if widens else 0
        # A pointer that is not used still has to be one, and of the same kind in every call.
        any_pair = (wide, wide)
        launch(
            _prepare_kernel, (num_states + num_wide,),
            q, k, v, beta, g, *(start or any_pair), *(out or any_pair), *(ends or any_pair), decay, wide, scale,
            sequences.cu_seqlens, segments.offsets, segments.sequence_of, chunks.offsets, B * T, T, H, first_head,
            num_heads, segments.each, chunks.each, segments.count, chunks.count, segments.length, chunks.length,
            start_kind, int(out is not None), end_kind, num_states,
            K, V, KT, VT, DOT, IS_PACKED=sequences.cu_seqlens is not None,
            # The interpreter's bfloat16 products are wrong.
            IS_SPLIT=is_split, HAS_BF16=not INTERPRETED, WIDE_KT=wide_KT, WIDE_TT=wide_TT,
            num_warps=num_warps, maxnreg=maxnreg,
        )  # fmt: skip

    start = None
    if sequences.M_start is not None and sequences.J_start is not None:
        start = (sequences.M_start, sequences.J_start)
    if sequences.num * num_heads * tiles * num_warps >= MANY_WARPS or chunks.each == 1:
        states = empty(chunks.count)
        whole = sequences.cut(next_power_of_2(max(sequences.num_tokens, chunks.length)))
        run(whole, start, int(start is not None), states, end, int(end is not None), wide, True)
        return wide, states
    # Too few sequences and heads to fill a GPU: what every segment adds, then a scan over the segments, then, where
    # chunks are shorter than segments, all segments again from the states that are now known.
    segments = chunks if chunks.length >= 128 else sequences.cut(256)
    starts = empty(segments.count)
    decay = k.new_empty(num_heads, segments.count, dtype=torch.float32)
    run(segments, None, 0, None, starts, 2, decay, True)
    scan(*starts, decay, sequences, segments, start, end, H, first_head, reverse=False)
    if segments is chunks:
        return wide, starts
    states = empty(chunks.count)
    run(segments, starts, 2, states, None, 0, wide, False)
    return wide, states


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
    q, k, v, beta = aligned(q), aligned(k), aligned(v), aligned(beta)
    is_large = B * T * H * max(4 * K, V) >= primitives.LARGE
    if not q.is_meta and v.numel() > 0:

        def rehearse() -> None:
            for size in rehearsals(q, cu_seqlens, is_large=is_large):
                tensors = [size.sequence(x) for x in (q, k, v, beta, g)]
                forward(
                    *tensors, size.prior(importance_prior), scale, size.state(mean0), size.state(importance0),
                    output_final_state, output_variance, size.bounds(cu_seqlens),
                )  # fmt: skip

        dtypes = [None if x is None else x.dtype for x in (q, beta, g, importance_prior, cu_seqlens)]
        compile_once(("forward", *dtypes, K, V, output_variance, is_large), rehearse)
    sequences = Sequences.from_arguments(g, importance_prior, mean0, importance0, cu_seqlens)
    o = torch.empty_like(v)
    variance = torch.empty_like(v) if output_variance else None
    end = None
    if output_final_state:
        # As a call without tokens leaves them.
        M_end, J_end = (torch.zeros(sequences.num, H, K, V, dtype=torch.float32, device=q.device) for _ in range(2))
        if sequences.M_start is not None and sequences.J_start is not None:
            M_end, J_end = sequences.M_start.clone(), sequences.J_start.clone()
        end = (M_end, J_end)
    if o.numel() > 0:
        plan = plan_forward(B * T, sequences.num, H, K, V)
        chunks = sequences.cut(plan.chunk_size)
        for first_head, num_heads in plan.head_slices:
            wide, states = prepare(q, k, v, beta, g, scale, sequences, chunks, first_head, num_heads, end)
            tiles_k = cdiv(K, plan.KT)
            sums = [o, o]
            if tiles_k > 1:
                # With more than two tiles the first one adds to zeros: a kernel less to compile.
                make = v.new_zeros if tiles_k > 2 else v.new_empty
                sums = [make(num_heads, B * T, V, dtype=torch.float32) for _ in range(1 + output_variance)] * 2
            for tile_k in range(tiles_k if tiles_k > 2 else 1):
                launch(
                    _read_kernel, (chunks.count * cdiv(V, plan.VT), num_heads),
                    wide, v, beta, g, importance_prior, *states, o, o if variance is None else variance,
                    sums[0], sums[1], cu_seqlens, chunks.offsets, chunks.sequence_of, B * T, T, H, first_head,
                    chunks.each, chunks.count, tile_k,
                    tiles_k <= 2, tiles_k <= 2 or tile_k == tiles_k - 1, tiles_k == 2,
                    K, V, plan.KT // 16, plan.VT, plan.chunk_size, STAGES,
                    HAS_VARIANCE=output_variance, IS_PACKED=cu_seqlens is not None,
                    IS_LARGE=is_large,
                    MAX_DECAY=MAX_DECAY, HAS_PTX=HAS_PTX, num_warps=1, maxnreg=168,
                )  # fmt: skip
    if end is None:
        return ForwardResult(o, variance, None, None)
    M, J = end
    importance = J.add_(importance_prior.float()[:, None, None])
    return ForwardResult(o, variance, M.div_(importance), importance)


class ForwardPlan(NamedTuple):
    chunk_size: int
    KT: int
    VT: int
    head_slices: list[tuple[int, int]]


# Bytes that one call may take beyond its results; heads are done in groups to keep to it.
SCRATCH_BYTES = 384 * 2**20


# Programs along the second axis of a grid.
MAX_GRID_Y = 2**16 - 1


def num_heads_that_fit(bytes_a_head: int, budget: int = 0) -> int:
    """How many heads, one at least, take no more than `budget` bytes, or SCRATCH_BYTES if that is more."""
    return max(1, max(SCRATCH_BYTES, budget) // max(1, bytes_a_head))


def slice_heads(num_heads: int, size: int) -> list[tuple[int, int]]:
    """(first head, number of heads) of groups of nearly equal size, at most `size` and what a grid takes."""
    groups = cdiv(num_heads, min(size, MAX_GRID_Y))
    bounds = [num_heads * i // groups for i in range(groups + 1)]
    return [(first, last - first) for first, last in pairwise(bounds)]


def plan_forward(num_tokens: int, num_sequences: int, H: int, K: int, V: int) -> ForwardPlan:
    """The table of tile sizes, one entry a class of shapes."""
    KT = smallest_cover(K, (48, 32, 16))
    VT = 32 if V > 16 else 16
    # Longer chunks move fewer states; shorter ones fill the GPU.
    num_programs = cdiv(num_tokens, 128) * H * cdiv(V, VT)
    chunk_size = 128 if num_programs >= 4096 else 64
    num_chunks = num_tokens // chunk_size + num_sequences
    bytes_a_head = 8 * num_chunks * K * V + 16 * num_tokens * K
    if K > KT:
        bytes_a_head += 8 * num_tokens * V
    # Half precision inputs take 4 (K + V) bytes a token and head: here the work may take twice that.
    size = num_heads_that_fit(bytes_a_head, budget=8 * num_tokens * H * (K + V))
    return ForwardPlan(chunk_size, KT, VT, slice_heads(H, size))
