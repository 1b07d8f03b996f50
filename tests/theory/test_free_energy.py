"""What the recurrence minimises, and each model next to it as a consequence of the same free energy."""

# B batch, T time, H heads, K key dim, V value dim; R rows of a memory, each with its own v and beta
import importlib.util
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from palimpsa.kernels import palimpsa_reference
from palimpsa.theory.free_energy import (
    Gaussian,
    delta_rule,
    diagonal_update,
    free_energy,
    full_update,
    gated_delta_rule,
    kl_divergence,
    log_decay,
    longhorn,
    mamba2,
    mean_field_update,
    memory_free_energy,
    memory_window,
    mesanet,
)

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


class Rows:
    """R rows before a token, and the token; numbers of order 1, float64."""

    def __init__(self, seed=0, R=3, K=4, full=False):
        self.generator = torch.Generator().manual_seed(seed)
        self.previous = self.gaussian(R, K, full)
        self.k, self.v = self.normal(K), self.normal(R)
        self.beta = 0.3 + self.uniform(R)
        self.g, self.prior = log_decay(4.0), torch.tensor(0.7, dtype=torch.float64)

    def normal(self, *size):
        return torch.randn(size, generator=self.generator, dtype=torch.float64)

    def uniform(self, *size):
        return torch.rand(size, generator=self.generator, dtype=torch.float64)

    def gaussian(self, R, K, full):
        if full:
            root = self.normal(R, K, K)
            return Gaussian(self.normal(R, K), root @ root.mT + 0.5 * torch.eye(K, dtype=torch.float64))
        return Gaussian(self.normal(R, K), 0.5 + self.uniform(R, K))

    @property
    def token(self):
        return self.k, self.v, self.beta, self.g, self.prior

    def energy(self, q, observation, **changed):
        token = {"k": self.k, "v": self.v, "beta": self.beta, "g": self.g, "importance_prior": self.prior}
        return free_energy(q, self.previous, **{**token, **changed}, observation=observation)


# What is minimised over which Gaussians by which update; the previous posterior is full in the first case only.
CASES = {
    "full": (full_update, "joint", True),
    "mean_field": (mean_field_update, "joint", False),
    "palimpsa": (diagonal_update, "factored", False),
}
every_case = pytest.mark.parametrize(("update", "observation", "full"), CASES.values(), ids=CASES)


def parameters(q):
    """q as one vector per row: the mean, then the lower Cholesky factor or the root of a diagonal precision."""
    if q.precision.shape == q.mean.shape:
        return torch.cat([q.mean, q.precision.sqrt()], dim=-1)
    row, column = torch.tril_indices(*q.precision.shape[-2:])
    return torch.cat([q.mean, torch.linalg.cholesky(q.precision)[..., row, column]], dim=-1)


def gaussian(x, K, full):
    """The inverse of `parameters`."""
    mean, root = x[..., :K], x[..., K:]
    if not full:
        return Gaussian(mean, root.square())
    row, column = torch.tril_indices(K, K)
    factor = torch.zeros(*x.shape[:-1], K, K, dtype=x.dtype)
    factor[..., row, column] = root
    return Gaussian(mean, factor @ factor.mT)


def gradient(rows, q, observation, **changed):
    """Of F at q, by its `parameters`: [R, ...]."""
    x = parameters(q).detach().requires_grad_()
    full = q.precision.shape != q.mean.shape
    energy = rows.energy(gaussian(x, q.mean.shape[-1], full), observation, **changed).sum()
    return torch.autograd.grad(energy, x)[0]


@pytest.mark.parametrize("observation", ["joint", "factored"])
@pytest.mark.parametrize("full", [True, False], ids=["full", "diagonal"])
def test_the_free_energy_is_the_sum_of_its_terms(observation, full):
    rows = Rows(full=full)
    K = 4
    q = rows.gaussian(3, K, full)

    def distribution(x):
        precision = x.precision if full else torch.diag_embed(x.precision)
        return MultivariateNormal(x.mean, precision_matrix=precision)

    # The mean over mu +- sqrt(K) L_i is exact for functions of second order, and all log densities here are that.
    offsets = math.sqrt(K) * distribution(q).scale_tril.permute(2, 0, 1)
    w = torch.cat([q.mean + offsets, q.mean - offsets])
    log_q, log_previous = distribution(q).log_prob(w), distribution(rows.previous).log_prob(w)
    log_prior = Normal(0, rows.prior.rsqrt()).log_prob(w).sum(-1)
    target, deviation = rows.v / rows.beta, rows.beta.rsqrt()
    if observation == "joint":
        log_likelihood = Normal((rows.k * w).sum(-1), deviation).log_prob(target)
        constant = Normal(0, deviation).log_prob(target)
    else:
        log_likelihood = Normal(rows.k * w, deviation[:, None]).log_prob(target[:, None]).sum(-1)
        constant = K * Normal(0, deviation).log_prob(target)
    N = memory_window(rows.g)
    expected = (log_q - log_previous - (log_likelihood - constant) + (log_previous - log_prior) / N).mean(0)
    close(rows.energy(q, observation), expected)
    close(kl_divergence(q, rows.previous), (log_q - log_previous).mean(0))


