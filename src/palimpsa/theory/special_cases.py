"""The models that are special cases of the theory, token by token in float64: short, to be read and compared with.

All take q, k [B, T, H, K] and v [B, T, H, V], then what they use of beta, g and importance_prior, in the operator's
order and with its meanings: v is the target times its precision (the models' own papers write beta_t v_t), beta >= 0
is [B, T, H] ([B, T, H, V] in `longhorn`), g <= 0 is the log decay [B, T, H], alpha = exp(g). `scale` is K^-1/2 unless
given.

All return (o, state): o_t = scale S_t^T q_t, [B, T, H, V], and the state after the last token, which is the memory
S [B, H, K, V] (in `mesanet` a Gaussian). `initial_state` is of the same kind; without it S = 0. "*" below is
elementwise.

Everything is computed in float64 whatever comes in, differentiable by autograd.

Raises:
    ValueError: naming the argument: a shape that does not agree, beta < 0, g > 0, importance_prior <= 0.
"""

# B batch, T time, H heads, K key dim, V value dim
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# MesaNet solves a dense K x K system for every token.
MAX_DENSE_KEY_DIM = 256


class Gaussian(NamedTuple):
    """Normal distributions of rows of a memory.

    Attributes:
        mean: [..., K].
        precision: [..., K], diagonal (the importance), or [..., K, K], full; positive definite. In `mesanet` the V
            columns of the mean [B, H, K, V] share the precision [B, H, K, K].
    """

    mean: Tensor
    precision: Tensor


