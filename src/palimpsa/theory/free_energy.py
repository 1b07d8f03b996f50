"""What the recurrence minimises, exactly; and the models next to it, as short float64 recurrences.

One row w [K] of the memory predicts one value channel. A token adds the log likelihood, up to a constant,

    log p(v | k, w) = v (k.w) - beta (k.w)^2 / 2

With beta > 0 it is N(v / beta; k.w, 1 / beta): v is the target times its precision, as everywhere in this project,
so that beta = 0 leaves a linear (Hebbian) term, which is no density. With the prior p = N(0, 1 / I_prior) and
1 / N = 1 - alpha = 1 - exp(g), the variational free energy of a posterior q is

    F(q) = KL(q || q_{t-1}) - E_q[log p(v | k, w)] + (1 / N) E_q[log q_{t-1} / p]
         = alpha KL(q || q_{t-1}) + (1 - alpha) KL(q || p) - E_q[log p(v | k, w)]

The last term of the first line takes an average one of N tokens back out of the memory, hence its plus sign: with a
minus, alpha would become 2 - alpha and the memory would run from its prior. F differs from KL(q || q*) by a constant,
q* being the normalised q_{t-1}^alpha p^(1 - alpha) p(v | k, w). What minimises it depends on what q may be.

1. Any density: q*, the Gaussian of `full_update` (primes: one token earlier),

       Lambda = alpha Lambda' + (1 - alpha) I_prior Id + beta k k^T         eta = Lambda mu = alpha eta' + v k

2. A diagonal Gaussian, of the same F: `mean_field_update`. Its importance is exactly Palimpsa's,

       I = diag(Lambda) = alpha I' + (1 - alpha) I_prior + beta k^2

   but its mean is q*'s own, Lambda^-1 eta. Palimpsa's mean eta / I (`diagonal_update`) is not that minimum: there
   the gradient of F is beta (k (k.mu) - k^2 mu), the cross terms k_i k_j mu_j, which Palimpsa drops. The two agree if
   beta = 0, or if the key has one entry that is not 0 (K = 1 among them).
3. Any density, of F with the factored likelihood sum_i [v k_i w_i - beta k_i^2 w_i^2 / 2], where each entry of the row
   explains the whole value alone: `diagonal_update`, Palimpsa's closed form. This is the sense in which it is the
   minimum of a free energy.

Equivalently, over a whole sequence and without approximation, Palimpsa's I and M = I mu are diag(Lambda) and eta of
the full posterior (MesaNet's, for a beta that all rows share): both are linear recurrences that never use mu. The
diagonal enters once, in the mean that is read: eta / diag(Lambda) for Lambda^-1 eta, the first Jacobi iterate from 0.
So it is taken of the precision, after the minimisation and before the inversion, and no error is fed back.

Everything is computed in float64 whatever comes in, differentiable by autograd, and meant for small sizes.
"""

# B batch, T time, H heads, K key dim, V value dim; "..." rows of any leading shape
from typing import Literal

import torch
from torch import Tensor

from palimpsa.theory.special_cases import Gaussian, append_dims, check_range, check_ranges


def memory_window(g: Tensor | float) -> Tensor:
    """N = 1 / (1 - exp(g)), in tokens, of a log decay g <= 0: infinite at g = 0, one token at g = -inf.

    >>> round(memory_window(log_decay(100.0)).item(), 6)
    100.0
    """
    g = _float64(g)
    check_range("g", g, g <= 0, "<= 0 (a log decay, alpha = exp(g))")
    # expm1: 1 - exp(g) loses its digits where windows are long. abs: -1 / expm1(0) is -inf.
    return 1 / torch.expm1(g).abs()


def log_decay(window: Tensor | float) -> Tensor:
    """g = log(1 - 1 / N) of a memory window N >= 1, in tokens: `memory_window`'s inverse."""
    window = _float64(window)
    check_range("window", window, window >= 1, ">= 1 token")
    return torch.log1p(-1 / window)


