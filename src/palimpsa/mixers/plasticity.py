"""The observation precision beta_t of Palimpsa's layers: how strongly a token consolidates the rows of the memory."""

# B batch, T time, D model width, H heads, V value dim, G precisions a head

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsa.mixers.base import checked_range
from palimpsa.mixers.layers import at_least_fp32, softplus_inverse

PLASTICITY_KINDS = ("vector", "grouped", "scalar", "constant")
UP_INITS = ("normal", "uniform")


class Plasticity(nn.Module):
    """strength a_t softplus(s) sigmoid(W_up W_down x_t): the observation precision beta_t [B, T, H, G], fp32, >= 0.

    Takes x [B, T, D], the input gate a [B, T, H], and W_down x where it has been computed already.

    num_precisions: G, sigmoids a head.
    initial_range: (low, high) of the log-uniform draw of softplus(s); None: s starts at 1.
    strength: a number in [0, 1], of which models with the same weights may have different ones: 0 is the model without
        metaplasticity, 1 the one that the weights say. `set_strength` sets it later.
    up_init: W_up starts as all matrices do, "normal", or "uniform" in +-rank^-1/2.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_precisions: int,
        initial_range: tuple[float, float] | None = None,
        strength: float = 1.0,
        up_init: str = "normal",
    ) -> None:
        super().__init__()
        rank = max(1, d_model // 16)
        self.up_bound = rank**-0.5 if up_init == "uniform" else None
        self.num_heads = num_heads
        self.num_precisions = num_precisions
        self.initial_range = initial_range
        self.strength = strength
        self.down = nn.Linear(d_model, rank, bias=False)
        self.up = nn.Linear(rank, num_heads * num_precisions, bias=False)
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
        return (input_gate * _scale(self))[..., None] * gate


class ConstantPlasticity(nn.Module):
    """strength softplus(s) / 2 sigmoid(c): an observation precision that is the same for every token, [B, T, H, G].

    In fp32. s [H] starts at 1 and c [H * G] at 0: where `Plasticity` starts on average behind an input gate of 1/2,
    which is Palimpsa-D's: that of Palimpsa-M, d_t, starts lower.
    """

    input_projections: tuple[nn.Linear, ...] = ()

    def __init__(self, num_heads: int, num_precisions: int, strength: float = 1.0) -> None:
        super().__init__()
        self.num_precisions = num_precisions
        self.strength = strength
        self.scale = nn.Parameter(torch.ones(num_heads))
        # Flat: vectors do not decay.
        self.logit = nn.Parameter(torch.zeros(num_heads * num_precisions))

    def forward(self, x: Tensor, input_gate: Tensor) -> Tensor:
        rows = torch.sigmoid(at_least_fp32(self.logit)).unflatten(0, (len(self.scale), -1))
        beta = _scale(self)[:, None] / 2 * rows
        return beta.expand(*x.shape[:2], *beta.shape)


def _scale(plasticity: Plasticity | ConstantPlasticity) -> Tensor:
    """strength softplus(s) [H], in fp32."""
    scale = F.softplus(at_least_fp32(plasticity.scale))
    return scale if plasticity.strength == 1 else plasticity.strength * scale


def set_strength(model: nn.Module, strength: float) -> None:
    """Multiplies every observation precision of a model by `strength` from now on, whatever it was before.

    Raises:
        ValueError: for a strength that is not in [0, 1], or a model without importances.
    """
    _check_strength(strength)
    found = [one for one in model.modules() if isinstance(one, Plasticity | ConstantPlasticity)]
    if not found:
        raise ValueError(f"strength: got {strength}, expected a metaplastic model: this one has no importances")
    for plasticity in found:
        plasticity.strength = strength


def make_plasticity(
    kind: str,
    d_model: int,
    num_heads: int,
    head_v_dim: int,
    num_precisions: int | None,
    initial_range: tuple[float, float] | None,
    *,
    metaplastic: bool,
    strength: float = 1.0,
    up_init: str = "normal",
) -> Plasticity | ConstantPlasticity | None:
    """A plasticity of one of PLASTICITY_KINDS, or None for a mixer that is not metaplastic.

    Args:
        kind: "vector", as published, a precision for each of the V rows of a head, G = V; "grouped", one for each
            V / G rows, row r having number r // (V / G); "scalar", one for all rows, G = 1; "constant", G = V, the same
            for every token.
        num_precisions: G of "grouped", a divisor of V = head_v_dim; None of the others.
        strength, up_init: see `Plasticity`. What says how a plasticity starts is nothing to a mixer without one.

    Raises:
        ValueError: for another kind or up_init, a kind that a mixer without importances would ignore, a num_precisions
            that does not go with it, an initial_range that is none, or one of a constant plasticity, a strength that is
            not in [0, 1], or one of a mixer without importances.
    """
    num_precisions = _checked_precisions(kind, head_v_dim, num_precisions)
    initial_range = checked_range("initial_plasticity", initial_range, above_zero=True)
    _check_strength(strength)
    if up_init not in UP_INITS:
        raise ValueError(f"up_init: got {up_init!r}, expected one of {', '.join(UP_INITS)}")
    if not metaplastic:
        if strength != 1:
            raise ValueError(f"strength: got {strength}, expected 1, which changes nothing, with metaplastic: false")
        if kind != "vector":
            raise ValueError(
                f"plasticity: got {kind!r}, expected 'vector', which changes nothing, with metaplastic: false"
            )
        return None
    if kind != "constant":
        return Plasticity(d_model, num_heads, num_precisions, initial_range, strength, up_init)
    if initial_range is not None:
        raise ValueError(f"initial_plasticity: got {list(initial_range)}, expected null with plasticity: constant")
    return ConstantPlasticity(num_heads, num_precisions, strength)


def _check_strength(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise ValueError(f"strength: got {strength}, expected 0 <= strength <= 1")


def _checked_precisions(kind: str, head_v_dim: int, num_precisions: int | None) -> int:
    """G of a plasticity. Raises ValueError: see `make_plasticity`."""
    if kind not in PLASTICITY_KINDS:
        raise ValueError(f"plasticity: got {kind!r}, expected one of {', '.join(PLASTICITY_KINDS)}")
    if kind != "grouped":
        if num_precisions is not None:
            raise ValueError(f"num_precisions: got {num_precisions}, expected null with plasticity: {kind}")
        return 1 if kind == "scalar" else head_v_dim
    # True and False are numbers to Python.
    is_whole = type(num_precisions) is int
    if num_precisions is None or not is_whole or num_precisions < 1 or head_v_dim % num_precisions:
        given = "null" if num_precisions is None else repr(num_precisions)
        raise ValueError(
            f"num_precisions: got {given}, expected a divisor of head_v_dim = {head_v_dim} with plasticity: grouped"
        )
    return num_precisions
