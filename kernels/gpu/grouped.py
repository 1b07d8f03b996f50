"""The forward pass for precisions that serve 16 rows and more, in Triton: simple gated linear attention by q / I.

kernels/README.md has the equations and what it costs.
"""

# Triton's decorator hides the signatures of kernels, and that of its helpers for both worlds, from a type checker.
# pyright: reportCallIssue=false, reportArgumentType=false, reportReturnType=false, reportGeneralTypeIssues=false
# pyright: reportAssignmentType=false, reportAttributeAccessIssue=false

# B batch, T time, H heads, K key dim, V value dim, G groups, R = V / G rows a group, N sequences, C chunk size
# M = I * mu, J = I - I_prior, p = scale * q / I: the query of a group
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..groups import repeat_for_rows
from .compilation import compile_once, launch, rehearsals
from .forward import Sequences, num_heads_that_fit, slice_heads, split
from .primitives import (
    HAS_PTX,
    INTERPRETED,
    SCALARS,
    SIZES,
    Pieces,
    aligned,
    cdiv,
    locate,
    next_power_of_2,
    reciprocal,
)

# What a call gives a kernel when it runs it: see SIZES.
OF_CALL = [*SIZES, "x_heads", "x_first_head", "num_chunks_all", "num_products"]

# Tokens whose scores are one matrix.
CHUNK = 64
# What products are made of: float32 by three products of tf32, two bfloat16 an argument, one bfloat16.
MODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
# Keys and rows of a tile for four warps: with 32 of them Triton 3.7.1 compiles products for Hopper that read outside of
# their shared memory. The small one, for two warps, is for calls that need no more.
TILE = 64
SMALL_TILE = 32
LOG2_E = tl.constexpr(math.log2(math.e))
# Chunks that loads run ahead, plus one, where states are carried from chunk to chunk.
STAGES = 3
# Chunks whose loads are under way at a time, in a scan over them.
AHEAD = 8


@triton.jit
def product(a, b, total, MODE: tl.constexpr, HAS_BF16: tl.constexpr):
    """total + a b: of float32 (MODE 0), exact to 2^-16 (MODE 1), or of what is rounded to bfloat16 first (MODE 2)."""
    if MODE == 2:
        if HAS_BF16:
            result = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16), total)
        else:
            a_high, _a_low = split(a.to(tl.float32), HAS_BF16)
            b_high, _b_low = split(b.to(tl.float32), HAS_BF16)
            result = tl.dot(a_high, b_high, total)
    else:
        result = precise_product(a, b, total, MODE, HAS_BF16)
    return result


@triton.jit
def precise_product(a, b, total, MODE: tl.constexpr, HAS_BF16: tl.constexpr):
    """total + a b, exact to 2^-16 of the sizes of its terms and better: nothing is rounded to 8 bits."""
    if MODE == 0:
        result = tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="tf32x3")
    elif (a.dtype == tl.bfloat16) and (b.dtype == tl.bfloat16):
        result = tl.dot(a, b, total)
    elif a.dtype == tl.bfloat16:
        b_high, b_low = _cut_in_two(b.to(tl.float32), HAS_BF16)
        result = tl.dot(a, b_high, tl.dot(a, b_low, total))
    elif b.dtype == tl.bfloat16:
        a_high, a_low = _cut_in_two(a.to(tl.float32), HAS_BF16)
        result = tl.dot(a_high, b, tl.dot(a_low, b, total))
    else:
        a_high, a_low = _cut_in_two(a.to(tl.float32), HAS_BF16)
        b_high, b_low = _cut_in_two(b.to(tl.float32), HAS_BF16)
        result = tl.dot(a_high, b_high, tl.dot(a_high, b_low, tl.dot(a_low, b_high, total)))
    return result


