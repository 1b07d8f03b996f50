"""The cross-entropy of a linear layer's logits, of which a few rows exist at a time: the loss of a language model.

All logits of a step at once are its largest tensors: of 131,072 tokens and 32,000 classes 8.4 GB in bf16, and as much
for their gradient.
"""

# N tokens, D width, V classes, n tokens of a chunk

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from palimpsa.kernels.validation import under_transforms
from palimpsa.mixers.layers import at_least_fp32
from palimpsa.tasks.loss import row_kernel_takes, times_upstream

IGNORE_INDEX = -100
# Their logits in bf16, and the gradient of these, are 131 MB each with 32,000 classes.
ROWS_PER_CHUNK = 2_048


class LinearCrossEntropy(NamedTuple):
    """mean: the sum of the losses by `num_targets`, nats, a scalar in fp32 (fp64 of fp64), for autograd to follow.

    losses [N] in the same dtype: of each token, nats, 0 where it has no target; not differentiable.
    """

    mean: Tensor
    losses: Tensor


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    rows_per_chunk: int = ROWS_PER_CHUNK,
    ignore_index: int = IGNORE_INDEX,
    num_targets: float | Tensor | None = None,
) -> LinearCrossEntropy:
    """The cross-entropy of the logits `hidden weight^T` at `labels`, without ever holding all of them.

    mean = sum over targets i of [logsumexp(W h_i) - (W h_i)_label_i] / num_targets

    Where gradients are wanted they are made chunk by chunk in the forward pass, that of the weight summed in fp32; the
    backward pass scales them. Logits are in autocast's dtype where there is autocast, as those of F.linear are.
    Differentiable once, and backwards.

    Args:
        hidden: [N, D], of floating point.
        weight: [V, D], tied to an embedding or not; in the dtype of `hidden`, or under autocast in any.
        labels: [N] int64 in [0, V), or `ignore_index`: no target.
        rows_per_chunk: n >= 1, tokens whose logits exist at a time.
        ignore_index: the label that is none.
        num_targets: what the sum is divided by, > 0. None: how many targets there are in `labels`, or 1 where there are
            none, so that nothing is learnt from them. A part of a step (a micro-batch, say) gives the number of the
            whole step: the losses of the parts, and their gradients, then add up to those of the whole.

    Raises:
        ValueError: for shapes or dtypes that do not fit, and on a CPU for labels out of range. On a GPU, where to look
            would be to wait, such a label makes the loss NaN.
        RuntimeError: under torch.func's transforms, and for a second derivative.
    """
    _check(hidden, weight, labels, rows_per_chunk, ignore_index)
    device = hidden.device.type
    # As autocast has it, which leaves fp64 as it is.
    is_cast = torch.is_autocast_enabled(device) and hidden.dtype != torch.float64
    dtype = torch.get_autocast_dtype(device) if is_cast else hidden.dtype
    if not is_cast and weight.dtype != dtype:
        raise ValueError(f"weight: got {weight.dtype}, expected {dtype}, the dtype of hidden")
    if under_transforms():
        raise RuntimeError("linear_cross_entropy: torch.func has no rule for it, expected autograd")
    total_dtype = torch.promote_types(hidden.dtype, torch.float32)
    if num_targets is None:
        num_targets = (labels != ignore_index).sum().clamp(min=1)
    if not isinstance(num_targets, Tensor):
        # Filled there: a copy to the GPU cannot be captured.
        num_targets = torch.full((), num_targets, dtype=total_dtype, device=hidden.device)
    divisor = num_targets.to(total_dtype)
    wanted = [torch.is_grad_enabled() and x.requires_grad for x in (hidden, weight)]
    return LinearCrossEntropy(
        *_Chunks.apply(hidden, weight, labels, divisor, dtype, rows_per_chunk, ignore_index, wanted)
    )


