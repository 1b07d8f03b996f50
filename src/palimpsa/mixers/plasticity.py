"""The observation precision beta_t of Palimpsa's layers: how strongly a token consolidates each row of the memory."""

# B batch, T time, D model width, H heads, V value dim

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsa.mixers.base import checked_range
from palimpsa.mixers.layers import at_least_fp32, softplus_inverse

# As published, one u_t for all rows of a head, the same beta for every token.
PLASTICITY_KINDS = ("vector", "scalar", "constant")


class Plasticity(nn.Module):
    """a_t softplus(s) sigmoid(W_up W_down x_t): the observation precision beta_t [B, T, H, V], fp32, >= 0.

    Takes x [B, T, D], the input gate a [B, T, H], and W_down x where it has been computed already.

    initial_range: (low, high) of the log-uniform draw of softplus(s); None: s starts at 1.
    per_row: a sigmoid for each of the V rows; False: one for all rows of a head.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        head_v_dim: int,
        initial_range: tuple[float, float] | None = None,
        per_row: bool = True,
    ) -> None:
        super().__init__()
        rank = max(1, d_model // 16)
        self.num_heads = num_heads
        self.head_v_dim = head_v_dim
        self.initial_range = initial_range
        self.down = nn.Linear(d_model, rank, bias=False)
        self.up = nn.Linear(rank, num_heads * (head_v_dim if per_row else 1), bias=False)
        self.scale = nn.Parameter(torch.ones(num_heads))
        self.reset_parameters()

    @property
    def input_projections(self) -> tuple[nn.Linear, ...]:
        """Projections of x that a mixer may compute together with its own: W_down."""
        return (self.down,)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws s anew where there is an `initial_range`; without a generator from torch's own."""
        if self.initial_range is not None:
            low, high = map(math.log, self.initial_range)
            self.scale.uniform_(low, high, generator=generator)
            self.scale.copy_(softplus_inverse(self.scale.exp()))

    def forward(self, x: Tensor, input_gate: Tensor, projected: Tensor | None = None) -> Tensor:
        projected = self.down(x) if projected is None else projected
        gate = torch.sigmoid(at_least_fp32(self.up(projected))).unflatten(-1, (self.num_heads, -1))
        # The small product first: the gradient of s is then a sum over it, and not over all of beta.
        beta = (input_gate * F.softplus(at_least_fp32(self.scale)))[..., None] * gate
        return beta.expand(*beta.shape[:-1], self.head_v_dim)


class ConstantPlasticity(nn.Module):
    """softplus(s) / 2 sigmoid(c): an observation precision that is the same for every token, fp32, [B, T, H, V].

    s [H] starts at 1 and c [H * V] at 0: where `Plasticity` starts on average behind an input gate of 1/2.
    """

    input_projections: tuple[nn.Linear, ...] = ()

    def __init__(self, num_heads: int, head_v_dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(num_heads))
        # Flat: vectors do not decay.
        self.logit = nn.Parameter(torch.zeros(num_heads * head_v_dim))

    def forward(self, x: Tensor, input_gate: Tensor) -> Tensor:
        rows = torch.sigmoid(at_least_fp32(self.logit)).unflatten(0, (len(self.scale), -1))
        beta = F.softplus(at_least_fp32(self.scale))[:, None] / 2 * rows
        return beta.expand(*x.shape[:2], *beta.shape)


def make_plasticity(
    kind: str,
    d_model: int,
    num_heads: int,
    head_v_dim: int,
    initial_range: tuple[float, float] | None,
    *,
    metaplastic: bool,
) -> Plasticity | ConstantPlasticity | None:
    """A plasticity of one of PLASTICITY_KINDS, or None for a mixer that is not metaplastic.

    Raises:
        ValueError: for another kind, an initial_range that is none, or one of a constant plasticity.
    """
    if kind not in PLASTICITY_KINDS:
        raise ValueError(f"plasticity: got {kind!r}, expected one of {', '.join(PLASTICITY_KINDS)}")
    initial_range = checked_range("initial_plasticity", initial_range, above_zero=True)
    if not metaplastic:
        return None
    if kind != "constant":
        return Plasticity(d_model, num_heads, head_v_dim, initial_range, per_row=kind == "vector")
    if initial_range is not None:
        raise ValueError(f"initial_plasticity: got {list(initial_range)}, expected null with plasticity: constant")
    return ConstantPlasticity(num_heads, head_v_dim)