@every_case
def test_the_gradient_vanishes_and_the_hessian_is_positive_at_the_update(update, observation, full):
    rows = Rows(full=full)
    best = update(rows.previous, *rows.token)
    assert gradient(rows, best, observation).abs().max() < 1e-12
    for r in range(3):
        row = Rows(full=full)
        row.previous = Gaussian(*(x[r] for x in rows.previous))
        row.v, row.beta = rows.v[r], rows.beta[r]
        x = parameters(Gaussian(*(x[r] for x in best)))
        hessian = torch.autograd.functional.hessian(lambda x, row=row: row.energy(gaussian(x, 4, full), observation), x)
        assert torch.linalg.eigvalsh(hessian)[0] > 1e-2


@every_case
@pytest.mark.parametrize("size", [1e-3, 1e-1, 1.0])
def test_every_perturbation_of_the_update_raises_the_free_energy(update, observation, full, size):
    rows = Rows(full=full)
    best = update(rows.previous, *rows.token)
    lowest = rows.energy(best, observation)
    x = parameters(best)
    perturbed = x + size * rows.normal(300, *x.shape)
    rows.previous = Gaussian(*(y.expand(300, *y.shape) for y in rows.previous))
    assert (rows.energy(gaussian(perturbed, 4, full), observation) > lowest + 1e-3 * size**2).all()


@pytest.mark.parametrize("full", [True, False], ids=["full", "diagonal"])
@pytest.mark.parametrize(
    ("update", "observation"), [(full_update, "joint"), (diagonal_update, "factored")], ids=["full", "palimpsa"]
)
def test_the_free_energy_is_a_divergence_from_its_minimum_over_all_densities(update, observation, full):
    # For any q, of either kind: so these two updates are the minimum over all Gaussians, not over their own kind only.
    rows = Rows()
    best = update(rows.previous, *rows.token)
    for _ in range(5):
        q = rows.gaussian(3, 4, full)
        close(rows.energy(q, observation) - rows.energy(best, observation), kl_divergence(q, best))


def wrong_updates(rows):
    """Palimpsa's update with one thing wrong each."""
    k, v, beta, g, prior = rows.k, rows.v[:, None], rows.beta[:, None], rows.g, rows.prior
    alpha, (mean, importance) = g.exp(), rows.previous
    posterior = alpha * importance + (1 - alpha) * prior + beta * k.square()
    weighted = alpha * importance * mean + v * k
    importances = {
        "no decay of importance": importance + (1 - alpha) * prior + beta * k.square(),
        "no return to the prior": alpha * importance + beta * k.square(),
        "the prior with a minus": alpha * importance - (1 - alpha) * prior + beta * k.square(),
        "no evidence": alpha * importance + (1 - alpha) * prior,
        "|k| for k^2": alpha * importance + (1 - alpha) * prior + beta * k.abs(),
        "decayed evidence": alpha * (importance + beta * k.square()) + (1 - alpha) * prior,
    }
    means = {
        "no decay of the memory": (importance * mean + v * k) / posterior,
        "a write with a minus": (alpha * importance * mean - v * k) / posterior,
        "no importance before": (alpha * mean + v * k) / posterior,
        "divided by the importance before": weighted / importance,
        "a value times beta": (alpha * importance * mean + beta * v * k) / posterior,
    }
    found = {name: Gaussian(weighted / x, x) for name, x in importances.items()}
    return found | {name: Gaussian(x, posterior) for name, x in means.items()}


def test_a_wrong_update_is_seen():
    rows = Rows()
    lowest = rows.energy(diagonal_update(rows.previous, *rows.token), "factored")
    wrong = wrong_updates(rows)
    assert len(wrong) == 11
    for name, q in wrong.items():
        if (q.precision > 0).all():
            assert (rows.energy(q, "factored") > lowest + 1e-5).all(), name
            assert gradient(rows, q, "factored").abs().amax(-1).min() > 1e-3, name
        else:
            with pytest.raises(ValueError, match="positive definite"):
                rows.energy(q, "factored")