@triton.jit
def _cut_in_two(x, HAS_BF16: tl.constexpr):
    """Two bfloat16 whose sum is x to 2^-16; without bfloat16, the same numbers in float32.

    The first one is cut off, not rounded: rounding a number that is needed as float32 again takes a slow unit.
    """
    high = (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
    low = x - high
    if HAS_BF16:
        return high.to(tl.bfloat16), low.to(tl.bfloat16)
    else:
        return high, split(low, HAS_BF16)[0]


@triton.jit
def power_of_2(x, HAS_PTX: tl.constexpr):
    """2^x; below 2^-126 it is 0. Triton's own takes four instructions more to be right there."""
    if HAS_PTX:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.exp2(x)


@triton.jit(do_not_specialize=OF_CALL, do_not_specialize_on_alignment=SCALARS)
def _chunk_sums_kernel(
    k, beta, g, decays, chunk_decay, J_states, cu_seqlens, offsets, sequence_of, num_tokens_all, T, H, chunks_each,
    K: tl.constexpr, G: tl.constexpr, KP: tl.constexpr, C: tl.constexpr, IS_PACKED: tl.constexpr,
):  # fmt: skip
    """Of one chunk and head: the sums of the decays' log2 up to each token, the decay of all, and what J gets.

    The sums are in two float32, whose differences are exact: in one, a difference would lose small decays behind large
    ones. 2^-160 is 0: so is a reset.
    """
    chunk, h = tl.program_id(0) // H, tl.program_id(0) % H
    _, _, start, num_tokens = locate(chunk, T, chunks_each, cu_seqlens, offsets, sequence_of, C, IS_PACKED)
    if num_tokens > 0:
        tt, kk = tl.arange(0, C), tl.arange(0, KP)
        in_t, in_k = tt < num_tokens, kk < K
        row = start * H + h
        at_k = k + row * K + tt[:, None] * (H * K) + kk[None, :]
        k_t = tl.load(at_k, mask=in_t[:, None] & in_k[None, :], other=0.0).to(tl.float32)
        g_t = tl.load(g + row + tt * H, mask=in_t, other=0.0)
        g_t = g_t.to(tl.float64) * LOG2_E
        # Not the larger of the two, which for a GPU is never a NaN.
        total = tl.cumsum(tl.where(g_t < -160.0, -160.0, g_t), 0)
        high = total.to(tl.float32)
        low = (total - high.to(tl.float64)).to(tl.float32)
        at = decays + tl.cast(h, tl.int64) * num_tokens_all + start + tt
        tl.store(at, high, mask=in_t)
        tl.store(at + tl.cast(H, tl.int64) * num_tokens_all, low, mask=in_t)
        end = tl.sum(tl.where(tt == C - 1, total, 0.0), 0)
        state = chunk.to(tl.int64) * H + h
        tl.store(chunk_decay + state, tl.exp2(end.to(tl.float32)))
        since = tl.exp2((end - total).to(tl.float32))
        for j in range(G):
            beta_t = tl.load(beta + (row + tt * H) * G + j, mask=in_t, other=0.0).to(tl.float32) * since
            tl.store(J_states + (state * G + j) * K + kk, tl.sum(k_t * k_t * beta_t[:, None], 0), mask=in_k)


@triton.jit(do_not_specialize=OF_CALL, do_not_specialize_on_alignment=SCALARS)
def _carry_kernel(
    x, chunk_decay, start, end, cu_seqlens, offsets, H, first_head, num_heads, chunks_each, has_start, has_end,
    K: tl.constexpr, G: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr, REVERSE: tl.constexpr,
    IS_PACKED: tl.constexpr,
):  # fmt: skip
    """What each chunk adds -> what stood before it, in place, from `start` on; REVERSE: from the last chunk back.

    x = decay x + own from chunk to chunk, K G numbers of one head and sequence; what is left goes to `end`.
    """
    n, local_head = tl.program_id(0) // num_heads, tl.program_id(0) % num_heads
    if IS_PACKED:
        begin = tl.load(offsets + n).to(tl.int64)
        num = (tl.load(offsets + n + 1) - begin).to(tl.int32)
    else:
        begin, num = n.to(tl.int64) * chunks_each, chunks_each
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = i < K * G
    # The state of the operator is [K, G].
    at_sequence = (n.to(tl.int64) * H + first_head + local_head) * (K * G) + i % K * G + i // K
    now = tl.load(start + at_sequence, mask=inside & (has_start != 0), other=0.0)
    for step in range(0, num, AHEAD):
        # All loads before all stores: the compiler cannot know that they never meet.
        own, passed = (), ()
        for ahead in tl.static_range(AHEAD):
            place = num - 1 - step - ahead if REVERSE else step + ahead
            chunk = (begin + place) * num_heads + local_head
            is_chunk = step + ahead < num
            own = own + (tl.load(x + chunk * (K * G) + i, mask=inside & is_chunk, other=0.0),)
            at_decay = chunk_decay + (begin + place) * H + first_head + local_head
            passed = passed + (tl.load(at_decay, mask=is_chunk, other=1.0),)
        for ahead in tl.static_range(AHEAD):
            place = num - 1 - step - ahead if REVERSE else step + ahead
            chunk = (begin + place) * num_heads + local_head
            tl.store(x + chunk * (K * G) + i, now, mask=inside & (step + ahead < num))
            now = now * passed[ahead] + own[ahead]
    if has_end:
        tl.store(end + at_sequence, now, mask=inside)


@triton.jit
def load_decays(decays, h, H, num_tokens_all, start, num_tokens, C: tl.constexpr):
    """What _chunk_sums_kernel wrote of a chunk's decays: high and low [C], and both at its last token."""
    tt = tl.arange(0, C)
    at = decays + tl.cast(h, tl.int64) * num_tokens_all + start
    at_low = at + tl.cast(H, tl.int64) * num_tokens_all
    in_t = tt < num_tokens
    high_end, low_end = tl.load(at + num_tokens - 1), tl.load(at_low + num_tokens - 1)
    # What is beyond the last token comes after it, so that no decay is above 1.
    high = tl.where(in_t, tl.load(at + tt, mask=in_t, other=0.0), high_end)
    low = tl.where(in_t, tl.load(at_low + tt, mask=in_t, other=0.0), low_end)
    return high, low, high_end, low_end


@triton.jit
def decays_between(high, low, FROM_ROWS: tl.constexpr, C: tl.constexpr, MODE: tl.constexpr, HAS_PTX: tl.constexpr):
    """[C, C]: the decay from the token of a column until that of a row, 0 where it comes later; FROM_ROWS: the other
    way round.
    """
    tt = tl.arange(0, C)
    if FROM_ROWS:
        passed = high[None, :] - high[:, None]
        is_later = tt[None, :] >= tt[:, None]
    else:
        passed = high[:, None] - high[None, :]
        is_later = tt[:, None] >= tt[None, :]
    # Beside what is rounded to 8 bits the rest does not count.
    if MODE != 2:
        if FROM_ROWS:
            passed += low[None, :] - low[:, None]
        else:
            passed += low[:, None] - low[None, :]
    return power_of_2(tl.where(is_later, passed, float("-inf")), HAS_PTX)


@triton.jit(do_not_specialize=OF_CALL, do_not_specialize_on_alignment=SCALARS)
def _accumulate_kernel(
    x, y, decays, start, states, end, M_states, M_last, products, cu_seqlens, offsets,
    num_tokens_all, T, H, first_head, num_heads, x_heads, x_first_head, chunks_each, num_chunks_all, has_start, has_end,
    K: tl.constexpr, V: tl.constexpr, X_GROUPS: tl.constexpr, KT: tl.constexpr, VT: tl.constexpr, C: tl.constexpr,
    STAGES: tl.constexpr, REVERSE: tl.constexpr, IS_PACKED: tl.constexpr, MODE: tl.constexpr, HAS_BF16: tl.constexpr,
):  # fmt: skip
    """sum of x_t (x) y_t, decaying: M before every chunk of a sequence; REVERSE: the flow of M after every chunk.

    One program a tile of [K, V] of one sequence and head, chunk after chunk. In reverse also the tile's part of
    <flow, M after the chunk>, from the states before all chunks, and M after the last one.
    """
    R: tl.constexpr = V // X_GROUPS
    tiles_r: tl.constexpr = (R + VT - 1) // VT
    tiles_v: tl.constexpr = X_GROUPS * tiles_r
    tiles: tl.constexpr = (K + KT - 1) // KT * tiles_v
    n, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    tile_k, j, tile_r = tile // tiles_v, tile % tiles_v // tiles_r, tile % tiles_r
    local_head = tl.program_id(1)
    h = first_head + local_head
    if IS_PACKED:
        begin = tl.load(cu_seqlens + n).to(tl.int64)
        num_tokens = (tl.load(cu_seqlens + n + 1) - begin).to(tl.int32)
        chunk = tl.load(offsets + n).to(tl.int64)
    else:
        begin, num_tokens, chunk = n.to(tl.int64) * T, T, n.to(tl.int64) * chunks_each
    tt = tl.arange(0, C)
    kk = tile_k * KT + tl.arange(0, KT)
    rr = tile_r * VT + tl.arange(0, VT)
    in_k, in_v = kk < K, rr < R
    vv = j * R + rr
    in_tile = in_k[:, None] & in_v[None, :]
    inside = kk[:, None] * V + vv[None, :]
    at_sequence = (n.to(tl.int64) * H + h) * (K * V) + inside
    M = tl.load(start + at_sequence, mask=in_tile & (has_start != 0), other=0.0)
    num_chunks = (num_tokens + C - 1) // C
    if REVERSE:
        last_product = tl.sum(M * tl.load(M_last + at_sequence, mask=in_tile & (has_start != 0), other=0.0))
    for i in tl.range(0, num_chunks, num_stages=STAGES):
        c = num_chunks - 1 - i if REVERSE else i
        at_chunk = (chunk + c) * num_heads + local_head
        tl.store(states + at_chunk * (K * V) + inside, M.to(states.dtype.element_ty), mask=in_tile)
        first = begin + c * C
        num_left = tl.minimum(num_tokens - c * C, C)
        in_t = tt < num_left
        high, low, high_end, low_end = load_decays(decays, h, H, num_tokens_all, first, num_left, C)
        if REVERSE:
            weight = tl.exp2(high)
            after = (at_chunk + num_heads) * (K * V) + inside
            M_after = tl.load(M_states + after, mask=in_tile & (i > 0), other=0.0).to(tl.float32)
            product_here = tl.where(i == 0, last_product, tl.sum(M * M_after))
            tl.store(products + tile * tl.cast(num_chunks_all, tl.int64) * num_heads + at_chunk, product_here)
        else:
            weight = tl.exp2((high_end - high) + (low_end - low))
        at_x = x + (first * x_heads + x_first_head + local_head) * (X_GROUPS * K) + j * K
        at_x += tt[None, :] * (x_heads * X_GROUPS * K) + kk[:, None]
        x_t = tl.load(at_x, mask=in_k[:, None] & in_t[None, :], other=0.0).to(tl.float32) * weight[None, :]
        at_y = y + (first * H + h) * V + tt[:, None] * (H * V) + vv[None, :]
        y_t = tl.load(at_y, mask=in_t[:, None] & in_v[None, :], other=0.0)
        M = precise_product(x_t, y_t, M * tl.exp2(high_end), MODE, HAS_BF16)
    if has_end:
        tl.store(end + at_sequence, M, mask=in_tile)


@triton.jit
def chunk_importance(
    key, beta_t, J_states, state, kk, until, passed, prior_h, K: tl.constexpr, MODE: tl.constexpr,
    HAS_BF16: tl.constexpr,
):  # fmt: skip
    """I of Eq. 25, [C, KT], after each token of a chunk, from J before it, keys [C, KT] and decays [C, C], [C]."""
    J = tl.load(J_states + state * K + kk, mask=kk < K, other=0.0)
    return precise_product(until, key * key * beta_t[:, None], prior_h + passed[:, None] * J[None, :], MODE, HAS_BF16)


@triton.jit(do_not_specialize=OF_CALL, do_not_specialize_on_alignment=SCALARS)
def _attend_kernel(
    q, k, v, beta, prior, decays, states, J_states, o, spreads, cu_seqlens, offsets, sequence_of, scale,
    num_tokens_all, T, H, first_head, num_heads, chunks_each,
    K: tl.constexpr, V: tl.constexpr, G: tl.constexpr, KT: tl.constexpr, VT: tl.constexpr, C: tl.constexpr,
    STAGES: tl.constexpr, HAS_VARIANCE: tl.constexpr, IS_PACKED: tl.constexpr, MODE: tl.constexpr,
    HAS_BF16: tl.constexpr, HAS_PTX: tl.constexpr,
):  # fmt: skip
    """o of one chunk, head and group: a read of the chunk's tokens, and of the state before them; and its variance."""
    R: tl.constexpr = V // G
    TILES: tl.constexpr = (K + KT - 1) // KT
    chunk, j = tl.program_id(0) // G, tl.program_id(0) % G
    local_head = tl.program_id(1)
    h = first_head + local_head
    _, _, start, num_tokens = locate(chunk, T, chunks_each, cu_seqlens, offsets, sequence_of, C, IS_PACKED)
    if num_tokens > 0:
        tt = tl.arange(0, C)
        in_t = tt < num_tokens
        row = start * H + h
        state = chunk.to(tl.int64) * num_heads + local_head
        prior_h = tl.load(prior + h).to(tl.float32)
        beta_t = tl.load(beta + (row + tt * H) * G + j, mask=in_t, other=0.0).to(tl.float32)
        high, low, _high_end, _low_end = load_decays(decays, h, H, num_tokens_all, start, num_tokens, C)
        passed = tl.exp2(high)
        until = decays_between(high, low, False, C, MODE, HAS_PTX)
        scores = tl.zeros([C, C], tl.float32)
        spread = tl.zeros([C], tl.float32)
        ps = ()
        for tile in tl.static_range(TILES):
            kk = tile * KT + tl.arange(0, KT)
            mask = in_t[:, None] & (kk < K)[None, :]
            at = row * K + tt[:, None] * (H * K) + kk[None, :]
            k_t = tl.load(k + at, mask=mask, other=0.0)
            q_t = tl.load(q + at, mask=mask, other=0.0).to(tl.float32) * scale
            importance = chunk_importance(
                k_t.to(tl.float32),
                beta_t,
                J_states,
                (chunk.to(tl.int64) * H + h) * G + j,
                kk,
                until,
                passed,
                prior_h,
                K,
                MODE,
                HAS_BF16,
            )
            p_t = q_t * reciprocal(importance, HAS_PTX)
            # A query rounded to 8 bits would leave o, beside a rounded state, a tenth more wrong than it may be.
            scores = precise_product(p_t, tl.trans(k_t), scores, MODE, HAS_BF16)
            if HAS_VARIANCE:
                spread += tl.sum(q_t * p_t, 1)
            ps = ps + (p_t,)
        if HAS_VARIANCE:
            tl.store(spreads + (start + tt) * (num_heads * G) + local_head * G + j, spread, mask=in_t)
        scores = scores * until
        for r0 in tl.range(0, R, VT, num_stages=STAGES):
            rr = r0 + tl.arange(0, VT)
            in_v = rr < R
            vv = j * R + rr
            at_v = row * V + tt[:, None] * (H * V) + vv[None, :]
            in_o = in_t[:, None] & in_v[None, :]
            v_t = tl.load(v + at_v, mask=in_o, other=0.0)
            o_t = tl.zeros([C, VT], tl.float32)
            for tile in tl.static_range(TILES):
                kk = tile * KT + tl.arange(0, KT)
                at_state = state * (K * V) + kk[:, None] * V + vv[None, :]
                M = tl.load(states + at_state, mask=(kk < K)[:, None] & in_v[None, :], other=0.0)
                o_t = precise_product(ps[tile], M, o_t, MODE, HAS_BF16)
            # A score may be most of an output: rounded to 8 bits it would be as wrong as the output itself may be.
            o_t = precise_product(scores, v_t, o_t * passed[:, None], MODE, HAS_BF16)
            tl.store(o + at_v, o_t.to(o.dtype.element_ty), mask=in_o)


class Plan(NamedTuple):
    """Tiles, and the groups of heads that keep to the scratch memory.

    Attributes:
        KT, VT: keys and rows of a tile.
        stages: tiles of rows that loads run ahead, plus one.
        num_warps: of every kernel that multiplies matrices.
    """

    KT: int
    VT: int
    stages: int
    num_warps: int
    head_slices: list[tuple[int, int]]


def make_plan(
    num_tokens: int, num_chunks: int, H: int, K: int, V: int, G: int, size: int, with_gradients: bool
) -> Plan:
    """`size`: bytes of a number that goes into a product."""
    R = V // G
    bytes_a_head = num_chunks * size * K * V + 4 * num_tokens * G
    if with_gradients:
        bytes_a_head += num_chunks * (size * K * V + 4 * G * K) + num_tokens * (size * G * K + 4 * (K + 2 * G))
    # Half precision inputs take 4 (K + V) bytes a token and head: the work may take twice that.
    fit = num_heads_that_fit(bytes_a_head, budget=8 * num_tokens * H * (K + V))
    heads = slice_heads(H, fit)
    if max(K, R) <= SMALL_TILE:
        return Plan(SMALL_TILE, SMALL_TILE, 1, 2, heads)
    # As many as fit the shared memory. The loop that loads ahead is that over the rows of a group or, where these are
    # one tile, that over groups, which loads more. In the forward, whose programs leave room for others, more than
    # there are tiles would keep some out.
    if K > 2 * TILE:
        stages = 1
    elif with_gradients:
        stages = 3 if K <= TILE or (size == 2 and R > TILE) else 2
    else:
        stages = min(3, cdiv(R, TILE))
    return Plan(TILE, TILE, stages, 4, heads)


class Call(NamedTuple):
    """What the kernels of one call share."""

    q: Tensor
    k: Tensor
    v: Tensor
    beta: Tensor
    g: Tensor
    prior: Tensor
    scale: float
    sequences: Sequences
    chunks: Pieces

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """B, T, H, K, V, G."""
        return *self.q.shape, self.v.shape[-1], self.beta.shape[-1]

    @property
    def num_tokens(self) -> int:
        return self.g.shape[0] * self.g.shape[1]

    @property
    def product_dtype(self) -> torch.dtype:
        """Of queries and states between kernels."""
        return torch.bfloat16 if self.q.dtype == torch.bfloat16 and not INTERPRETED else torch.float32

    @property
    def is_packed(self) -> bool:
        return self.sequences.cu_seqlens is not None

    @property
    def places(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """What `locate` wants to know."""
        return self.sequences.cu_seqlens, self.chunks.offsets, self.chunks.sequence_of

    @property
    def mode(self) -> tuple[Any, ...]:
        """What the compiled kernels depend on."""
        tensors = (self.q, self.beta, self.g, self.prior, self.sequences.cu_seqlens)
        return *(None if x is None else x.dtype for x in tensors), *self.sizes[3:]

    @property
    def options(self) -> dict[str, Any]:
        return {"IS_PACKED": self.is_packed, "MODE": MODES[self.q.dtype], "HAS_BF16": not INTERPRETED}

    def of_chunks(self, num_tiles: int, num_heads: int) -> Tensor:
        """[num_tiles, chunks, num_heads], for a number of each chunk; of a piece that has no tokens it is 0."""
        make = self.g.new_zeros if self.is_packed else self.g.new_empty
        return make(num_tiles, self.chunks.count, num_heads)

    def plan(self, with_gradients: bool) -> Plan:
        _, _, H, K, V, G = self.sizes
        size = self.product_dtype.itemsize
        return make_plan(self.num_tokens, self.chunks.count, H, K, V, G, size, with_gradients)


def make_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor,
    prior: Tensor,
    scale: float,
    mean0: Tensor | None,
    importance0: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Call:
    M_start = J_start = None
    if mean0 is not None and importance0 is not None:
        importance0 = importance0.float()
        M_start = (mean0.float() * repeat_for_rows(importance0, v.shape[-1])).contiguous()
        J_start = (importance0 - prior.float()[:, None, None]).contiguous()
    num = len(g) if cu_seqlens is None else cu_seqlens.shape[0] - 1
    sequences = Sequences(num, g.shape[1], cu_seqlens, M_start, J_start)
    q, k, v, beta = aligned(q), aligned(k), aligned(v), aligned(beta)
    return Call(q, k, v, beta, g, prior, scale, sequences, sequences.cut(CHUNK))


class Prepared(NamedTuple):
    """What every later kernel starts from, of all heads; float32.

    Attributes:
        J_states: [chunks, H, G, K], J before every chunk.
        decays: [2, H, B * T], and
        chunk_decay: [chunks, H]: see `_chunk_sums_kernel`.
    """

    J_states: Tensor
    decays: Tensor
    chunk_decay: Tensor


def count_chunks(num_sequences: int, num_tokens: int, is_packed: bool) -> int:
    """Of `num_sequences` sequences of, or packed in, `num_tokens` tokens: the count of `primitives.cut`."""
    if is_packed:
        return num_tokens // CHUNK + num_sequences
    return num_sequences * cdiv(num_tokens, CHUNK)


def num_kept(num_tokens: int, num_chunks: int, H: int, K: int, G: int) -> int:
    """Numbers that the forward hands to the backward: those of `Prepared`, each part a multiple of 16 bytes."""
    return sum(cdiv(size, 4) * 4 for size in (num_chunks * H * G * K, 2 * H * num_tokens, num_chunks * H))


def cut_kept(call: Call, kept: Tensor) -> Prepared:
    """The parts of what the forward keeps."""
    _, _, H, K, _, G = call.sizes
    parts, start = [], 0
    for shape in ((call.chunks.count, H, G, K), (2, H, call.num_tokens), (call.chunks.count, H)):
        size = math.prod(shape)
        parts.append(kept[start : start + size].view(shape))
        start += cdiv(size, 4) * 4
    return Prepared(*parts)


def sum_chunks(call: Call) -> tuple[Prepared, Tensor]:
    """Sums over the tokens of every chunk: what is to be J before it is what it adds to J, until `carry_J`.

    Also in one tensor, for `cut_kept`.
    """
    _, T, H, K, _, G = call.sizes
    chunks = call.chunks
    kept = call.g.new_empty(num_kept(call.num_tokens, chunks.count, H, K, G))
    prepared = cut_kept(call, kept)
    if call.is_packed or sum(x.numel() for x in prepared) < kept.numel():
        # Pieces of packed sequences that are none, and what fills 16 bytes: what lay in memory is nobody's result.
        kept.zero_()
    J_states, decays, chunk_decay = prepared
    launch(
        _chunk_sums_kernel, (chunks.count * H,),
        call.k, call.beta, call.g, decays, chunk_decay, J_states, *call.places, call.num_tokens, T, H, chunks.each,
        K, G, max(16, next_power_of_2(K)), CHUNK, IS_PACKED=call.is_packed, num_warps=2,
    )  # fmt: skip
    return prepared, kept


def carry_J(call: Call, prepared: Prepared, J_end: Tensor | None) -> None:
    """Makes J before every chunk of what it adds; J after every sequence goes to `J_end` [N, H, K, G]."""
    heads = (0, call.g.shape[2])
    carry(call, heads, prepared.chunk_decay, prepared.J_states, call.sequences.J_start, J_end, reverse=False)


def carry(
    call: Call,
    heads: tuple[int, int],
    chunk_decay: Tensor,
    x: Tensor,
    start: Tensor | None,
    end: Tensor | None,
    reverse: bool,
) -> None:
    """Runs `_carry_kernel` over x [chunks, num_heads, G, K], from `start` to `end`, each [N, H, K, G] or None.

    heads: the first one, and how many. chunk_decay [chunks, H] is that of all.
    """
    _, _, H, K, _, G = call.sizes
    block = min(128, next_power_of_2(K * G))
    launch(
        _carry_kernel, (call.sequences.num * heads[1], cdiv(K * G, block)),
        # A pointer that is not used still has to be one.
        x, chunk_decay, chunk_decay if start is None else start, chunk_decay if end is None else end,
        call.sequences.cu_seqlens, call.chunks.offsets, H, *heads, call.chunks.each,
        int(start is not None), int(end is not None), K, G, block, AHEAD, REVERSE=reverse, IS_PACKED=call.is_packed,
        num_warps=1,
    )  # fmt: skip


def accumulate(call: Call, plan: Plan, heads: tuple[int, int], decays: Tensor, M_end: Tensor | None) -> Tensor:
    """M before every chunk, [chunks, num_heads, K, V]; after every sequence it goes to `M_end` [N, H, K, V]."""
    return _accumulate(call, plan, heads, decays, call.k, call.v, call.sequences.M_start, M_end, None)


def accumulate_flows(
    call: Call,
    plan: Plan,
    heads: tuple[int, int],
    decays: Tensor,
    queries: Tensor,
    do: Tensor,
    states: Tensor,
    last: tuple[Tensor, Tensor] | None,
    first: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The flow of M after every chunk, [chunks, num_heads, K, V], and <flow, M> there, [tiles, chunks, num_heads].

    Args:
        states: from `accumulate`.
        last: the flow of M, and M, after every sequence, [N, H, K, V] each.
        first: takes what reaches the start of every sequence.
    """
    products = call.of_chunks(_num_tiles(call, plan, reverse=True), heads[1])
    flow, M_last = last or (None, None)
    flows = _accumulate(
        call, plan, heads, decays, queries, do, flow, first, (states, products if M_last is None else M_last, products)
    )
    return flows, products


def _num_tiles(call: Call, plan: Plan, reverse: bool) -> int:
    _, _, _, K, V, G = call.sizes
    groups = G if reverse else 1
    return cdiv(K, plan.KT) * groups * cdiv(V // groups, plan.VT)


def _accumulate(
    call: Call,
    plan: Plan,
    heads: tuple[int, int],
    decays: Tensor,
    x: Tensor,
    y: Tensor,
    start: Tensor | None,
    end: Tensor | None,
    for_products: tuple[Tensor, Tensor, Tensor] | None,
) -> Tensor:
    _, T, H, K, V, G = call.sizes
    chunks, reverse, num_heads = call.chunks, for_products is not None, heads[1]
    out = x.new_empty(chunks.count, num_heads, K, V, dtype=call.product_dtype)
    of_x = (num_heads, 0, chunks.each) if reverse else (H, heads[0], chunks.each)
    tiles = _num_tiles(call, plan, reverse)
    launch(
        _accumulate_kernel, (call.sequences.num * tiles, num_heads),
        x, y, decays, decays if start is None else start, out, decays if end is None else end,
        *(for_products or (out, decays, decays)), call.sequences.cu_seqlens, chunks.offsets, call.num_tokens, T,
        H, heads[0], num_heads, *of_x, chunks.count, int(start is not None), int(end is not None),
        K, V, G if reverse else 1, plan.KT, plan.VT, CHUNK, STAGES, REVERSE=reverse,
        num_warps=plan.num_warps, **call.options,
    )  # fmt: skip
    return out


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
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor]:
    """The results of `forward` of forward.py, for beta [B, T, H, G] and importances [N, H, K, G], and what to keep."""
    call = make_call(q, k, v, beta, g, importance_prior, scale, mean0, importance0, cu_seqlens)
    B, T, H, K, V, G = call.sizes
    if not q.is_meta:

        def rehearse() -> None:
            # Calls of all sizes launch the same.
            size = next(rehearsals(q, cu_seqlens, is_large=False))
            forward(
                *(size.sequence(x) for x in (q, k, v, beta, g)), size.prior(importance_prior), scale,
                size.state(mean0), size.state(importance0), output_final_state, output_variance,
                size.bounds(cu_seqlens),
            )  # fmt: skip

        compile_once(("grouped forward", *call.mode, output_variance), rehearse)
    o = torch.empty_like(v)
    variance = torch.empty_like(v) if output_variance else None
    M_end = J_end = None
    if output_final_state:
        M_end, J_end = (g.new_empty(call.sequences.num, H, K, width) for width in (V, G))
    prepared, kept = sum_chunks(call)
    plan = call.plan(with_gradients=False)
    for heads in plan.head_slices:
        states = accumulate(call, plan, heads, prepared.decays, M_end)
        first_head, num_heads = heads
        if first_head == 0:
            # Now: the GPU has work until the next kernel is launched, which it would not have from this one.
            carry_J(call, prepared, J_end)
        spreads = g.new_empty((call.num_tokens, num_heads, G) if output_variance else (0,))
        # One tile of keys wants 171 registers in bfloat16; three less, and a multiprocessor holds a program more.
        is_near = plan.num_warps == 4 and K <= TILE and q.dtype == torch.bfloat16
        launch(
            _attend_kernel, (call.chunks.count * G, num_heads),
            call.q, call.k, call.v, call.beta, call.prior, prepared.decays, states, prepared.J_states, o, spreads,
            *call.places, call.scale, call.num_tokens, T, H, *heads, call.chunks.each,
            K, V, G, plan.KT, plan.VT, CHUNK, plan.stages, HAS_VARIANCE=output_variance, HAS_PTX=HAS_PTX,
            num_warps=plan.num_warps, maxnreg=168 if is_near else None, **call.options,
        )  # fmt: skip
        if variance is not None:
            of_groups = spreads.view(B, T, num_heads, G)
            variance[:, :, first_head : first_head + num_heads] = repeat_for_rows(of_groups, V)
    if M_end is None or J_end is None:
        return o, variance, None, None, kept
    importance = J_end.add_(importance_prior.float()[:, None, None])
    return o, variance, M_end.div_(repeat_for_rows(importance, V)), importance, kept