def mamba2(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, *, scale: float | None = None, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Simple gated linear attention, Mamba-2's rule (arXiv 2405.21060): S_t = alpha_t S_{t-1} + k_t v_t^T.

    v is Mamba-2's d_t x_t. With g = 0 it is linear attention, which is Hebbian.
    """
    (q, k, v, g), S = _inputs(q, k, v, initial_state, g=g)
    return _run_recurrence(q, S, scale, lambda t, S: append_dims(g[:, t].exp(), 2) * S + _outer(k[:, t], v[:, t]))


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor,
    *,
    scale: float | None = None,
    initial_state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Gated DeltaNet (arXiv 2412.06464): S_t = alpha_t S_{t-1} + k_t (v_t - beta_t alpha_t S_{t-1}^T k_t)^T.

    In the theory it is one gradient step on the free energy for Lambda_{t-1} = Id and I_prior = 1, of the length that
    Lambda_{t-1}^-1 gives. A step from alpha_t S_{t-1}, the minimum without the token, is this rule as it stands. A step
    from S_{t-1} is this rule at beta_t / alpha_t, with v_t as it is: the target is then alpha_t v_t / beta_t.
    """
    (q, k, v, beta, g), S = _inputs(q, k, v, initial_state, beta=beta, g=g)

    def step(t: int, S: Tensor) -> Tensor:
        S = append_dims(g[:, t].exp(), 2) * S
        return S + _outer(k[:, t], v[:, t] - append_dims(beta[:, t]) * _read(k[:, t], S))

    return _run_recurrence(q, S, scale, step)


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, *, scale: float | None = None, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """DeltaNet (arXiv 2406.06484): S_t = S_{t-1} + k_t (v_t - beta_t S_{t-1}^T k_t)^T.

    The gradient step of `gated_delta_rule` without forgetting: first order in beta. The exact minimum is the same rule
    with beta_t and v_t divided by 1 + beta_t |k_t|^2.
    """
    (q, k, v, beta), S = _inputs(q, k, v, initial_state, beta=beta)
    return _run_recurrence(
        q, S, scale, lambda t, S: S + _outer(k[:, t], v[:, t] - append_dims(beta[:, t]) * _read(k[:, t], S))
    )


def longhorn(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, *, scale: float | None = None, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Longhorn (arXiv 2407.14207), beta [B, T, H, V]: S_t = (1 - k_t^2 (beta_t * e_t)^T) * S_{t-1} + k_t (v_t * e_t)^T.

    e_t = 1 / (1 + beta_t |k_t|^2) [V]. The exact minimum for Lambda_{t-1} = Id and alpha = 1 is an affine map of each
    row of S_{t-1}, with the matrix Id - beta_t e_t k_t k_t^T; Longhorn keeps that matrix's diagonal. Palimpsa takes the
    diagonal before the inversion instead: k_i^2 in the place of |k|^2.
    """
    (q, k, v, beta), S = _inputs(q, k, v, initial_state, beta=beta, beta_per_row=True)
    step_size = 1 / (1 + beta * k.square().sum(-1, keepdim=True))
    v, beta = v * step_size, beta * step_size
    return _run_recurrence(
        q, S, scale, lambda t, S: (1 - _outer(k[:, t].square(), beta[:, t])) * S + _outer(k[:, t], v[:, t])
    )


def mesanet(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor,
    importance_prior: Tensor,
    *,
    scale: float | None = None,
    initial_state: Gaussian | None = None,
) -> tuple[Tensor, Gaussian]:
    """MesaNet (arXiv 2506.05233), solved densely: the full posterior of every row, whose precision all rows share.

    Lambda_t = alpha_t Lambda_{t-1} + (1 - alpha_t) I_prior Id + beta_t k_t k_t^T, from I_prior Id;
    eta_t = alpha_t eta_{t-1} + k_t v_t^T;  S_t = Lambda_t^-1 eta_t. importance_prior [H]. MesaNet itself carries
    Lambda_t - I_prior Id and adds a constant regulariser before it solves: the same numbers.

    Returns:
        o [B, T, H, V] and Gaussian(mean [B, H, K, V], precision [B, H, K, K]).

    Raises:
        ValueError: for K > 256 too, since each token solves a dense K x K system.
    """
    mean = None if initial_state is None else initial_state.mean
    (q, k, v, beta, g, prior), mean = _inputs(q, k, v, mean, beta=beta, g=g, importance_prior=importance_prior)
    B, _, H, K = q.shape
    if K > MAX_DENSE_KEY_DIM:
        raise ValueError(f"q has K = {K}, expected K <= {MAX_DENSE_KEY_DIM}: each token solves a dense K x K system")
    regularizer = append_dims(prior, 2) * torch.eye(K, dtype=torch.float64, device=q.device)
    if initial_state is None:
        precision = regularizer.expand(B, H, K, K)
    else:
        _check_shape("initial_state.precision", initial_state.precision, (B, H, K, K), "[B, H, K, K]")
        precision = initial_state.precision.double()
    weighted_mean = precision @ mean

    def step(t: int, S: Tensor) -> Tensor:
        nonlocal precision, weighted_mean
        alpha, x = append_dims(g[:, t].exp(), 2), k[:, t]
        precision = alpha * precision + (1 - alpha) * regularizer + append_dims(beta[:, t], 2) * _outer(x, x)
        weighted_mean = alpha * weighted_mean + _outer(x, v[:, t])
        return torch.linalg.solve(precision, weighted_mean)

    o, mean = _run_recurrence(q, mean, scale, step)
    return o, Gaussian(mean, precision)


def append_dims(x: Tensor, num_dims: int = 1) -> Tensor:
    """x with `num_dims` dimensions of size 1 after its own."""
    return x[(..., *(None,) * num_dims)]


def check_range(name: str, x: Tensor, holds: Tensor, expected: str) -> None:
    """Raises ValueError that names the argument and its first entry for which `holds` is not true."""
    if not holds.all():
        raise ValueError(f"{name} must be {expected}, got {x[~holds].flatten()[0].item()}")


def check_ranges(beta: Tensor, g: Tensor, importance_prior: Tensor) -> None:
    """Raises ValueError for beta < 0, g > 0, importance_prior <= 0, or NaN in one of them."""
    check_range("beta", beta, beta >= 0, ">= 0 (a precision)")
    check_range("g", g, g <= 0, "<= 0 (a log decay, alpha = exp(g))")
    check_range("importance_prior", importance_prior, importance_prior > 0, "> 0")


def _check_shape(name: str, x: Tensor, expected: tuple[int, ...], layout: str) -> None:
    if tuple(x.shape) != expected:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, expected {layout} = {expected}")


def _inputs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    initial_mean: Tensor | None,
    *,
    beta: Tensor | None = None,
    g: Tensor | None = None,
    importance_prior: Tensor | None = None,
    beta_per_row: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """Checks what is given; returns it in float64 in the order q, k, v, beta, g, importance_prior, and the first S."""
    for name, x, letter in (("q", q, "K"), ("v", v, "V")):
        if x.ndim != 4:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, expected four dimensions [B, T, H, {letter}]")
    (B, T, H, K), V = q.shape, v.shape[-1]
    _check_shape("k", k, (B, T, H, K), "[B, T, H, K]")
    _check_shape("v", v, (B, T, H, V), "[B, T, H, V]")
    if beta is not None:
        shape, layout = ((B, T, H, V), "[B, T, H, V]") if beta_per_row else ((B, T, H), "[B, T, H]")
        _check_shape("beta", beta, shape, layout)
    if g is not None:
        _check_shape("g", g, (B, T, H), "[B, T, H]")
    if importance_prior is not None:
        _check_shape("importance_prior", importance_prior, (H,), "[H]")
    if initial_mean is not None:
        _check_shape("initial_state", initial_mean, (B, H, K, V), "[B, H, K, V]")
    zero, one = q.new_zeros(1), q.new_ones(1)
    check_ranges(
        zero if beta is None else beta, zero if g is None else g, one if importance_prior is None else importance_prior
    )
    found = [x.double() for x in (q, k, v, beta, g, importance_prior) if x is not None]
    mean = found[0].new_zeros(B, H, K, V) if initial_mean is None else initial_mean.double()
    return found, mean


def _outer(x: Tensor, y: Tensor) -> Tensor:
    return x[..., :, None] * y[..., None, :]


def _read(x: Tensor, S: Tensor) -> Tensor:
    return (x[..., :, None] * S).sum(-2)


def _run_recurrence(
    q: Tensor, S: Tensor, scale: float | None, step: Callable[[int, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Runs S_t = step(t, S_{t-1}) over all tokens and reads each S_t with q_t."""
    factor: float = q.shape[-1] ** -0.5 if scale is None else scale
    # An empty slice first, so that T = 0 gives an empty result.
    outputs = [_read(q[:, :0], S[:, None])]
    for t in range(q.shape[1]):
        S = step(t, S)
        outputs.append(factor * _read(q[:, t], S)[:, None])
    return torch.cat(outputs, dim=1), S
