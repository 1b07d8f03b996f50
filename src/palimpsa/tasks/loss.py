"""Cross-entropy and who was right: one Triton kernel on a GPU, PyTorch's elsewhere."""

# N rows, V classes

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from palimpsa.kernels.transforms import is_mapped
from palimpsa.kernels.validation import under_transforms
from palimpsa.mixers.layers import at_least_fp32

_ROWS_AT_A_TIME = 1_024


class CrossEntropy(NamedTuple):
    """mean: over all rows, nats, a scalar in fp32 (fp64 of such logits), for autograd to follow.

    is_right [N] bool: the largest logit is the label's, and the loss a number.
    """

    mean: Tensor
    is_right: Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> CrossEntropy:
    """Of logits [N, V] at labels [N] int64 in [0, V); differentiable once."""
    # torch.func has no rule for the kernel.
    if row_kernel_takes(logits) and not under_transforms():
        return CrossEntropy(*_RowKernel.apply(logits, labels))
    mean = F.cross_entropy(at_least_fp32(logits), labels)
    largest, answers = logits.detach().max(dim=1)
    # An infinite logit, or none that is finite, makes the loss NaN.
    return CrossEntropy(mean, (answers == labels) & largest.isfinite())


def row_kernel_takes(logits: Tensor) -> bool:
    """Whether kernels/gpu/cross_entropy.py computes the losses of logits [N, V]."""
    if not logits.is_cuda or logits.dtype == torch.float64:
        return False
    # Here and not above: Triton.
    from palimpsa.kernels.gpu.cross_entropy import MAX_CLASSES

    return logits.shape[1] <= MAX_CLASSES


@torch.no_grad()
def row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """[N] fp32 (fp64 of such logits), nats, of logits [N, V] at labels [N] int64 in [0, V); for evaluation."""
    if row_kernel_takes(logits):
        from palimpsa.kernels.gpu.cross_entropy import row_results

        return row_results(logits, labels, with_gradient=False)[0]
    # Some rows at a time: in fp32 all of them may take gigabytes.
    parts = zip(logits.split(_ROWS_AT_A_TIME), labels.split(_ROWS_AT_A_TIME), strict=True)
    return torch.cat([F.cross_entropy(at_least_fp32(rows), at, reduction="none") for rows, at in parts])


class _RowKernel(torch.autograd.Function):
    """The kernel reads the logits once, and makes their gradient on the way."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        from palimpsa.kernels.gpu.cross_entropy import row_results

        losses, is_right, gradient = row_results(logits, labels, with_gradient=ctx.needs_input_grad[0])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(is_right)
        return losses.mean(), is_right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return times_upstream(ctx.saved_tensors[0], gradients[0]), None


def times_upstream(gradient: Tensor, upstream: Tensor) -> Tensor:
    """A loss's own gradient times the scalar that comes from what was made of the loss."""
    # Times one, it would be read and written once more: of 16,384 rows of 8,192 classes 268 MB each way.
    is_unit = not is_mapped(upstream) and upstream.data_ptr() == unit_gradient(upstream.device).data_ptr()
    return gradient if is_unit else gradient * upstream


@functools.cache
def unit_gradient(device: torch.device) -> Tensor:
    """A one in fp32: `loss.backward(unit_gradient(device))` is `loss.backward()`, and known to be it."""
    return torch.ones((), device=device)