def test_with_a_minus_before_the_forgetting_term_the_memory_would_leave_its_prior():
    # The free energy is linear in 1 / N, so that the other sign is 2 F(g = 0) - F(g).
    rows = Rows()

    def energy(q):
        return 2 * rows.energy(q, "factored", g=0.0) - rows.energy(q, "factored")

    def slope(q):
        return 2 * gradient(rows, q, "factored", g=0.0) - gradient(rows, q, "factored")

    alpha, k, (mean, importance) = rows.g.exp(), rows.k, rows.previous
    precision = (2 - alpha) * importance - (1 - alpha) * rows.prior + rows.beta[:, None] * k.square()
    stationary = Gaussian(((2 - alpha) * importance * mean + rows.v[:, None] * k) / precision, precision)
    assert slope(stationary).abs().max() < 1e-12
    best = diagonal_update(rows.previous, *rows.token)
    assert slope(best).abs().amax(-1).min() > 0.1
    assert (energy(best) > energy(stationary) + 1e-2).all()


def test_the_closed_form_is_not_the_joint_minimum_and_misses_the_cross_terms():
    rows = Rows()
    k, beta = rows.k, rows.beta[:, None]
    closed, best = (update(rows.previous, *rows.token) for update in (diagonal_update, mean_field_update))
    full = full_update(rows.previous, *rows.token)
    # The importance is the best there is; the mean is not.
    close(closed.precision, best.precision)
    close(full.mean, best.mean)
    close(full.precision.diagonal(dim1=-2, dim2=-1), best.precision)
    cross_terms = beta * (k * (closed.mean @ k)[:, None] - k.square() * closed.mean)
    slope = gradient(rows, closed, "joint")
    close(slope[:, :4], cross_terms)
    assert slope[:, :4].abs().amax(-1).min() > 0.1
    assert slope[:, 4:].abs().max() < 1e-12
    # The price of the mean, in the metric of the full posterior.
    error = closed.mean - best.mean
    price = torch.einsum("ri,rij,rj->r", error, full.precision, error) / 2
    close(rows.energy(closed, "joint") - rows.energy(best, "joint"), price)
    assert (price > 1e-3).all()
    # Full steps drop nothing: their mean times their precision is what the closed form divides by its importance.
    close((full.precision @ full.mean[..., None])[..., 0], closed.precision * closed.mean)


@pytest.mark.parametrize("case", ["one key entry", "beta 0", "one-hot key"])
def test_without_cross_terms_the_closed_form_is_the_joint_minimum(case):
    rows = Rows(K=1 if case == "one key entry" else 4)
    if case == "beta 0":
        rows.beta = torch.zeros_like(rows.beta)
    if case == "one-hot key":
        rows.k = torch.tensor([0, 0, -1.3, 0], dtype=torch.float64)
    closed, full = (update(rows.previous, *rows.token) for update in (diagonal_update, full_update))
    close(closed.mean, full.mean)
    close(torch.diag_embed(closed.precision), full.precision)


def test_a_window_is_1_over_1_minus_alpha_and_alpha_follows_from_it():
    g = torch.tensor([-3.0, -1e-2, -1e-9], dtype=torch.float64)
    close(log_decay(memory_window(g)), g, atol=0)
    close(memory_window(g[:2]), 1 / (1 - g[:2].exp()))
    N = torch.tensor([1.0, 4.0, 1e12], dtype=torch.float64)
    close(log_decay(N).exp(), 1 - 1 / N)
    assert memory_window(0.0) == math.inf
    assert memory_window(-math.inf) == 1


def test_forgetting_all_leaves_the_prior_and_the_token():
    rows = Rows()
    q = diagonal_update(rows.previous, rows.k, rows.v, rows.beta, -math.inf, rows.prior)
    close(q.precision, rows.prior + rows.beta[:, None] * rows.k.square())
    close(q.mean, rows.v[:, None] * rows.k / q.precision)
    assert gradient(rows, q, "factored", g=-math.inf).abs().max() < 1e-12


class Sequence:
    """Arguments of one sequence; v is a target times its precision, beta one number a token."""

    def __init__(self, B=2, T=14, H=2, K=4, V=3, seed=0, window=12.0):
        generator = torch.Generator().manual_seed(seed)

        def normal(*size):
            return torch.randn(size, generator=generator, dtype=torch.float64)

        def uniform(*size):
            return torch.rand(size, generator=generator, dtype=torch.float64)

        self.q, self.k = normal(B, T, H, K), normal(B, T, H, K) / math.sqrt(K)
        self.beta = 0.2 + uniform(B, T, H)
        self.beta_rows = 0.2 + uniform(B, T, H, V)
        self.target = normal(B, T, H, V)
        self.v = self.beta[..., None] * self.target
        self.g = log_decay(window) * (0.2 + uniform(B, T, H))
        self.prior = 0.5 + uniform(H)
        self.one = torch.ones(H, dtype=torch.float64)

    @property
    def rows_of_beta(self):
        return self.beta[..., None].expand_as(self.v)

    def palimpsa(self, beta=None, **changed):
        arguments = {"q": self.q, "k": self.k, "v": self.v, "g": self.g, "importance_prior": self.prior} | changed
        return palimpsa_reference(**arguments, beta=beta, output_final_state=True)


