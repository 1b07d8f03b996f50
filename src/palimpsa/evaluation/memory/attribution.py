"""Which written token an output is made of: exactly, since the memory is linear in what is written.

    M_t  = alpha_t M_{t-1} + k_t (x) v_t,  o_t = scale q_t (M_t / I_t)
    o_t  = sum_s w_ts v_s + what was there before the first token
    w_ts = scale sum_i (q_ti / I_ti) d_tsi k_si,  d_ts = alpha_{s+1} ... alpha_t,  s <= t

w_ts is a number for each group of rows that shares a precision. The importance I_t is of keys, precisions and decays
alone: given these, nothing is approximated. All of it in float64.
"""

# T time, S time of writing, K key dim, V value dim, C decays a token (1 or K), G precisions, N sequences packed along T

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from palimpsa.kernels.groups import repeat_for_rows
from palimpsa.kernels.validation import sequence_bounds
from palimpsa.mixers.linear_memory import LinearMemory


@dataclass(frozen=True)
class HeadPath:
    """The memory of one head along a row of tokens, after each of them.

    q, k: [T, K]. v: [T, V]. written: [T, K, G], what each token adds to the importance. decay: [T, S, C], how much of
    what was written at s is left at t: 0 for s > t and across the start of a sequence. importance: [T, K, G]. earlier:
    [T, K, V], what is left of a memory before the first token, I mu. scale: of the read.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    written: Tensor
    decay: Tensor
    importance: Tensor
    earlier: Tensor
    scale: float

    def weights(self, t: int) -> Tensor:
        """w_ts, [S, G]: what the query at time t weighs each written value with."""
        return self.scale * (self.decay[t] * self.k) @ (self.q[t][:, None] / self.importance[t])

    def contributions(self, t: int) -> Tensor:
        """w_ts v_s, [S, V]; with `remainder` they add up to the output o_t."""
        return repeat_for_rows(self.weights(t), self.v.shape[-1]) * self.v

    def remainder(self, t: int) -> Tensor:
        """[V]: what o_t has of a memory before the first token."""
        return self.scale * self.q[t] @ (self.earlier[t] / repeat_for_rows(self.importance[t], self.v.shape[-1]))

    def output(self, t: int) -> Tensor:
        """o_t, [V]."""
        return self.contributions(t).sum(0) + self.remainder(t)

    def shares(self, times: Iterable[int] | None = None) -> Tensor:
        """[n, S]: the part of o_t that the token at s brought, <w_ts v_s, o_t> / |o_t|^2; 0 for an output of zeros.

        A row adds up to 1, without a memory before the first token; a share below 0 is of what took away from it.

        Args:
            times: t of each row; None: all.
        """
        rows = []
        for t in range(len(self.q)) if times is None else times:
            contributions = self.contributions(t)
            o = contributions.sum(0) + self.remainder(t)
            length = o.square().sum()
            rows.append(contributions @ o / length if length > 0 else torch.zeros_like(contributions[:, 0]))
        return torch.stack(rows)

    def own_recall(self) -> Tensor:
        """[T, S]: the token's own share of what its key k_s recalls at t >= s; NaN for t < s.

        The key asks as a query does: r_ts = k_s (M_t / I_t), whose part from s itself is along r_ts as in `shares`. 1:
        nothing but what was stored; 0: none of it.
        """
        found = torch.full(self.decay.shape[:2], torch.nan, dtype=torch.float64)
        written = torch.zeros_like(self.earlier[0])
        for t in range(len(self.q)):
            # What decays to nothing from the token before: a sequence that starts.
            kept = self.decay[t, t - 1][:, None] if t else 0
            written = kept * written + self.k[t][:, None] * self.v[t]
            k, v = self.k[: t + 1], self.v[: t + 1]
            recalled = k @ ((written + self.earlier[t]) / repeat_for_rows(self.importance[t], v.shape[-1]))
            own = repeat_for_rows((self.decay[t, : t + 1] * k.square()) @ (1 / self.importance[t]), v.shape[-1]) * v
            lengths = recalled.square().sum(1)
            shares = (own * recalled).sum(1) / lengths
            found[t, : t + 1] = torch.where(lengths > 0, shares, 0.0)
        return found

    def variance(self) -> Tensor:
        """[T]: scale^2 q_t^2 (1 / I_t), averaged over the rows of the output."""
        return self.scale**2 * torch.einsum("tk,tkg->tg", self.q.square(), 1 / self.importance).mean(-1)


def follow_head(memory: LinearMemory, head: int, row: int = 0, cu_seqlens: Tensor | None = None) -> HeadPath:
    """The path of one head's memory along one row of a batch.

    Args:
        cu_seqlens: [N+1] boundaries of sequences packed into one row (B = 1): nothing reaches across one. A state of
            `memory` is then of N sequences.
    """
    q, k, v, g = (x[row, :, head].double() for x in (memory.q, memory.k, memory.v, memory.log_decay))
    T, K = k.shape
    alpha = (g if g.ndim == 2 else g[:, None]).exp()
    bounds = [0, T] if cu_seqlens is None else sequence_bounds(cu_seqlens, T)
    starts = {start: n for n, start in enumerate(bounds[:-1])}
    if memory.beta is not None:
        G = memory.beta.shape[-1]
        written = k.square()[..., None] * memory.beta[row, :, head].double()[:, None]
    else:
        G = 1 if memory.state is None else memory.state.importance.shape[-1]
        written = torch.zeros(T, K, G, dtype=torch.float64)
    prior = 1.0 if memory.importance_prior is None else memory.importance_prior[head].double()
    decay = torch.zeros(T, T, alpha.shape[-1], dtype=torch.float64)
    importances, earlier = [], []
    importance, left = torch.empty(0), torch.empty(0)
    for t in range(T):
        if t in starts:
            importance = torch.full((K, G), float(prior), dtype=torch.float64)
            left = torch.zeros(K, v.shape[-1], dtype=torch.float64)
            if memory.state is not None:
                place = row if cu_seqlens is None else starts[t]
                mean, importance = (x[place, head].double() for x in memory.state)
                left = repeat_for_rows(importance, v.shape[-1]) * mean
        else:
            decay[t] = alpha[t] * decay[t - 1]
        decay[t, t] = 1
        # Where an importance forgets, every key channel has the same decay.
        forgets = memory.importance_prior is not None
        importance = (alpha[t] * importance + (1 - alpha[t]) * prior if forgets else importance) + written[t]
        left = alpha[t][:, None] * left
        importances.append(importance)
        earlier.append(left)
    return HeadPath(q, k, v, written, decay, torch.stack(importances), torch.stack(earlier), memory.scale)
