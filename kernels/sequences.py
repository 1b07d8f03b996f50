"""Sequences of different lengths packed along T: one call per sequence, joined into one differentiable result."""

# T time, H heads, K key dim, V value dim, N sequences
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from .types import PalimpsaOutput, PalimpsaState
from .validation import sequence_bounds


def linked(x: Tensor, inputs: Sequence[Tensor | None]) -> Tensor:
    """x, unchanged, with gradients of zeros for each of `inputs`: the result of no tokens is a function of them too."""
    # Empty slices: nothing that an input holds, NaN neither, comes into the sum.
    return x + sum(y.reshape(-1)[:0].sum().to(x.dtype) for y in inputs if y is not None)


def map_sequences(
    run: Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor, PalimpsaState | None], PalimpsaOutput],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor,
    initial_state: PalimpsaState | None,
    cu_seqlens: Tensor,
) -> PalimpsaOutput:
    """Applies `run` to each of the N sequences of a batch of 1. Exact, and no token of padding."""
    bounds = sequence_bounds(cu_seqlens, q.shape[1])
    outputs = []
    for n, (start, end) in enumerate(pairwise(bounds)):
        part = slice(start, end)
        state = None
        if initial_state is not None:
            state = PalimpsaState(initial_state.mean[n : n + 1], initial_state.importance[n : n + 1])
        beta_n = None if beta is None else beta[:, part]
        outputs.append(run(q[:, part], k[:, part], v[:, part], beta_n, g[:, part], state))

    o = torch.cat([out.o for out in outputs], dim=1)
    variances = [out.variance for out in outputs if out.variance is not None]
    states = [out.final_state for out in outputs if out.final_state is not None]
    return PalimpsaOutput(
        o,
        torch.cat(variances, dim=1) if variances else None,
        PalimpsaState(torch.cat([s.mean for s in states]), torch.cat([s.importance for s in states]))
        if states
        else None,
    )