def run_update(update, x, beta, previous):
    """The theory's update, token by token; beta [B, T, H, V], previous has rows [B, H, V, K]."""
    for t in range(x.q.shape[1]):
        lead = x.v[:, t].shape
        g, prior = x.g[:, t, :, None].expand(lead), x.prior[None, :, None].expand(lead)
        previous = update(previous, x.k[:, t, :, None].expand_as(previous.mean), x.v[:, t], beta[:, t], g, prior)
    return previous


def prior_rows(x, full=False):
    mean = torch.zeros(*x.v.shape[:1], *x.v.shape[2:], x.q.shape[-1], dtype=torch.float64)
    importance = x.prior[None, :, None, None].expand_as(mean)
    return Gaussian(mean, torch.diag_embed(importance) if full else importance)


def test_the_operator_is_the_diagonal_update_token_by_token():
    x = Sequence()
    state = x.palimpsa(x.beta_rows).final_state
    found = run_update(diagonal_update, x, x.beta_rows, prior_rows(x))
    close(found.mean.mT, state.mean)
    close(found.precision.mT, state.importance)


def test_a_token_of_the_operator_minimises_the_free_energy_of_the_whole_memory():
    x = Sequence()
    before = x.palimpsa(x.beta_rows).final_state
    token = {name: getattr(x, name)[:, :1] for name in ("q", "k", "v", "g")}
    after = x.palimpsa(x.beta_rows[:, :1], initial_state=before, **token).final_state
    b, h = 1, 0
    previous = Gaussian(before.mean[b, h], before.importance[b, h])

    def energy(mean, importance):
        arguments = x.k[b, 0, h], x.v[b, 0, h], x.beta_rows[b, 0, h], x.g[b, 0, h], x.prior[h]
        return memory_free_energy(Gaussian(mean, importance), previous, *arguments, observation="factored")

    best = [y[b, h].clone().requires_grad_() for y in (after.mean, after.importance)]
    lowest = energy(*best)
    assert lowest.shape == ()
    for slope in torch.autograd.grad(lowest, best):
        assert slope.abs().max() < 1e-12
    # Each of the K x V entries is at its own minimum.
    for i, v in ((0, 0), (3, 2), (2, 1)):
        for which in (0, 1):
            moved = [y.detach().clone() for y in best]
            moved[which][i, v] += 0.01
            assert energy(*moved) > lowest + 1e-6


def test_importance_and_weighted_mean_are_those_of_the_full_posterior():
    # For ever, not for one step: the diagonal enters where the mean is read, and nowhere else.
    x = Sequence(T=40)
    out = x.palimpsa(x.rows_of_beta)
    o, full = mesanet(x.q, x.k, x.v, x.beta, x.g, x.prior)
    diagonal = full.precision.diagonal(dim1=-2, dim2=-1)[..., None]
    close(out.final_state.importance, diagonal.expand_as(out.final_state.importance))
    close(out.final_state.importance * out.final_state.mean, full.precision @ full.mean)
    assert (out.o - o).abs().max() > 0.1
    # Read by diag(Lambda) instead of Lambda, MesaNet's last output is Palimpsa's.
    jacobi = (full.precision @ full.mean) / diagonal
    close(torch.einsum("bhk,bhkv->bhv", x.q[:, -1], jacobi) / 2, out.o[:, -1])
    # Not by the diagonal of the covariance: that is another, smaller precision.
    variance = torch.linalg.inv(full.precision).diagonal(dim1=-2, dim2=-1)[..., None]
    assert (1 / variance < diagonal - 1e-3).all()
    # Mean field at every token, fed back, has the same importance but another mean.
    field = run_update(mean_field_update, x, x.rows_of_beta, prior_rows(x))
    close(field.precision.mT, out.final_state.importance)
    assert (field.mean.mT - out.final_state.mean).abs().max() > 0.1


def slope_of(x, y):
    """Of the straight line through (log x, log y)."""
    x, y = (torch.as_tensor(z, dtype=torch.float64).log() for z in (x, y))
    x, y = x - x.mean(), y - y.mean()
    return ((x * y).sum() / x.square().sum()).item()


