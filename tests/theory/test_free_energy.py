"""What the recurrence minimises: each update is the minimum of its free energy, and a wrong one is not."""

# B batch, T time, H heads, K key dim, V value dim; R rows of a memory, each with its own v and beta
import math
from functools import partial

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from palimpsa.theory.free_energy import (
    diagonal_update,
    free_energy,
    full_update,
    kl_divergence,
    log_decay,
    mean_field_update,
    memory_free_energy,
    memory_window,
)
from palimpsa.theory.special_cases import Gaussian, mesanet

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


def test_the_operator_is_the_diagonal_update_token_by_token(make_sequence):
    x = make_sequence()
    state = x.palimpsa(x.beta_rows).final_state
    found = x.updated(diagonal_update, x.beta_rows)
    close(found.mean.mT, state.mean)
    close(found.precision.mT, state.importance)


def test_a_token_of_the_operator_minimises_the_free_energy_of_the_whole_memory(make_sequence):
    x = make_sequence()
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


def test_importance_and_weighted_mean_are_those_of_the_full_posterior(make_sequence):
    # For ever, not for one step: the diagonal enters where the mean is read, and nowhere else.
    x = make_sequence(T=40)
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
    field = x.updated(mean_field_update, x.rows_of_beta)
    close(field.precision.mT, out.final_state.importance)
    assert (field.mean.mT - out.final_state.mean).abs().max() > 0.1


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
