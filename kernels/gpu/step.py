"""One token in place in Triton, for decoding: reads the state once and writes it once.

kernels/README.md has the equations. A precision for every row and precisions of groups have a kernel each.
"""

# B batch, H heads, K key dim, V value dim, G precisions a head, a divisor of V
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .primitives import cdiv, next_power_of_2, smallest_cover

NUM_WARPS = 4
THREADS = tl.constexpr(32 * NUM_WARPS)


@triton.jit
def _step_kernel(
    q, k, v, beta, g, prior, mean, importance, o, variance, scale, H,
    q_b, q_h, k_b, k_h, v_b, v_h, beta_b, beta_h, g_b, g_h,
    mean_b, mean_h, mean_k, mean_v, importance_b, importance_h, importance_k, importance_v,
    K: tl.constexpr, V: tl.constexpr, KT: tl.constexpr, VT: tl.constexpr,
    HAS_BETA: tl.constexpr, HAS_VARIANCE: tl.constexpr,
):  # fmt: skip
    """All keys of one tile of values of one head: X_b, X_h, X_k, X_v are the strides of tensor X."""
    tiles_v: tl.constexpr = (V + VT - 1) // VT
    head = tl.program_id(0) // tiles_v
    b, h = (head // H).to(tl.int64), (head % H).to(tl.int64)
    vv = (tl.program_id(0) % tiles_v) * VT + tl.arange(0, VT)
    in_v = vv < V
    alpha = tl.exp(tl.load(g + b * g_b + h * g_h).to(tl.float32))
    given_back = (1 - alpha) * tl.load(prior + h).to(tl.float32)
    v_t = tl.load(v + b * v_b + h * v_h + vv, mask=in_v, other=0.0).to(tl.float32)[None, :]
    if HAS_BETA:
        beta_t = tl.load(beta + b * beta_b + h * beta_h + vv, mask=in_v, other=0.0).to(tl.float32)[None, :]
    q_at, k_at = q + b * q_b + h * q_h, k + b * k_b + h * k_h
    value = vv.to(tl.int64)[None, :]
    mean_at = mean + b * mean_b + h * mean_h + value * mean_v
    importance_at = importance + b * importance_b + h * importance_h + value * importance_v
    # Summed over keys once, after the loop: a sum takes an exchange between threads.
    reads = tl.zeros([KT, VT], tl.float32)
    spreads = tl.zeros([KT, VT], tl.float32)
    for k0 in tl.static_range(0, K, KT):
        kk = k0 + tl.arange(0, KT)
        in_k = kk < K
        in_tile = in_k[:, None] & in_v[None, :]
        key = kk.to(tl.int64)[:, None]
        precision = tl.load(importance_at + key * importance_k, mask=in_tile, other=1.0)
        M = tl.load(mean_at + key * mean_k, mask=in_tile, other=0.0) * precision
        if KT * VT < THREADS:
            # Several threads read one entry: all of them before one writes it.
            tl.debug_barrier()
        k_t = tl.load(k_at + kk, mask=in_k, other=0.0).to(tl.float32)[:, None]
        q_t = tl.load(q_at + kk, mask=in_k, other=0.0).to(tl.float32)[:, None]
        M = M * alpha + k_t * v_t
        precision = precision * alpha + given_back
        if HAS_BETA:
            precision += (k_t * k_t) * beta_t
        mu = M / precision
        tl.store(mean_at + key * mean_k, mu, mask=in_tile)
        tl.store(importance_at + key * importance_k, precision, mask=in_tile)
        reads += q_t * mu
        if HAS_VARIANCE:
            spreads += (q_t * q_t) / precision
    out = head.to(tl.int64) * V + vv
    tl.store(o + out, tl.sum(reads, 0) * scale, mask=in_v)
    if HAS_VARIANCE:
        tl.store(variance + out, tl.sum(spreads, 0) * (scale * scale), mask=in_v)


@triton.jit
def _means_at(mean, b, h, keys, rows, mean_b, mean_h, mean_k, mean_v, V: tl.constexpr, IS_DENSE: tl.constexpr):
    """Where the means of some keys and rows, shaped to be added, lie; IS_DENSE: one after the other in a head, which
    begins at 16 bytes."""
    if IS_DENSE:
        return mean + tl.multiple_of(b * mean_b + h * mean_h, 4) + (keys * V + rows)
    else:
        return mean + b * mean_b + h * mean_h + keys.to(tl.int64) * mean_k + rows.to(tl.int64) * mean_v


# Sizes and strides are numbers of the call: one compiled version serves them all, 1 and multiples of 16 too.
UNSPECIALISED = [
    "H", "q_b", "q_h", "k_b", "k_h", "v_b", "v_h", "beta_b", "beta_h", "beta_g", "g_b", "g_h", "mean_b", "mean_h",
    "mean_k", "mean_v", "importance_b", "importance_h", "importance_k", "importance_g",
]  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALISED)
def _group_step_kernel(
    q, k, v, beta, g, prior, mean, importance, o, variance, scale, H,
    q_b, q_h, k_b, k_h, v_b, v_h, beta_b, beta_h, beta_g, g_b, g_h,
    mean_b, mean_h, mean_k, mean_v, importance_b, importance_h, importance_k, importance_g,
    K: tl.constexpr, V: tl.constexpr, G: tl.constexpr, KT: tl.constexpr, VT: tl.constexpr,
    AHEAD: tl.constexpr, IS_DENSE: tl.constexpr, HAS_BETA: tl.constexpr, HAS_VARIANCE: tl.constexpr,
):  # fmt: skip
    """All keys and rows of one group of one head: nobody else reads the importances that it overwrites.

    One tile of rows after the other. What a key does to all of them, a factor and a share of the value, it has first:
    a division for a key, not for a key and a row.
    """
    rows_each: tl.constexpr = V // G
    TILES: tl.constexpr = (rows_each + VT - 1) // VT
    head, group = tl.program_id(0) // G, tl.program_id(0) % G
    b, h = (head // H).to(tl.int64), (head % H).to(tl.int64)
    keys, rows = tl.arange(0, KT), tl.arange(0, VT)
    in_k = keys < K
    first = group * rows_each
    means_at = _means_at(
        mean, b, h, keys[:, None], (first + rows)[None, :], mean_b, mean_h, mean_k, mean_v, V, IS_DENSE
    )
    tile_means = VT if IS_DENSE else VT * mean_v.to(tl.int64)
    means = ()
    for tile in tl.static_range(min(AHEAD, TILES)):
        in_tile = in_k[:, None] & (tile * VT + rows < rows_each)[None, :]
        means = means + (tl.load(means_at + tile * tile_means, mask=in_tile, other=0.0),)

    importances_at = importance + b * importance_b + h * importance_h + group.to(tl.int64) * importance_g
    importances_at += keys.to(tl.int64) * importance_k
    before = tl.load(importances_at, mask=in_k, other=1.0)
    k_t = tl.load(k + b * k_b + h * k_h + keys, mask=in_k, other=0.0).to(tl.float32)
    q_t = tl.load(q + b * q_b + h * q_h + keys, mask=in_k, other=0.0).to(tl.float32)
    alpha = tl.exp(tl.load(g + b * g_b + h * g_h).to(tl.float32))
    kept = before * alpha
    after = kept + (1 - alpha) * tl.load(prior + h).to(tl.float32)
    if HAS_BETA:
        after += (k_t * k_t) * tl.load(beta + b * beta_b + h * beta_h + group.to(tl.int64) * beta_g).to(tl.float32)
    # Several threads read one importance: all of them before one writes it.
    tl.debug_barrier()
    tl.store(importances_at, after, mask=in_k)
    factor, share = (kept / after)[:, None], (k_t / after)[:, None]
    if HAS_VARIANCE:
        spread = tl.sum((q_t * q_t) / after, 0) * (scale * scale)

    v_at, out = v + b * v_b + h * v_h + first, head.to(tl.int64) * V + first
    for tile in tl.static_range(TILES):
        if tile + AHEAD < TILES:
            # On its way while the tiles before it are worked on.
            in_tile = in_k[:, None] & ((tile + AHEAD) * VT + rows < rows_each)[None, :]
            means = means + (tl.load(means_at + (tile + AHEAD) * tile_means, mask=in_tile, other=0.0),)
        vv = tile * VT + rows
        in_v = vv < rows_each
        v_t = tl.load(v_at + vv, mask=in_v, other=0.0).to(tl.float32)[None, :]
        mu = means[tile] * factor + share * v_t
        tl.store(means_at + tile * tile_means, mu, mask=in_k[:, None] & in_v[None, :])
        tl.store(o + out + vv, tl.sum(q_t[:, None] * mu, 0) * scale, mask=in_v)
        if HAS_VARIANCE:
            tl.store(variance + out + vv, tl.zeros([VT], tl.float32) + spread, mask=in_v)


@triton.jit(do_not_specialize=UNSPECIALISED)
def _grouped_step_kernel(
    q, k, v, beta, g, prior, mean, importance, o, variance, scale, H,
    q_b, q_h, k_b, k_h, v_b, v_h, beta_b, beta_h, beta_g, g_b, g_h,
    mean_b, mean_h, mean_k, mean_v, importance_b, importance_h, importance_k, importance_g,
    K: tl.constexpr, V: tl.constexpr, G: tl.constexpr, GROUPS: tl.constexpr, KT: tl.constexpr, RT: tl.constexpr,
    AHEAD: tl.constexpr, IS_DENSE: tl.constexpr, HAS_BETA: tl.constexpr, HAS_VARIANCE: tl.constexpr,
):  # fmt: skip
    """All keys and rows of several groups of one head: nobody else reads the importances that it overwrites.

    One tile of keys after the other, [KT, GROUPS, RT]: a division for a key and a group, not for each of its rows.
    """
    rows_each: tl.constexpr = V // G
    programs: tl.constexpr = (G + GROUPS - 1) // GROUPS
    TILES: tl.constexpr = (K + KT - 1) // KT
    head = tl.program_id(0) // programs
    b, h = (head // H).to(tl.int64), (head % H).to(tl.int64)
    groups = (tl.program_id(0) % programs) * GROUPS + tl.arange(0, GROUPS)
    keys, row = tl.arange(0, KT), tl.arange(0, RT)
    # The last program may have fewer groups.
    in_g = groups < G
    in_v = in_g[:, None] & (row < rows_each)[None, :]
    rows = groups[:, None] * rows_each + row[None, :]
    alpha = tl.exp(tl.load(g + b * g_b + h * g_h).to(tl.float32))
    given_back = (1 - alpha) * tl.load(prior + h).to(tl.float32)
    v_t = tl.load(v + b * v_b + h * v_h + rows, mask=in_v, other=0.0).to(tl.float32)[None, :, :]
    if HAS_BETA:
        beta_at = beta + b * beta_b + h * beta_h + groups.to(tl.int64) * beta_g
        beta_t = tl.load(beta_at, mask=in_g, other=0.0).to(tl.float32)[None, :]
    q_at, k_at = q + b * q_b + h * q_h, k + b * k_b + h * k_h
    importances_at = importance + b * importance_b + h * importance_h + groups.to(tl.int64)[None, :] * importance_g
    means_at = _means_at(mean, b, h, keys[:, None, None], rows[None, :, :], mean_b, mean_h, mean_k, mean_v, V, IS_DENSE)
    tile_means = KT * (V if IS_DENSE else mean_k.to(tl.int64))
    importances, means = (), ()
    for tile in tl.static_range(TILES):
        kk = tile * KT + keys
        at = importances_at + kk.to(tl.int64)[:, None] * importance_k
        importances = importances + (tl.load(at, mask=(kk < K)[:, None] & in_g[None, :], other=1.0),)
        if tile < AHEAD:
            means = means + (
                tl.load(means_at + tile * tile_means, mask=(kk < K)[:, None, None] & in_v[None, :, :], other=0.0),
            )
    # Several threads read one importance: all of them before one writes it.
    tl.debug_barrier()
    # Summed over keys once, after the loop: a sum takes an exchange between threads.
    reads = tl.zeros([KT, GROUPS, RT], tl.float32)
    spreads = tl.zeros([KT, GROUPS], tl.float32)
    for tile in tl.static_range(TILES):
        if tile + AHEAD < TILES:
            # On its way while the tiles before it are worked on.
            in_k = (tile + AHEAD) * KT + keys < K
            in_tile = in_k[:, None, None] & in_v[None, :, :]
            means = means + (tl.load(means_at + (tile + AHEAD) * tile_means, mask=in_tile, other=0.0),)
        kk = tile * KT + keys
        in_k = kk < K
        k_t = tl.load(k_at + kk, mask=in_k, other=0.0).to(tl.float32)[:, None]
        q_t = tl.load(q_at + kk, mask=in_k, other=0.0).to(tl.float32)[:, None]
        kept = importances[tile] * alpha
        after = kept + given_back
        if HAS_BETA:
            after += (k_t * k_t) * beta_t
        at = importances_at + kk.to(tl.int64)[:, None] * importance_k
        tl.store(at, after, mask=in_k[:, None] & in_g[None, :])
        mu = means[tile] * (kept / after)[:, :, None] + (k_t / after)[:, :, None] * v_t
        tl.store(means_at + tile * tile_means, mu, mask=in_k[:, None, None] & in_v[None, :, :])
        reads += q_t[:, :, None] * mu
        if HAS_VARIANCE:
            spreads += (q_t * q_t) / after
    out = head.to(tl.int64) * V + rows
    tl.store(o + out, tl.sum(reads, 0) * scale, mask=in_v)
    if HAS_VARIANCE:
        spread = tl.sum(spreads, 0)[:, None] * (scale * scale)
        tl.store(variance + out, tl.zeros([GROUPS, RT], tl.float32) + spread, mask=in_v)


# Groups of so many rows and more have a program each.
ROWS_ALONE = 32


class GroupedPlan(NamedTuple):
    """Groups a program; keys, and rows of a group, a tile; tiles that are loaded while one is worked on; warps."""

    num_groups: int
    KT: int
    RT: int
    ahead: int
    num_warps: int


def plan_groups(K: int, V: int, G: int) -> GroupedPlan:
    """Of one group all keys a tile, and rows for 2,048 or 8,192 elements; of several all rows, and keys for 2,048.

    Of one group with up to 64 keys, all programs of a thousand heads are at work at once so; with more keys fewer are,
    and wider loads count for more. docs/LOG.md has the times.
    """
    rows_each = V // G
    if G == 1 or rows_each >= ROWS_ALONE:
        KT = next_power_of_2(K)
        elements, ahead, num_warps = (2048, 2, NUM_WARPS) if KT <= 64 else (8192, 0, 2 * NUM_WARPS)
        return GroupedPlan(1, KT, min(next_power_of_2(rows_each), elements // KT), ahead, num_warps)
    _, VT = tile_sizes(K, V)
    RT = next_power_of_2(rows_each)
    num_groups = min(next_power_of_2(G), max(2, VT // RT))
    return GroupedPlan(num_groups, min(next_power_of_2(K), 2048 // (num_groups * RT)), RT, 2, NUM_WARPS)


def tile_sizes(K: int, V: int) -> tuple[int, int]:
    """(KT, VT): 2,048 elements a tile where there are so many, so that four warps have 16 bytes a lane in flight."""
    VT = smallest_cover(V, (64, 128, 32, 16))
    return min(next_power_of_2(K), 2048 // VT), VT


def step(
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
    """o and the variance [B, H, V] of `palimpsa_step`, without checks and up to float32.

    Overwrites mean [B, H, K, V] and importance [B, H, K, G], float32 of any strides; contiguous along V is fastest.
    """
    B, H, K = q.shape
    V, G = v.shape[-1], importance.shape[-1]
    o = v.new_empty(B, H, V)
    variance = torch.empty_like(o) if output_variance else None
    if o.numel() == 0:
        return o, variance

    def rows(x: Tensor) -> Tensor:
        # A slice of one token of a sequence is taken as it is.
        return x if x.stride(-1) == 1 else x.contiguous()

    q, k, v = rows(q), rows(k), rows(v)
    shared: Any = {"HAS_BETA": beta is not None, "HAS_VARIANCE": output_variance}
    if G < V:
        beta = v if beta is None else beta
        plan = plan_groups(K, V, G)
        is_dense = mean.stride()[2:] == (V, 1) and all(stride % 4 == 0 for stride in mean.stride()[:3])
        is_one, grid = plan.num_groups == 1, (B * H * cdiv(G, plan.num_groups),)
        grouped: Any = _group_step_kernel[grid] if is_one else _grouped_step_kernel[grid]
        grouped(
            q, k, v, beta, g, importance_prior.contiguous(), mean, importance, o, o if variance is None else variance,
            scale, H, *(stride for x in (q, k, v) for stride in x.stride()[:2]), *beta.stride(), *g.stride(),
            *mean.stride(), *importance.stride(), K, V, G, *(plan[1:4] if is_one else plan[:4]), is_dense,
            num_warps=plan.num_warps, **shared,
        )  # fmt: skip
        return o, variance
    row_beta = v if beta is None else rows(beta)
    KT, VT = tile_sizes(K, V)
    launch: Any = _step_kernel[(B * H * cdiv(V, VT),)]
    launch(
        q, k, v, row_beta, g, importance_prior.contiguous(), mean, importance, o, o if variance is None else variance,
        scale, H, *(stride for x in (q, k, v, row_beta) for stride in x.stride()[:2]), *g.stride(),
        *mean.stride(), *importance.stride(), K, V, KT, VT, num_warps=NUM_WARPS, **shared,
    )  # fmt: skip
    return o, variance