def test_without_evidence_palimpsa_is_simple_gated_linear_attention_over_the_prior():
    x = Sequence()
    out = x.palimpsa(torch.zeros_like(x.v))
    o, state = mamba2(x.q, x.k, x.v, x.g)
    close(out.o, o / x.prior[:, None])
    close(out.final_state.mean, state / x.prior[:, None, None])
    close(out.final_state.importance, x.prior[:, None, None].expand_as(state))
    # There is no diagonal approximation in it: the full posterior is the same one.
    full = run_update(full_update, x, torch.zeros_like(x.v), prior_rows(x, full=True))
    close(full.mean.mT, out.final_state.mean)
    assert (x.palimpsa(x.rows_of_beta).o - o / x.prior[:, None]).abs().max() > 0.1


def test_a_strong_prior_tends_to_mamba2_at_the_first_order_of_its_inverse():
    x = Sequence()
    expected, _ = mamba2(x.q, x.k, x.v, x.g)
    strengths = [10.0**n for n in range(3, 8)]

    def errors(power):
        return [
            (x.palimpsa(x.beta_rows, v=s**power * x.v, importance_prior=s * x.one).o - expected).abs().max().item()
            for s in strengths
        ]

    assert slope_of(strengths, errors(1)) == pytest.approx(-1, abs=0.01)
    # It is not reached without the scale: the output goes to 0, and the error to Mamba-2's own size.
    assert abs(slope_of(strengths, errors(0))) < 0.01


def test_without_evidence_and_forgetting_it_is_hebbian_linear_attention():
    x = Sequence()
    zero = torch.zeros_like(x.g)
    memory = torch.einsum("bthk,bthv->bthkv", x.k, x.v).cumsum(1)
    expected = torch.einsum("bthk,bthkv->bthv", x.q, memory)
    for scale in (None, 0.3):
        factor = 0.5 if scale is None else scale
        close(mamba2(x.q, x.k, x.v, zero, scale=scale)[0], factor * expected)
        close(x.palimpsa(None, g=zero, importance_prior=x.one, scale=scale).o, factor * expected)
    assert (mamba2(x.q, x.k, x.v, x.g)[0] - 0.5 * expected).abs().max() > 0.1


def test_without_forgetting_importance_never_decreases_and_the_step_size_falls_as_1_over_t():
    # With q = e_1 the variance is 1 / I: how far a token with k_1 v = 1 moves the mean.
    x = Sequence(B=1, T=1000, H=1, K=2, V=1)
    q = torch.zeros_like(x.q)
    q[..., 0] = 1

    def step_size(g):
        arguments = {"q": q, "importance_prior": x.one, "scale": 1.0, "output_variance": True, "g": g}
        return x.palimpsa(x.rows_of_beta, **arguments).variance[0, :, 0, 0]

    t = torch.arange(1, 1001, dtype=torch.float64)
    assert (step_size(torch.zeros_like(x.g)).diff() <= 0).all()
    # The same evidence from every token, so that the law shows without noise: I_t = I_prior + t k_1^2 beta.
    x.k, x.beta = x.k.sign(), torch.full_like(x.beta, 0.7)
    remembering = step_size(torch.zeros_like(x.g))
    assert slope_of(t[100:], remembering[100:]) == pytest.approx(-1, abs=0.01)
    forgetting = step_size(torch.full_like(x.g, log_decay(20.0).item()))
    # With a window of 20 tokens it settles where a window's evidence leaves it.
    close(forgetting[-1], 1 / (1 + 20 * torch.tensor(0.7, dtype=torch.float64)))
    assert abs(slope_of(t[100:], forgetting[100:])) < 0.01


# Models whose stability matrix is the identity: Lambda_{t-1} = Id and I_prior = 1, whatever came before.


def one_token(model, x, memory, *names, **changed):
    """The memory after the first token."""
    arguments = [changed.get(name, getattr(x, name))[:, :1] for name in ("q", "k", "v", *names)]
    return model(*arguments, initial_state=memory)[1]


class Token:
    """The first token of a sequence as the theory takes it, a memory before it, and a factor for the precision."""

    def __init__(self, x, factor=1.0, g=True, beta="beta"):
        self.x = x
        generator = torch.Generator().manual_seed(1)
        self.memory = torch.randn(2, 2, 4, 3, generator=generator, dtype=torch.float64)
        self.previous = Gaussian(self.memory.mT, torch.ones_like(self.memory.mT))
        rows = x.rows_of_beta if beta == "beta" else x.beta_rows
        self.k = x.k[:, 0, :, None].expand_as(self.previous.mean)
        self.beta = factor * rows[:, 0]
        self.v = self.beta * x.target[:, 0]
        self.g = x.g[:, 0, :, None].expand_as(self.v) if g else torch.zeros_like(self.v)

    @property
    def token(self):
        return self.k, self.v, self.beta, self.g, 1.0

    def exact(self):
        return full_update(self.previous, *self.token).mean.mT

    def gradient_step(self, start):
        """From the memory `start`, of the length that the precision before gives: Lambda_{t-1}^-1 = Id."""
        mean = start.mT.clone().requires_grad_()
        q = Gaussian(mean, self.previous.precision)
        energy = free_energy(q, self.previous, *self.token, observation="joint").sum()
        return (mean - torch.autograd.grad(energy, mean)[0]).detach().mT

    def run(self, model, g=False, **changed):
        arguments = {"beta": self.beta[..., 0][:, None], "v": self.v[:, None]} | changed
        return one_token(model, self.x, self.memory, *(("beta", "g") if g else ("beta",)), **arguments)


