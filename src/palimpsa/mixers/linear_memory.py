"""What a memory is given when each of its entries decays by itself: enough to say which token an output is made of."""

# B batch, T time, H heads, K key dim, V value dim, G precisions a head

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from palimpsa.kernels import PalimpsaState


class LinearMemory(NamedTuple):
    """The operands of M_t = alpha_t M_{t-1} + k_t (x) v_t, read as o_t = scale q_t (M_t / I_t).

    q, k: [B, T, H, K]. v: [B, T, H, V]. log_decay: [B, T, H], log alpha_t, or [B, T, H, K], one a key channel. beta:
    [B, T, H, G], with which I_t follows Eq. 25 of arXiv 2602.09075; None: nothing adds to the importance.
    importance_prior: [H]; None: there is no importance, I_t = 1. state: the memory before the first token; None: empty.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    log_decay: Tensor
    scale: float
    beta: Tensor | None = None
    importance_prior: Tensor | None = None
    state: PalimpsaState | None = None