def _check(hidden: Tensor, weight: Tensor, labels: Tensor, rows_per_chunk: int, ignore_index: int) -> None:
    if hidden.ndim != 2 or not hidden.is_floating_point():
        raise ValueError(f"hidden: got {hidden.dtype} {list(hidden.shape)}, expected floating point [N, D]")
    N, D = hidden.shape
    if weight.ndim != 2 or weight.shape[1] != D or not weight.is_floating_point():
        raise ValueError(f"weight: got {weight.dtype} {list(weight.shape)}, expected floating point [V, {D}]")
    if labels.shape != (N,) or labels.dtype != torch.int64:
        raise ValueError(f"labels: got {labels.dtype} {list(labels.shape)}, expected torch.int64 [{N}]")
    if rows_per_chunk < 1:
        raise ValueError(f"rows_per_chunk: got {rows_per_chunk}, expected >= 1")
    if labels.device.type == "cpu":
        V = len(weight)
        wrong = ((labels < 0) | (labels >= V)) & (labels != ignore_index)
        if wrong.any():
            at = int(wrong.nonzero()[0])
            raise ValueError(
                f"labels: got {int(labels[at])} at {at}, expected one of the {V} classes or {ignore_index} for none"
            )


class _Chunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        divisor: Tensor,
        dtype: torch.dtype,
        rows_per_chunk: int,
        ignore_index: int,
        wanted: list[bool],
    ) -> tuple[Tensor, Tensor]:
        losses = torch.empty(len(hidden), dtype=divisor.dtype, device=hidden.device)
        hidden_gradient = torch.empty_like(hidden) if wanted[0] else None
        weight_gradient = torch.zeros_like(weight, dtype=divisor.dtype) if wanted[1] else None
        # Whose dtypes are chosen here one by one.
        with torch.autocast(hidden.device.type, enabled=False):
            narrow = weight.to(dtype)
            for start in range(0, len(hidden), rows_per_chunk):
                chunk = slice(start, start + rows_per_chunk)
                x = hidden[chunk].to(dtype)
                losses[chunk], gradient = _losses_and_gradient(
                    x @ narrow.T, labels[chunk], ignore_index, with_gradient=any(wanted)
                )
                if gradient is None:
                    continue
                if hidden_gradient is not None:
                    hidden_gradient[chunk] = _product(gradient, narrow).div_(divisor)
                if weight_gradient is not None:
                    weight_gradient += _product(gradient.T, x)
                # Or it would lie beside the logits of the next chunk.
                del gradient
        if weight_gradient is not None:
            weight_gradient = weight_gradient.div_(divisor).to(weight.dtype)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.mark_non_differentiable(losses)
        return losses.sum() / divisor, losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            # What it returns does not depend on its inputs for autograd: a second derivative would lack a part.
            raise RuntimeError("linear_cross_entropy: differentiable once, and backwards: got create_graph=True")
        saved = [None if x is None else times_upstream(x, gradients[0]) for x in ctx.saved_tensors]
        return (*saved, *[None] * 6)


def _losses_and_gradient(
    logits: Tensor, labels: Tensor, ignore_index: int, *, with_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """The losses [n] in fp32 or fp64, and the gradient [n, V] of their sum in the dtype of the logits [n, V]."""
    if row_kernel_takes(logits):
        from palimpsa.kernels.gpu.cross_entropy import row_results

        results = row_results(logits, labels, with_gradient=with_gradient, ignore_index=ignore_index, share=1.0)
        return results.losses, results.gradient
    log_probabilities = at_least_fp32(logits).log_softmax(1)
    losses = F.nll_loss(log_probabilities, labels, ignore_index=ignore_index, reduction="none")
    if not with_gradient:
        return losses, None
    is_target = (labels != ignore_index)[:, None]
    gradient = log_probabilities.exp_()
    gradient.scatter_add_(1, torch.where(is_target, labels[:, None], 0), gradient.new_full((len(labels), 1), -1.0))
    return losses, gradient.masked_fill_(~is_target, 0.0).to(logits.dtype)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b in fp32 at least: of half precision, what each chunk adds to a sum would be rounded to it."""
    if a.is_cuda and a.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(a, b, out_dtype=torch.float32)
    return at_least_fp32(a) @ at_least_fp32(b)