def order_in_beta(make, resolution):
    """The power of beta with which a resolution leaves the exact minimum."""
    factors = [10.0**-n for n in range(2, 6)]
    errors = []
    for factor in factors:
        token = make(factor)
        errors.append((resolution(token) - token.exact()).abs().max().item())
    return slope_of(factors, errors)


def test_longhorn_keeps_the_diagonal_of_the_exact_transition():
    token = Token(Sequence(), g=False, beta="beta_rows")
    found = token.run(longhorn, beta=token.beta[:, None])
    # The exact solution as an affine map of the row before: its columns are what it makes of unit vectors.
    zero = Gaussian(torch.zeros_like(token.previous.mean), token.previous.precision)
    write = full_update(zero, *token.token).mean
    units = torch.eye(4, dtype=torch.float64)
    columns = [
        full_update(Gaussian(unit.expand_as(write), token.previous.precision), *token.token).mean - write
        for unit in units
    ]
    transition = torch.stack(columns, dim=-1)
    close((transition @ token.previous.mean[..., None])[..., 0] + write, token.exact().mT)
    diagonal = transition.diagonal(dim1=-2, dim2=-1)
    close(found, (diagonal * token.previous.mean + write).mT)
    assert (found - token.exact()).abs().max() > 0.1


def test_longhorn_and_palimpsa_take_the_diagonal_on_different_sides_of_the_inversion():
    # They agree to first order in beta, and wholly for a one-hot key.
    factors = [10.0**-n for n in range(2, 6)]
    distances = []
    for factor in factors:
        token = Token(Sequence(), factor, g=False, beta="beta_rows")
        palimpsa = diagonal_update(token.previous, *token.token).mean.mT
        distances.append((token.run(longhorn, beta=token.beta[:, None]) - palimpsa).abs().max().item())
    assert slope_of(factors, distances) == pytest.approx(2, abs=0.02)

    x = Sequence()
    x.k = torch.zeros_like(x.k)
    x.k[..., 1] = 1.2
    token = Token(x, g=False, beta="beta_rows")
    found = token.run(longhorn, beta=token.beta[:, None])
    close(found, diagonal_update(token.previous, *token.token).mean.mT)
    close(found, token.exact())


def test_deltanet_is_the_gradient_step_and_agrees_with_the_minimum_to_first_order():
    x = Sequence()
    token = Token(x, g=False)
    found = token.run(delta_rule)
    close(found, token.gradient_step(token.memory))
    assert (found - token.exact()).abs().max() > 0.1
    order = order_in_beta(lambda factor: Token(x, factor, g=False), lambda token: token.run(delta_rule))
    assert order == pytest.approx(2, abs=0.02)
    # With the signs of the two terms swapped it is of order 1.
    wrong = order_in_beta(
        lambda factor: Token(x, factor, g=False), lambda token: 2 * token.memory - token.run(delta_rule)
    )
    assert wrong == pytest.approx(1, abs=0.02)


def test_deltanet_is_the_exact_minimum_for_another_beta():
    token = Token(Sequence(), g=False)
    shrink = 1 / (1 + token.beta[..., 0] * token.x.k[:, 0].square().sum(-1))
    beta, v = shrink * token.beta[..., 0], shrink[..., None] * token.v
    close(token.run(delta_rule, beta=beta[:, None], v=v[:, None]), token.exact())


def test_gated_deltanet_is_the_gradient_step_from_where_forgetting_leaves_the_memory():
    x = Sequence()
    token = Token(x)
    alpha = token.g[..., 0].exp()[..., None, None]
    # alpha mu is the minimum without the token.
    close(full_update(token.previous, token.k, 0.0, 0.0, token.g, 1.0).mean.mT, alpha * token.memory)
    found = token.run(gated_delta_rule, g=True)
    close(found, token.gradient_step(alpha * token.memory))
    order = order_in_beta(lambda factor: Token(x, factor), lambda token: token.run(gated_delta_rule, g=True))
    assert order == pytest.approx(2, abs=0.02)


