"""One token of the recurrence in plain PyTorch, in place: the CPU's decoding path, and that of float64."""

# B batch, H heads, K key dim, V value dim
import torch
from torch import Tensor

from .validation import compute_dtype


@torch.no_grad()
def step_in_place(
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
    """o and the variance [B, H, V] of `palimpsa_step`; overwrites mean and importance [B, H, K, V]."""
    out_dtype, dtype = v.dtype, compute_dtype(q.dtype)
    q, k, v = q.to(dtype), k.to(dtype)[..., :, None], v.to(dtype)[..., None, :]
    alpha = g.to(dtype).exp()[..., None, None]
    prior = importance_prior.to(dtype)[:, None, None]

    mean.mul_(importance).mul_(alpha).addcmul_(k, v)
    importance.mul_(alpha).add_((1 - alpha) * prior)
    if beta is not None:
        importance.addcmul_(k.square(), beta.to(dtype)[..., None, :])
    mean.div_(importance)

    o = scale * (q[..., None, :] @ mean).squeeze(-2)
    variance = None
    if output_variance:
        variance = scale**2 * (q.square()[..., None, :] @ importance.reciprocal()).squeeze(-2)
        variance = variance.to(out_dtype)
    return o.to(out_dtype), variance
