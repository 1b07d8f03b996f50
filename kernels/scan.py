"""The recurrence chunk by chunk in plain PyTorch, both passes, without autograd: see chunked.py and library.py.

kernels/README.md has the equations of both passes and the reasons for the layout.
"""

# B batch, T time, H heads, K key dim, V value dim, C chunk size, b = (batch rows of a block) * H
from collections.abc import Sequence
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from .validation import compute_dtype


class Plan(NamedTuple):
    """How the work is cut: into blocks of at most num_rows batch rows, each into chunks of tokens."""

    num_rows: int
    chunk_size: int

    def blocks(self, batch: int) -> list[slice]:
        starts = range(0, batch, self.num_rows)
        return [slice(start, min(start + self.num_rows, batch)) for start in starts]

    def lengths(self, num_tokens: int) -> list[int]:
        whole, rest = divmod(num_tokens, self.chunk_size)
        return [self.chunk_size] * whole + [rest] * (rest > 0)


def make_plan(B: int, T: int, H: int, K: int, V: int, device: torch.device, chunk_size: int | None) -> Plan:
    if B * H * K * V < _MIN_STEP_SIZE:
        # Too little work a token: long chunks, so that what is done once a chunk is rare.
        C = 64
    else:
        # The backward keeps T / C states and works on C at a time: C grows like the root of T, in powers of two.
        C = 8 if T < 128 else 16 if T < 512 else 32 if T < 2048 else 64
    C = min(T, chunk_size or C)
    # Elements of one state in a chunk of a block, as measured (README.md): with less, starting the operations takes
    # most of the time; with more, the working memory leaves the cache.
    chunk_elements, step_elements = (2**18, 2**13) if device.type == "cpu" else (2**24, 2**18)
    num_rows = max(chunk_elements // C, step_elements) // (H * K * V)
    return Plan(max(1, num_rows), C)


# PyTorch's CPU bmm runs a scalar loop below this many products: a product and a sum are faster.
_MIN_BMM_SIZE = 400
# Elements of one state, over all heads of a block, from which one token is work enough for one operation.
_MIN_STEP_SIZE = 2**14


def _sum_over_keys(row: Tensor, x: Tensor, out: Tensor, scratch: Tensor) -> None:
    """out[n, 1, v] = sum_k row[n, 1, k] x[n, k, v]."""
    if x.shape[1] * x.shape[2] >= _MIN_BMM_SIZE or x.device.type != "cpu":
        torch.bmm(row, x, out=out)
    else:
        torch.sum(torch.mul(row.mT, x, out=scratch), 1, keepdim=True, out=out)


def _sum_over_values(row: Tensor, x: Tensor, out: Tensor, scratch: Tensor) -> None:
    """out[n, 1, k] = sum_v row[n, 1, v] x[n, k, v]."""
    if x.shape[1] * x.shape[2] >= _MIN_BMM_SIZE or x.device.type != "cpu":
        # A row times a transposed matrix: on a CPU six times as fast as a matrix times a column.
        torch.bmm(row, x.mT, out=out)
    else:
        torch.sum(torch.mul(row, x, out=scratch), 2, out=out[:, 0])


class _Rows:
    """One vector for each token and head of a chunk, [c * b, 1, D], and two views of it."""

    def __init__(self, like: Tensor, c: int, b: int, H: int, D: int) -> None:
        self.rows = like.new_empty(c * b, 1, D)
        self.columns = self.rows.mT
        # [rows, c, H, D], the layout of the operator's arguments.
        self.batch_major = self.rows.view(c, b // H, H, D).transpose(0, 1)

    def load(self, x: Tensor) -> Tensor:
        self.batch_major.copy_(x)
        return self.rows


class _Workspace:
    """Memory for one chunk of c tokens of b = rows * H heads, reused by every chunk of this size.

    Time is the outermost dimension, so that one token of all heads is one contiguous operand.
    """

    def __init__(self, like: Tensor, c: int, b: int, H: int, K: int, V: int, with_gradients: bool) -> None:
        self.q, self.k, self.k_squared = (_Rows(like, c, b, H, K) for _ in range(3))
        self.v, self.beta, self.o = (_Rows(like, c, b, H, V) for _ in range(3))
        # M = I * mu and I, before the first token and after each.
        states = like.new_empty(2, c + 1, b, K, V)
        self.slots = states.unbind(1)
        self.before = states[:, :c]
        self.num_parts = 1
        while b * K * V < _MIN_STEP_SIZE and c >= 16 and c >= 4 * self.num_parts**2 and c % (2 * self.num_parts) == 0:
            self.num_parts *= 2
        parts = states[:, 1:].unflatten(1, (self.num_parts, -1))
        # steps[i]: token i of every part; parts[j]: every token of part j; ends[j]: the state before part j.
        self.steps, self.parts = parts.unbind(2), parts.unbind(1)
        self.ends = [states[:, i : i + 1] for i in range(0, c, c // self.num_parts)]
        self.M, self.I = (x.view(-1, K, V) for x in states[:, 1:])
        if with_gradients:
            self.dq, self.dk, self.dk_squared = (_Rows(like, c, b, H, K) for _ in range(3))
            self.dv, self.dbeta = (_Rows(like, c, b, H, V) for _ in range(2))
            self.flow, self.scratch = like.new_empty(2, 2, c, b, K, V)
            self.flow_slots = self.flow.unbind(1)
            self.dM, self.dI = self.flow.view(2, -1, K, V)
            self.mu, self.inverse = self.scratch.view(2, -1, K, V)

    def scan(self, alpha: Tensor) -> None:
        """x_t += alpha_t x_{t-1} for M and I, from the state before the first token; alpha is [c, b, 1, 1].

        One operation a token. Where that is too little work for one operation, parts of the chunk are scanned side
        by side, and what is left of the state before each part is added afterwards.
        """
        if self.num_parts == 1:
            for before, after, alpha_t in zip(self.slots, self.slots[1:], alpha.unbind(0), strict=False):
                after.addcmul_(before, alpha_t)
            return
        alpha = alpha.unflatten(0, (self.num_parts, -1))
        for before, after, alpha_t in zip(self.steps, self.steps[1:], alpha.unbind(1)[1:], strict=False):
            after.addcmul_(before, alpha_t)
        for end, part, decay in zip(self.ends, self.parts, alpha.cumprod(1).unbind(0), strict=True):
            part.addcmul_(end, decay)


class _Block:
    """The arguments of some of the batch rows, cut into chunks of tokens."""

    def __init__(
        self,
        rows: slice,
        lengths: list[int],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        g: Tensor,
        importance_prior: Tensor,
        scale: float,
        dtype: torch.dtype,
    ) -> None:
        num_rows, T, H = g[rows].shape
        self.b = num_rows * H
        self.rows, self.lengths, self.scale = rows, lengths, scale
        self.q, self.k, self.v, self.beta = (self.split(x) for x in (q, k, v, beta))
        # [T, b] and [b]
        self.alpha = g[rows].to(dtype).exp().transpose(0, 1).reshape(T, self.b)
        self.prior = importance_prior.to(dtype).repeat(num_rows)
        # What forgetting gives back to the importance: [c * b, 1, 1] for each chunk.
        given_back = ((1 - self.alpha) * self.prior).reshape(-1, 1, 1)
        self.given_back = given_back.split([c * self.b for c in lengths])
        # [c, b, 1, 1] for each chunk.
        self.alphas = self.alpha[..., None, None].split(lengths)

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """The chunks of [B, T, ...]."""
        return x[self.rows].split(self.lengths, dim=1)

    def fill(self, n: int, start: Tensor, w: _Workspace) -> None:
        """Computes the states of chunk n: Eq. 25-26, for both states and all heads at once."""
        # First of all: `start` may be the end of the chunk before, in this same workspace.
        w.slots[0].copy_(start)
        w.q.load(self.q[n]).mul_(self.scale)
        k, v, beta = w.k.load(self.k[n]), w.v.load(self.v[n]), w.beta.load(self.beta[n])
        torch.mul(k, k, out=w.k_squared.rows)
        torch.mul(w.k.columns, v, out=w.M)
        torch.mul(w.k_squared.columns, beta, out=w.I).add_(self.given_back[n])
        w.scan(self.alphas[n])


def split_starts(kept: Tensor, plan: Plan, B: int, T: int, H: int, K: int, V: int) -> list[Tensor]:
    """The chunk states of each block of `forward`'s last result: [chunks, 2, b, K, V], M before I."""
    num_chunks = len(plan.lengths(T))
    sizes = [(rows.stop - rows.start) * H for rows in plan.blocks(B)]
    parts = kept.split([num_chunks * 2 * b * K * V for b in sizes])
    return [part.view(num_chunks, 2, b, K, V) for part, b in zip(parts, sizes, strict=True)]


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor,
    importance_prior: Tensor,
    mean0: Tensor | None,
    importance0: Tensor | None,
    scale: float,
    plan: Plan,
    save: bool,
    output_final_state: bool,
    output_variance: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor]:
    """o, variance, final mean and importance, and the states that `backward` starts from, if `save`."""
    (B, T, H, K), V = q.shape, v.shape[-1]
    like = q.new_empty(0, dtype=compute_dtype(q.dtype))
    lengths = plan.lengths(T)
    workspace = cache(partial(_Workspace, like, H=H, K=K, V=V, with_gradients=False))
    o = v.new_empty(B, T, H, V)
    variance = v.new_empty(B, T, H, V) if output_variance else None
    mean = importance = None
    if output_final_state:
        mean, importance = like.new_empty(B, H, K, V), like.new_empty(B, H, K, V)

    # The state before each chunk of each block, one block after the other; without a backward, nothing.
    kept = like.new_empty(len(lengths) * 2 * B * H * K * V if save else 0)
    all_starts = split_starts(kept, plan, B, T, H, K, V) if save else None
    for i, rows in enumerate(plan.blocks(B)):
        block = _Block(rows, lengths, q, k, v, beta, g, importance_prior, scale, like.dtype)
        # Without a backward, the state before the present chunk only.
        starts = like.new_empty(1, 2, block.b, K, V) if all_starts is None else all_starts[i]
        end = torch.empty_like(starts[0])
        start_M, start_I = starts[0].view(2, -1, H, K, V)
        if mean0 is None or importance0 is None:
            start_M.zero_()
            start_I.copy_(importance_prior[:, None, None].expand_as(start_I))
        else:
            start_I.copy_(importance0[rows])
            start_M.copy_(mean0[rows]).mul_(start_I)
        outputs = block.split(o)
        variances = None if variance is None else block.split(variance)

        start = starts[0]
        for n, c in enumerate(lengths):
            w = workspace(c, block.b)
            block.fill(n, start, w)
            if n + 1 < len(lengths):
                start = starts[n + 1] if save else start
                start.copy_(w.slots[-1])
            else:
                end.copy_(w.slots[-1])
            mu = torch.div(w.M, w.I, out=w.M)
            _sum_over_keys(w.q.rows, mu, w.o.rows, mu)
            outputs[n].copy_(w.o.batch_major)
            if variances is not None:
                torch.reciprocal(w.I, out=w.I)
                _sum_over_keys(w.q.rows.square(), w.I, w.o.rows, w.I)
                variances[n].copy_(w.o.batch_major)

        if mean is not None and importance is not None:
            end_M, end_I = end.view(2, -1, H, K, V)
            torch.div(end_M, end_I, out=mean[rows])
            importance[rows] = end_I
    return o, variance, mean, importance, kept


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor,
    prior: Tensor,
    mean0: Tensor | None,
    importance0: Tensor | None,
    mean: Tensor | None,
    importance: Tensor | None,
    kept: Tensor,
    d_o: Tensor | None,
    d_variance: Tensor | None,
    d_mean: Tensor | None,
    d_importance: Tensor | None,
    scale: float,
    plan: Plan,
    needs_beta: bool,
    needs_alpha: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of the first eight arguments of `forward`; `kept` is its last result, computed again if it is empty.

    The gradients of beta, and of g and the prior, are undefined unless `needs_beta`, `needs_alpha`.
    """
    (B, T, H, K), V = q.shape, v.shape[-1]
    lengths = plan.lengths(T)
    if kept.numel() == 0:
        kept = forward(q, k, v, beta, g, prior, mean0, importance0, scale, plan, True, False, False)[-1]
    all_starts = split_starts(kept, plan, B, T, H, K, V)
    like = all_starts[0]
    workspace = cache(partial(_Workspace, like, H=H, K=K, V=V, with_gradients=True))
    dq, dk, dv, dbeta, dg = (x.new_empty(x.shape) for x in (q, k, v, beta, g))
    dprior = like.new_zeros(H)
    dmean0 = dimportance0 = None
    if mean0 is not None:
        dmean0, dimportance0 = like.new_empty(B, H, K, V), like.new_empty(B, H, K, V)

    for rows, starts in zip(plan.blocks(B), all_starts, strict=True):
        block = _Block(rows, lengths, q, k, v, beta, g, prior, scale, like.dtype)
        dq_, dk_, dv_, dbeta_ = (block.split(x) for x in (dq, dk, dv, dbeta))
        do_ = None if d_o is None else block.split(d_o)
        dvariance_ = None if d_variance is None else block.split(d_variance)
        # <dM, M_{t-1}> and <dI, I_{t-1}>, and the gradient of what is given back, per token.
        d_alpha, d_given_back = like.new_empty(2, T, block.b), like.new_empty(T, block.b)
        d_alpha_, d_given_back_ = d_alpha.split(lengths, dim=1), d_given_back.split(lengths)

        # dL/dM at the end of the chunk and, here and below, MINUS dL/dI, since dI = -dM * mu.
        carry = like.new_zeros(2, block.b, K, V)
        carry_M, carry_I = carry.view(2, -1, H, K, V)
        if d_mean is not None and mean is not None and importance is not None:
            torch.div(d_mean[rows], importance[rows], out=carry_M)
            torch.mul(carry_M, mean[rows], out=carry_I)
        if d_importance is not None:
            carry_I.sub_(d_importance[rows])

        for n in reversed(range(len(lengths))):
            w = workspace(lengths[n], block.b)
            block.fill(n, starts[n], w)
            mu, inverse = w.mu, torch.reciprocal(w.I, out=w.inverse)
            if do_ is not None:
                do = w.o.load(do_[n])
                torch.mul(w.M, inverse, out=mu)
                _sum_over_values(do, mu, w.dq.rows, w.dM)
                torch.mul(inverse, w.q.columns, out=w.dM).mul_(do)
                torch.mul(w.dM, mu, out=w.dI)
            else:
                w.dq.rows.zero_()
                w.flow.zero_()
            if dvariance_ is not None:
                dvariance = w.o.load(dvariance_[n])
                _sum_over_values(dvariance, inverse, w.dk.rows, mu)
                w.dq.rows.addcmul_(w.dk.rows, w.q.rows, value=2)
                w.dI.add_(inverse.mul_(w.q.columns).square_().mul_(dvariance))

            # What flows back from later tokens.
            slots, alphas = w.flow_slots, block.alphas[n].unbind(0)
            slots[-1].add_(carry)
            for t in range(len(alphas) - 1, 0, -1):
                slots[t - 1].addcmul_(slots[t], alphas[t])
            torch.mul(slots[0], alphas[0], out=carry)

            _sum_over_values(w.v.rows, w.dM, w.dk.rows, mu)
            _sum_over_values(w.beta.rows, w.dI, w.dk_squared.rows, mu)
            _sum_over_keys(w.k.rows, w.dM, w.dv.rows, mu)
            w.dk.rows.addcmul_(w.dk_squared.rows, w.k.rows, value=-2)
            torch.mul(w.dq.batch_major, scale, out=dq_[n])
            dk_[n].copy_(w.dk.batch_major)
            dv_[n].copy_(w.dv.batch_major)
            if needs_beta:
                _sum_over_keys(w.k_squared.rows, w.dI, w.dbeta.rows, mu)
                # Not neg: that cannot round to a lower precision on the way out.
                torch.mul(w.dbeta.batch_major, -1, out=dbeta_[n])
            if needs_alpha:
                torch.mul(w.flow, w.before, out=w.scratch)
                torch.sum(w.scratch, (3, 4), out=d_alpha_[n])
                torch.sum(w.flow[1], (2, 3), out=d_given_back_[n])

        # alpha multiplies M_{t-1} and I_{t-1} - I_prior.
        d_alpha = (d_alpha[0] - d_alpha[1]).addcmul_(d_given_back, block.prior)
        dg[rows] = d_alpha.mul_(block.alpha).reshape(T, -1, H).transpose(0, 1).to(dg.dtype)
        dprior_rows = ((block.alpha - 1) * d_given_back).sum(0)
        if mean0 is None or importance0 is None or dmean0 is None or dimportance0 is None:
            dprior_rows -= carry[1].sum((1, 2))
        else:
            torch.mul(carry_M, importance0[rows], out=dmean0[rows])
            torch.mul(carry_M, mean0[rows], out=dimportance0[rows]).sub_(carry_I)
        dprior += dprior_rows.reshape(-1, H).sum(0)

    return dq, dk, dv, dbeta, dg, dprior, dmean0, dimportance0