def test_from_the_memory_before_it_the_gradient_step_is_gated_deltanet_at_beta_over_alpha():
    x = Sequence(window=3.0)

    def run(token):
        ratio = token.beta[..., 0] / token.g[..., 0].exp()
        return token.run(gated_delta_rule, g=True, beta=ratio[:, None])

    token = Token(x)
    found = run(token)
    # v is as it was: the target is v over its precision, alpha times what it was.
    close(found, token.gradient_step(token.memory))
    assert (found - token.run(gated_delta_rule, g=True)).abs().max() > 0.1
    # It neglects beta (1 - alpha): of order 1 only, and of order 2 without forgetting.
    assert order_in_beta(lambda factor: Token(x, factor), run) == pytest.approx(1, abs=0.02)
    assert order_in_beta(lambda factor: Token(x, factor, g=False), lambda t: t.run(delta_rule)) == pytest.approx(
        2, abs=0.02
    )


def test_the_delta_rule_is_the_gated_one_without_forgetting():
    x = Sequence()
    o, state = gated_delta_rule(x.q, x.k, x.v, x.beta, torch.zeros_like(x.g))
    found, found_state = delta_rule(x.q, x.k, x.v, x.beta)
    close(found, o)
    close(found_state, state)


def test_mesanet_is_the_minimum_over_full_gaussians_token_by_token():
    x = Sequence()
    _, state = mesanet(x.q, x.k, x.v, x.beta, x.g, x.prior)
    found = run_update(full_update, x, x.rows_of_beta, prior_rows(x, full=True))
    close(found.mean.mT, state.mean)
    close(found.precision, state.precision[:, :, None].expand_as(found.precision))


def test_mesanet_with_one_key_entry_is_palimpsa():
    x = Sequence(K=1)
    out = x.palimpsa(x.rows_of_beta)
    o, state = mesanet(x.q, x.k, x.v, x.beta, x.g, x.prior)
    close(o, out.o)
    close(state.mean, out.final_state.mean)
    close(state.precision.expand_as(state.mean), out.final_state.importance)


def test_mesanet_with_orthogonal_keys_along_the_axes_is_palimpsa():
    x = Sequence()
    x.k = torch.nn.functional.one_hot(torch.arange(14) % 4, 4).double()[None, :, None].expand_as(x.k)
    close(mesanet(x.q, x.k, x.v, x.beta, x.g, x.prior)[0], x.palimpsa(x.rows_of_beta).o)


MODELS = {
    mamba2: ("g",),
    delta_rule: ("beta",),
    gated_delta_rule: ("beta", "g"),
    longhorn: ("beta_rows",),
    mesanet: ("beta", "g", "prior"),
}
every_model = pytest.mark.parametrize(("model", "names"), MODELS.items(), ids=[model.__name__ for model in MODELS])


@every_model
def test_two_halves_are_the_whole(model, names):
    x = Sequence()

    def part(tokens):
        return [getattr(x, n) if n == "prior" else getattr(x, n)[:, tokens] for n in ("q", "k", "v", *names)]

    o, state = model(*part(slice(None)))
    first, middle = model(*part(slice(5)))
    second, last = model(*part(slice(5, None)), initial_state=middle)
    empty, unchanged = model(*part(slice(0)), initial_state=middle)
    close(torch.cat([first, second], 1), o)
    torch.testing.assert_close(last, state)
    torch.testing.assert_close(unchanged, middle)
    assert empty.shape == (2, 0, 2, 3)
    assert o.dtype == torch.float64


@pytest.fixture(scope="module")
def fla_naive():
    """fla's formulas, each from its file alone: importing fla takes many seconds without a GPU."""
    (package,) = importlib.util.find_spec("fla").submodule_search_locations

    def load(name):
        spec = importlib.util.spec_from_file_location(f"naive_{name}", Path(package) / "ops" / name / "naive.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize("model", [mamba2, delta_rule, gated_delta_rule, mesanet], ids=lambda model: model.__name__)
def test_the_models_are_those_of_flash_linear_attention(fla_naive, model):
    # fla computes in float32, weighs the values by beta itself, and its MesaNet has K = V and no scale.
    x = Sequence(K=4, V=4)
    if model is mamba2:
        found = mamba2(x.q, x.k, x.v, x.g)
        expected = fla_naive("simple_gla").naive_recurrent_simple_gla(x.q, x.k, x.v, x.g)
    elif model is delta_rule:
        found = delta_rule(x.q, x.k, x.v, x.beta)
        o, state = fla_naive("delta_rule").delta_rule_recurrence(
            *(y.transpose(1, 2) for y in (x.q, x.k, x.target, x.beta))
        )
        expected = o.transpose(1, 2), state
    elif model is gated_delta_rule:
        found = gated_delta_rule(x.q, x.k, x.v, x.beta, x.g)
        run = fla_naive("gated_delta_rule").naive_recurrent_gated_delta_rule
        expected = run(x.q, x.k, x.target, x.beta, x.g, output_final_state=True)
    else:
        o, (mean, precision) = mesanet(x.q, x.k, x.v, x.beta, x.g, x.prior, scale=1.0)
        regularizer = x.prior[:, None, None] * torch.eye(4, dtype=torch.float64)
        found = o, precision - regularizer, precision @ mean
        lamb = x.prior[:, None].expand(2, 4)
        expected = fla_naive("mesa_net").naive_mesa_net_exact(x.q, x.k, x.target, x.g, lamb, x.beta)
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs.double(), rtol=1e-5, atol=1e-5)
        # A decay or a precision that is left out would show.
        assert mine.abs().max() > 0.1
    changed = {mamba2: "g", delta_rule: "beta", gated_delta_rule: "g", mesanet: "beta"}[model]
    setattr(x, changed, torch.zeros_like(x.g))
    wrong = model(*(getattr(x, name) for name in ("q", "k", "v", *MODELS[model])))[0]
    factor = 2 if model is mesanet else 1
    assert (factor * wrong - expected[0].double()).abs().max() > 0.1


