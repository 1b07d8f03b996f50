"""Each model next to the recurrence as a consequence of the same free energy."""

# B batch, T time, H heads, K key dim, V value dim
from functools import partial

import pytest
import torch

from palimpsa.theory.free_energy import diagonal_update, free_energy, full_update, log_decay
from palimpsa.theory.special_cases import Gaussian, delta_rule, gated_delta_rule, longhorn, mamba2, mesanet

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)


def slope_of(x, y):
    """Of the straight line through (log x, log y)."""
    x, y = (torch.as_tensor(z, dtype=torch.float64).log() for z in (x, y))
    x, y = x - x.mean(), y - y.mean()
    return ((x * y).sum() / x.square().sum()).item()


def test_without_evidence_palimpsa_is_simple_gated_linear_attention_over_the_prior(make_sequence):
    x = make_sequence()
    out = x.palimpsa(torch.zeros_like(x.v))
    o, state = mamba2(x.q, x.k, x.v, x.g)
    close(out.o, o / x.prior[:, None])
    close(out.final_state.mean, state / x.prior[:, None, None])
    close(out.final_state.importance, x.prior[:, None, None].expand_as(state))
    # There is no diagonal approximation in it: the full posterior is the same one.
    full = x.updated(full_update, torch.zeros_like(x.v), full=True)
    close(full.mean.mT, out.final_state.mean)
    assert (x.palimpsa(x.rows_of_beta).o - o / x.prior[:, None]).abs().max() > 0.1


def test_a_strong_prior_tends_to_mamba2_at_the_first_order_of_its_inverse(make_sequence):
    x = make_sequence()
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


def test_without_evidence_and_forgetting_it_is_hebbian_linear_attention(make_sequence):
    x = make_sequence()
    zero = torch.zeros_like(x.g)
    memory = torch.einsum("bthk,bthv->bthkv", x.k, x.v).cumsum(1)
    expected = torch.einsum("bthk,bthkv->bthv", x.q, memory)
    for scale in (None, 0.3):
        factor = 0.5 if scale is None else scale
        close(mamba2(x.q, x.k, x.v, zero, scale=scale)[0], factor * expected)
        close(x.palimpsa(None, g=zero, importance_prior=x.one, scale=scale).o, factor * expected)
    assert (mamba2(x.q, x.k, x.v, x.g)[0] - 0.5 * expected).abs().max() > 0.1


def test_without_forgetting_importance_never_decreases_and_the_step_size_falls_as_1_over_t(make_sequence):
    # With q = e_1 the variance is 1 / I: how far a token with k_1 v = 1 moves the mean.
    x = make_sequence(B=1, T=1000, H=1, K=2, V=1)
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


def test_longhorn_keeps_the_diagonal_of_the_exact_transition(make_sequence):
    token = Token(make_sequence(), g=False, beta="beta_rows")
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


def test_longhorn_and_palimpsa_take_the_diagonal_on_different_sides_of_the_inversion(make_sequence):
    # They agree to first order in beta, and wholly for a one-hot key.
    factors = [10.0**-n for n in range(2, 6)]
    distances = []
    for factor in factors:
        token = Token(make_sequence(), factor, g=False, beta="beta_rows")
        palimpsa = diagonal_update(token.previous, *token.token).mean.mT
        distances.append((token.run(longhorn, beta=token.beta[:, None]) - palimpsa).abs().max().item())
    assert slope_of(factors, distances) == pytest.approx(2, abs=0.02)

    x = make_sequence()
    x.k = torch.zeros_like(x.k)
    x.k[..., 1] = 1.2
    token = Token(x, g=False, beta="beta_rows")
    found = token.run(longhorn, beta=token.beta[:, None])
    close(found, diagonal_update(token.previous, *token.token).mean.mT)
    close(found, token.exact())


def test_deltanet_is_the_gradient_step_and_agrees_with_the_minimum_to_first_order(make_sequence):
    x = make_sequence()
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


def test_deltanet_is_the_exact_minimum_for_another_beta(make_sequence):
    token = Token(make_sequence(), g=False)
    shrink = 1 / (1 + token.beta[..., 0] * token.x.k[:, 0].square().sum(-1))
    beta, v = shrink * token.beta[..., 0], shrink[..., None] * token.v
    close(token.run(delta_rule, beta=beta[:, None], v=v[:, None]), token.exact())


def test_gated_deltanet_is_the_gradient_step_from_where_forgetting_leaves_the_memory(make_sequence):
    x = make_sequence()
    token = Token(x)
    alpha = token.g[..., 0].exp()[..., None, None]
    # alpha mu is the minimum without the token.
    close(full_update(token.previous, token.k, 0.0, 0.0, token.g, 1.0).mean.mT, alpha * token.memory)
    found = token.run(gated_delta_rule, g=True)
    close(found, token.gradient_step(alpha * token.memory))
    order = order_in_beta(lambda factor: Token(x, factor), lambda token: token.run(gated_delta_rule, g=True))
    assert order == pytest.approx(2, abs=0.02)


def test_from_the_memory_before_it_the_gradient_step_is_gated_deltanet_at_beta_over_alpha(make_sequence):
    x = make_sequence(window=3.0)

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


def test_mesanet_is_the_minimum_over_full_gaussians_token_by_token(make_sequence):
    x = make_sequence()
    _, state = mesanet(x.q, x.k, x.v, x.beta, x.g, x.prior)
    found = x.updated(full_update, x.rows_of_beta, full=True)
    close(found.mean.mT, state.mean)
    close(found.precision, state.precision[:, :, None].expand_as(found.precision))


def test_mesanet_with_one_key_entry_is_palimpsa(make_sequence):
    x = make_sequence(K=1)
    out = x.palimpsa(x.rows_of_beta)
    o, state = mesanet(x.q, x.k, x.v, x.beta, x.g, x.prior)
    close(o, out.o)
    close(state.mean, out.final_state.mean)
    close(state.precision.expand_as(state.mean), out.final_state.importance)


def test_mesanet_with_orthogonal_keys_along_the_axes_is_palimpsa(make_sequence):
    x = make_sequence()
    x.k = torch.nn.functional.one_hot(torch.arange(14) % 4, 4).double()[None, :, None].expand_as(x.k)
    close(mesanet(x.q, x.k, x.v, x.beta, x.g, x.prior)[0], x.palimpsa(x.rows_of_beta).o)
