"""AdamW: which parameters decay, the learning rate at each step, and clipping."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from palimpsa.mixers.parameters import MASTER_DTYPE


def make_optimizer(model: nn.Module, config: Any, device: torch.device) -> AdamW:
    """AdamW with the peak rate and betas of the `optimizer` group.

    Raises:
        ValueError: see `weight_decay_groups`.
    """
    return AdamW(
        weight_decay_groups(model, config.weight_decay, decay_all=config.decay_all),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        # The other one launches a dozen kernels a tensor, or copies lists of them to the GPU.
        fused=device.type == "cuda",
    )


def make_schedule(
    optimizer: AdamW, *, schedule: str, warmup_steps: int, max_steps: int, final_share: float
) -> LambdaLR:
    """The learning rate of every step: see `learning_rate_factor`."""
    return LambdaLR(
        optimizer,
        partial(
            learning_rate_factor,
            schedule=schedule,
            warmup_steps=warmup_steps,
            max_steps=max_steps,
            final_share=final_share,
        ),
    )


def learning_rate_factor(
    step: int, *, schedule: str, warmup_steps: int, max_steps: int, final_share: float = 0.0
) -> float:
    """The share of the peak learning rate at a step: a linear warm-up, then "constant", or "cosine" to `final_share`.

    >>> learning_rate_factor(0, schedule="cosine", warmup_steps=2, max_steps=6)
    0.5
    >>> round(learning_rate_factor(6, schedule="cosine", warmup_steps=2, max_steps=6, final_share=0.1), 3)
    0.1
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))


def weight_decay_groups(model: nn.Module, weight_decay: float, *, decay_all: bool = False) -> list[dict[str, Any]]:
    """AdamW's parameter groups: matrices, taps and embeddings decay; vectors do not (A, d's bias, D, s, norms, biases).

    decay_all: they do too.

    Raises:
        ValueError: for a trained parameter that is not fp32: bf16 keeps 8 bits, and AdamW's steps on it round to
            nothing.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        if parameter.dtype != MASTER_DTYPE:
            raise ValueError(
                f"{name}: got a trained parameter of {parameter.dtype}, expected {MASTER_DTYPE} master weights; "
                "lower precision is autocast's business (trainer.precision=bf16-mixed)"
            )
    return [
        {"params": [p for p in trained.values() if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained.values() if p.ndim < 2], "weight_decay": weight_decay if decay_all else 0.0},
    ]


def clip_gradients(optimizer: Any, max_norm: float, look: Callable[[Tensor], None] | None = None) -> Tensor:
    """Scales a torch optimiser's gradients in place so that their global L2 norm is at most `max_norm`.

    Args:
        look: called with their norm before: one that is no number would scale all of them to what is none.

    Returns:
        what their norm was.
    """
    # Lightning's own refuses a fused optimiser, which only in fp16 would see scaled gradients.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    # Of sharded gradients, that of all parts.
    whole = getattr(norm, "full_tensor", lambda: norm)()
    if look is not None:
        look(whole)
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return whole