@every_model
def test_a_bad_argument_of_a_model_is_named(model, names):
    x = Sequence()
    good = {name: getattr(x, name) for name in ("q", "k", "v", *names)}

    def refused(match, **changed):
        with pytest.raises(ValueError, match=match):
            model(*(good | changed).values())

    refused(r"q has shape .* \[B, T, H, K\]", q=x.q[0])
    refused(r"v has shape .* \[B, T, H, V\]", v=x.v[0])
    refused(r"k has shape .* = \(2, 14, 2, 4\)", k=x.k[..., :3])
    refused("v has shape", v=x.v[:, :3])
    for name in ("beta", "beta_rows"):
        if name in good:
            refused("beta has shape", **{name: good[name][:, 1:]})
            refused("beta must be >= 0", **{name: -good[name]})
    if "g" in good:
        refused("g has shape", g=x.g[..., None])
        refused("g must be <= 0", g=-x.g)
        refused("g must be <= 0 .* got nan", g=x.g * math.nan)
    if "prior" in good:
        refused(r"importance_prior has shape .* \[H\]", prior=x.prior[:1])
        refused("importance_prior must be > 0, got 0", prior=0 * x.prior)
        long = torch.ones(1, 1, 1, 257)
        with pytest.raises(ValueError, match="K = 257, expected K <= 256"):
            mesanet(long, long, long, long[..., 0], -long[..., 0], torch.ones(1))
        with pytest.raises(ValueError, match=r"initial_state\.precision has shape"):
            mesanet(*good.values(), initial_state=Gaussian(torch.zeros(2, 2, 4, 3), torch.zeros(2, 2, 4, 3)))
    else:
        with pytest.raises(ValueError, match="initial_state has shape"):
            model(*good.values(), initial_state=torch.zeros(2, 2, 3, 4))


def test_a_bad_argument_of_the_theory_is_named():
    rows = Rows()
    good = dict(zip(("k", "v", "beta", "g", "importance_prior"), rows.token, strict=True))

    def refused(match, update=diagonal_update, previous=rows.previous, **changed):
        with pytest.raises(ValueError, match=match):
            update(previous, **(good | changed))

    for update in (
        full_update,
        mean_field_update,
        diagonal_update,
        partial(free_energy, rows.previous, observation="joint"),
    ):
        refused("beta must be >= 0", update, beta=-1.0)
        refused("g must be <= 0", update, g=0.1)
        refused("importance_prior must be > 0", update, importance_prior=0.0)
        refused("k has shape .* K = 4", update, k=rows.k[:1])
        refused(r"k has shape .* \(3, 4\)", update, k=rows.k.expand(2, 4))
        refused(r"v has shape \(2,\)", update, v=rows.v[:2])
        refused("previous has a precision that is not", update, Gaussian(rows.previous.mean, -rows.previous.precision))
        refused("previous has mean and precision", update, Gaussian(rows.previous.mean, rows.previous.precision[:1]))
    skew = Gaussian(rows.previous.mean, torch.diag_embed(rows.previous.precision) + torch.ones(4, 4).triu(1))
    refused("symmetric", full_update, skew)
    refused("expected its mean's", diagonal_update, rows.gaussian(3, 4, True))
    refused("q has a mean", partial(free_energy, rows.gaussian(2, 4, False), observation="joint"))
    refused("observation is 'rows'", partial(free_energy, rows.previous, observation="rows"))
    refused("memory has mean", partial(memory_free_energy, rows.gaussian(2, 4, True), observation="joint"))
    with pytest.raises(ValueError, match="window must be >= 1"):
        log_decay(0.5)
    with pytest.raises(ValueError, match="g must be <= 0"):
        memory_window(0.1)