def kl_divergence(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q || p) of Gaussians, each diagonal or full: [...]. Raises ValueError for a precision of another shape."""
    difference = q.mean.double() - p.mean.double()
    q_factor, p_factor = _cholesky("q", q), _cholesky("p", p)
    # p's precision is L L^T: tr(L^T Sigma L) and |L^T difference|^2.
    spread = torch.linalg.solve_triangular(q_factor, p_factor, upper=False)
    distance = (p_factor.mT @ difference[..., None]).square().sum((-2, -1))
    log_ratio = 2 * (_log_diagonal(q_factor) - _log_diagonal(p_factor))
    return (spread.square().sum((-2, -1)) + distance - q.mean.shape[-1] + log_ratio) / 2


def free_energy(
    q: Gaussian,
    previous: Gaussian,
    k: Tensor,
    v: Tensor | float,
    beta: Tensor | float,
    g: Tensor | float,
    importance_prior: Tensor | float,
    *,
    observation: Literal["joint", "factored"],
) -> Tensor:
    """F(q) of the module's docstring, for each row: [...]. The likelihood's constant is left out.

    Args:
        q, previous: the posteriors after and before the token, mean [..., K], each diagonal or full.
        k: [K] or [..., K].
        v, beta, g, importance_prior: numbers, or tensors that broadcast to [...]. v is the target times beta;
            beta >= 0; g <= 0, -inf allowed; importance_prior > 0.
        observation: "joint" for the likelihood of the row (cases 1 and 2 of the module's docstring); "factored" for
            that of its entries one by one (case 3, of which Palimpsa's update is the minimum).

    Raises:
        ValueError: for values out of these ranges, shapes that do not agree, a precision that is not positive definite.
    """
    if observation not in ("joint", "factored"):
        raise ValueError(f"observation is {observation!r}, expected 'joint' or 'factored'")
    k, v, beta, alpha, prior = _row_inputs(previous, k, v, beta, g, importance_prior)
    if q.mean.shape != previous.mean.shape:
        expected = f"expected that of previous, {tuple(previous.mean.shape)}"
        raise ValueError(f"q has a mean of shape {tuple(q.mean.shape)}, {expected}")
    mean = q.mean.double()
    covariance = torch.cholesky_inverse(_cholesky("q", q))
    # Second moments of what is predicted, E (k.w)^2 or sum_i E (k_i w_i)^2.
    if observation == "joint":
        second = (k * mean).sum(-1).square() + torch.einsum("...i,...ij,...j->...", k, covariance, k)
    else:
        second = (k.square() * (mean.square() + covariance.diagonal(dim1=-2, dim2=-1))).sum(-1)
    log_likelihood = v * (k * mean).sum(-1) - beta * second / 2
    p = Gaussian(torch.zeros_like(mean), prior[..., None].expand_as(mean))
    return alpha * kl_divergence(q, previous) + (1 - alpha) * kl_divergence(q, p) - log_likelihood


def memory_free_energy(
    memory: Gaussian,
    previous: Gaussian,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | float,
    importance_prior: Tensor | float,
    *,
    observation: Literal["joint", "factored"],
) -> Tensor:
    """F of a whole memory in the operator's layout: a scalar, the sum over its V independent rows.

    Args:
        memory, previous: mean and importance, both [K, V], after and before the token.
        k, v, beta: [K], [V], [V]; the rest as for `free_energy`.

    Raises:
        ValueError: as `free_energy`.
    """
    for name, x in (("memory", memory), ("previous", previous)):
        if x.mean.ndim != 2 or x.precision.shape != x.mean.shape:
            shapes = f"{tuple(x.mean.shape)} and {tuple(x.precision.shape)}"
            raise ValueError(f"{name} has mean and importance of shapes {shapes}, expected [K, V] twice")
    rows, rows_before = (Gaussian(x.mean.mT, x.precision.mT) for x in (memory, previous))
    return free_energy(rows, rows_before, k, v, beta, g, importance_prior, observation=observation).sum()


def full_update(
    previous: Gaussian,
    k: Tensor,
    v: Tensor | float,
    beta: Tensor | float,
    g: Tensor | float,
    importance_prior: Tensor | float,
) -> Gaussian:
    """The minimum of the joint F over all densities (case 1): a full Gaussian. Arguments, errors: `free_energy`."""
    k, v, beta, alpha, prior = _row_inputs(previous, k, v, beta, g, importance_prior)
    before = _dense("previous", previous)
    identity = torch.eye(k.shape[-1], dtype=torch.float64, device=k.device)
    evidence = append_dims(beta, 2) * k[..., :, None] * k[..., None, :]
    precision = append_dims(alpha, 2) * before + append_dims((1 - alpha) * prior, 2) * identity + evidence
    weighted_mean = append_dims(alpha) * (before @ append_dims(previous.mean.double())).squeeze(-1) + append_dims(v) * k
    return Gaussian(torch.linalg.solve(precision, append_dims(weighted_mean)).squeeze(-1), precision)


def mean_field_update(
    previous: Gaussian,
    k: Tensor,
    v: Tensor | float,
    beta: Tensor | float,
    g: Tensor | float,
    importance_prior: Tensor | float,
) -> Gaussian:
    """The minimum of the joint F over diagonal Gaussians (case 2). Arguments, errors: `free_energy`."""
    full = full_update(previous, k, v, beta, g, importance_prior)
    return Gaussian(full.mean, full.precision.diagonal(dim1=-2, dim2=-1))


def diagonal_update(
    previous: Gaussian,
    k: Tensor,
    v: Tensor | float,
    beta: Tensor | float,
    g: Tensor | float,
    importance_prior: Tensor | float,
) -> Gaussian:
    """Palimpsa's closed form, Eq. 25-26 of the draft of arXiv 2602.09075: the minimum of the factored F (case 3).

    Arguments and errors: `free_energy`; and a ValueError for a `previous` that is not diagonal.
    """
    k, v, beta, alpha, prior = _row_inputs(previous, k, v, beta, g, importance_prior)
    if previous.precision.shape != previous.mean.shape:
        raise ValueError(f"previous has a precision of shape {tuple(previous.precision.shape)}, expected its mean's")
    before = previous.precision.double()
    importance = append_dims(alpha) * before + append_dims((1 - alpha) * prior) + append_dims(beta) * k.square()
    weighted_mean = append_dims(alpha) * before * previous.mean.double() + append_dims(v) * k
    return Gaussian(weighted_mean / importance, importance)


def _row_inputs(
    previous: Gaussian,
    k: Tensor,
    v: Tensor | float,
    beta: Tensor | float,
    g: Tensor | float,
    importance_prior: Tensor | float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """k [..., K], then v, beta, alpha, importance_prior, all [...], in float64, checked."""
    _cholesky("previous", previous)
    shape = previous.mean.shape
    if k.shape[-1:] != shape[-1:]:
        raise ValueError(f"k has shape {tuple(k.shape)}, expected K = {shape[-1]}, as the mean has, in its last place")
    sizes = {"k": (k, shape)}
    sizes |= {
        name: (_float64(x, k.device), shape[:-1])
        for name, x in (("v", v), ("beta", beta), ("g", g), ("importance_prior", importance_prior))
    }
    found = {}
    for name, (x, size) in sizes.items():
        try:
            found[name] = x.double().expand(size)
        except RuntimeError:
            expected = f"expected a shape that broadcasts to {tuple(size)}"
            raise ValueError(f"{name} has shape {tuple(x.shape)}, {expected}") from None
    check_ranges(found["beta"], found["g"], found["importance_prior"])
    return found["k"], found["v"], found["beta"], found["g"].exp(), found["importance_prior"]


def _float64(x: Tensor | float, device: torch.device | None = None) -> Tensor:
    return torch.as_tensor(x, dtype=torch.float64, device=device)


def _dense(name: str, gaussian: Gaussian) -> Tensor:
    """The precision as [..., K, K], float64."""
    mean, precision = gaussian
    if mean.ndim and precision.shape == mean.shape:
        return torch.diag_embed(precision.double())
    if mean.ndim and precision.shape == (*mean.shape, mean.shape[-1]):
        return precision.double()
    shapes = f"{tuple(mean.shape)} and {tuple(precision.shape)}"
    raise ValueError(f"{name} has mean and precision of shapes {shapes}, expected [..., K] and [..., K] or [..., K, K]")


def _cholesky(name: str, gaussian: Gaussian) -> Tensor:
    """Lower L with L L^T = the precision, [..., K, K]."""
    precision = _dense(name, gaussian)
    factor, info = torch.linalg.cholesky_ex(precision)
    if info.any() or not torch.allclose(precision, precision.mT):
        raise ValueError(f"{name} has a precision that is not symmetric and positive definite")
    return factor


def _log_diagonal(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
