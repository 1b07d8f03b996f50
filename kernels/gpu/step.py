"""One token in place in Triton, for decoding: reads the state once and writes it once.

kernels/README.md has the equations.
"""

# B batch, H heads, K key dim, V value dim
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .primitives import cdiv, next_power_of_2, smallest_cover


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

    Overwrites mean and importance, float32 [B, H, K, V] of any strides; contiguous along V they are fastest.
    """
    B, H, K = q.shape
    V = v.shape[-1]
    o = v.new_empty(B, H, V)
    variance = torch.empty_like(o) if output_variance else None
    if o.numel() == 0:
        return o, variance

    def rows(x: Tensor) -> Tensor:
        # A slice of one token of a sequence is taken as it is.
        return x if x.stride(-1) == 1 else x.contiguous()

    q, k, v = rows(q), rows(k), rows(v)
    row_beta = v if beta is None else rows(beta)
    KT, VT = tile_sizes(K, V)
    launch: Any = _step_kernel[(B * H * cdiv(V, VT),)]
    launch(
        q, k, v, row_beta, g, importance_prior.contiguous(), mean, importance, o, o if variance is None else variance,
        scale, H, *(stride for x in (q, k, v, row_beta) for stride in x.stride()[:2]), *g.stride(),
        *mean.stride(), *importance.stride(),
        K, V, KT, VT, HAS_BETA=beta is not None, HAS_VARIANCE=output_variance, num_warps=4,
    )  # fmt: skip
    return o, variance
