"""Cross-entropy, its gradient and who was right in one Triton kernel, which reads the logits from memory once.

Computed one after the other they are three passes: of a step of 65,536 tokens 16,384 are queries with 8,192 logits
each, 268 MB.
"""

# N rows, V classes

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .primitives import next_power_of_2

# A program holds all classes of a row: 64 a thread.
MAX_CLASSES = 2**16
PER_THREAD = 32
LOG2_E = tl.constexpr(math.log2(math.e))


class RowResults(NamedTuple):
    """losses [N] fp32, nats. is_right [N] bool: the label is the first class with the largest logit, the loss a number.

    gradient: [N, V] of the mean loss or of what `share` says, in the logits' dtype, or None.
    """

    losses: Tensor
    is_right: Tensor
    gradient: Tensor | None


# Of labels one is loaded: those of a part of the rows may lie anywhere.
@triton.jit(do_not_specialize_on_alignment=["labels"])
def _loss_kernel(
    logits, labels, losses, is_right, gradient, share, V: tl.constexpr, TILE: tl.constexpr, HAS_GRADIENT: tl.constexpr,
    IGNORE_INDEX: tl.constexpr,
):  # fmt: skip
    """One row. A GPU has time for ten instructions a logit before it waits for them more than for memory."""
    row = tl.program_id(0).to(tl.int64)
    classes = tl.arange(0, TILE)
    label = tl.load(labels + row)
    if IGNORE_INDEX is not None:
        is_target = label != IGNORE_INDEX
        # Nobody has looked at the labels, which would take a wait: one that is no class reads nothing, and tells.
        is_class = (label >= 0) & (label < V)
        label = tl.where(is_class, label, 0)
        factor = tl.where(is_class, 1.0, float("nan"))
        share *= factor
    wanted = tl.load(logits + row * V + label).to(tl.float32)
    if TILE == V:
        x = tl.load(logits + row * V + classes).to(tl.float32)
    else:
        x = tl.load(logits + row * V + classes, mask=classes < V, other=float("-inf")).to(tl.float32)
    largest = tl.max(x, 0)
    # In powers of two, which is what a GPU computes.
    weights = tl.exp2((x - largest) * LOG2_E)
    total = tl.sum(weights, 0)
    loss = tl.log(total) + (largest - wanted)
    # Where the loss is NaN, so is the total.
    right = (wanted == largest) & (total == total)
    if IGNORE_INDEX is not None:
        loss = tl.where(is_target, loss * factor, 0.0)
        right &= is_class
    tl.store(losses + row, loss)
    if right:
        # Of equal logits argmax takes the first.
        right = tl.min(tl.where(x == largest, classes, TILE), 0) == label
    tl.store(is_right + row, right)
    if HAS_GRADIENT:
        scale = share / total
        row_gradient = weights * scale
        label_gradient = tl.exp2((wanted - largest) * LOG2_E) * scale - share
        if IGNORE_INDEX is not None:
            row_gradient = tl.where(is_target, row_gradient, 0.0)
            label_gradient = tl.where(is_target, label_gradient, 0.0)
        tl.store(gradient + row * V + classes, row_gradient, mask=classes < V)
        # Over what another thread has just stored.
        tl.debug_barrier()
        tl.store(gradient + row * V + label, label_gradient)


def row_results(
    logits: Tensor,
    labels: Tensor,
    *,
    with_gradient: bool,
    ignore_index: int | None = None,
    share: float | None = None,
) -> RowResults:
    """Of logits [N, V], fp32 or half precision, V <= MAX_CLASSES, at labels [N] int64 in [0, V); on a GPU.

    Args:
        with_gradient: whether to make the gradient.
        ignore_index: a label that is no target: its loss and gradient are 0, and it is not right. Others that are no
            class then make both NaN; with None they read what is not theirs.
        share: what the gradient has of each row's loss; None: 1 / N, that of the mean over all rows.
    """
    N, V = logits.shape
    logits, labels = logits.contiguous(), labels.contiguous()
    losses = torch.empty(N, dtype=torch.float32, device=logits.device)
    is_right = torch.empty(N, dtype=torch.bool, device=logits.device)
    gradient = torch.empty_like(logits) if with_gradient else None
    if N:
        tile = next_power_of_2(V)
        launch: Any = _loss_kernel[(N,)]
        # Triton launches on the current device.
        with torch.cuda.device_of(logits):
            launch(
                logits, labels, losses, is_right, logits if gradient is None else gradient,
                1 / N if share is None else share, V, tile, HAS_GRADIENT=with_gradient, IGNORE_INDEX=ignore_index,
                num_warps=min(32, max(1, tile // PER_THREAD // 32)),
            )  # fmt: skip
    return RowResults(losses, is_right, gradient)
