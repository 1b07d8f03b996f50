"""The models that fall out of the recurrence as special cases, each against its own independent formula."""

# B batch, T time, H heads, K key dim, V value dim
import pytest
import torch

from palimpsa.kernels import palimpsa_chunked, palimpsa_reference

every_operator = pytest.mark.parametrize(
    "operator", [palimpsa_reference, palimpsa_chunked], ids=["reference", "chunked"]
)
SHAPE = (2, 45, 3, 6, 7)


def gated_linear_attention(q, k, v, g):
    """Simple gated linear attention (Mamba-2's rule) in its dense form: (q k^T * decay) v."""
    T = q.shape[1]
    decay = q.new_zeros(T, T, *g.shape[::2])
    for t in range(T):
        for s in range(t + 1):
            decay[t, s] = g[:, s + 1 : t + 1].sum(1).exp()
    return torch.einsum("bthk,bshk,tsbh,bshv->bthv", q, k, decay, v)


@every_operator
@pytest.mark.parametrize("zeros", [True, False], ids=["beta=0", "beta=None"])
def test_without_plasticity_it_is_gated_linear_attention(Problem, operator, zeros):
    q, k, v, _, g, prior = Problem(SHAPE).args
    beta = torch.zeros_like(v) if zeros else None
    out = operator(q, k, v, beta, g, prior, scale=0.7, output_final_state=True, output_variance=True)
    expected = 0.7 * gated_linear_attention(q, k, v, g) / prior[:, None]
    torch.testing.assert_close(out.o, expected, rtol=0, atol=1e-12)
    # The importance stays at the prior for ever.
    importance = prior[:, None, None].expand_as(out.final_state.importance)
    torch.testing.assert_close(out.final_state.importance, importance, rtol=1e-14, atol=0)
    variance = (0.7 * q).square().sum(-1, keepdim=True) / prior[:, None]
    torch.testing.assert_close(out.variance, variance.expand_as(v), rtol=1e-12, atol=0)


@every_operator
def test_a_strong_prior_gives_gated_linear_attention(Problem, operator):
    q, k, v, beta, g, _ = Problem(SHAPE).args
    expected = gated_linear_attention(q, k, v, g)
    errors = []
    for strength in (1e4, 1e6, 1e8):
        prior = torch.full((SHAPE[2],), strength, dtype=torch.float64)
        o = operator(q, k, strength * v, beta, g, prior, scale=1.0).o
        errors.append((o - expected).abs().max().item())
    # First order in 1 / I_prior.
    assert errors[2] < 1e-4 < errors[0]
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(100, rel=0.01)


@every_operator
def test_without_plasticity_and_forgetting_it_is_hebbian(Problem, operator):
    q, k, v, _, g, _ = Problem(SHAPE).args
    prior = torch.ones(SHAPE[2], dtype=torch.float64)
    o = operator(q, k, v, None, torch.zeros_like(g), prior, scale=1.0).o
    memory = torch.einsum("bthk,bthv->bthkv", k, v).cumsum(1)
    torch.testing.assert_close(o, torch.einsum("bthk,bthkv->bthv", q, memory), rtol=0, atol=1e-12)


@every_operator
def test_without_forgetting_importance_only_grows_and_learning_stops(Problem, operator):
    B, H, K, V = 2, 3, 4, 5
    block = 50
    state, importances, steps = None, [], []
    for n in range(6):
        q, k, v, beta, g, prior = Problem((B, block, H, K, V), seed=n).args
        before = state
        beta = beta + 0.1
        state = operator(
            q, k, v, beta, torch.zeros_like(g), prior, initial_state=state, output_final_state=True
        ).final_state
        importances.append(state.importance)
        if before is not None:
            assert (state.importance > before.importance).all()
        # How far one more token (k = v = beta = 1) would move the mean.
        one = torch.ones(B, 1, H, K, dtype=torch.float64)
        value = torch.ones(B, 1, H, V, dtype=torch.float64)
        zero = torch.zeros(B, 1, H, dtype=torch.float64)
        moved = operator(one, one, value, value, zero, prior, initial_state=state, output_final_state=True)
        steps.append((moved.final_state.mean - state.mean).abs().max().item())
    # Importance grows linearly, so the step falls like 1 / t.
    assert steps[-1] < 0.4 * steps[0]
    assert importances[-1].min() > 3 * importances[0].min()


@every_operator
def test_with_forgetting_importance_stays_bounded(Problem, operator):
    # The counterpart: at a constant decay, k^2 beta <= c gives I <= I_prior + c N.
    q, k, v, beta, g, prior = Problem((1, 400, 2, 4, 5)).args
    window = 20.0
    g = torch.full_like(g, torch.log(torch.tensor(1 - 1 / window, dtype=torch.float64)).item())
    largest = (k.square()[..., :, None] * beta[..., None, :]).amax((0, 1))
    state = operator(q, k, v, beta, g, prior, output_final_state=True).final_state
    assert (state.importance <= prior[:, None, None] + window * largest).all()


@every_operator
def test_a_constant_input_is_the_posterior_of_repeated_observations(operator):
    # g = 0, one key k = 1: Bayes' rule for n observations v / beta of precision beta and a prior N(0, 1 / I_prior).
    n, beta, value, prior = 12, 0.3, 0.5, 2.0
    one = torch.ones(1, n, 1, 1, dtype=torch.float64)
    g = torch.zeros(1, n, 1, dtype=torch.float64)
    out = operator(
        one, one, value * one, beta * one, g, torch.tensor([prior], dtype=torch.float64), scale=1.0,
        output_variance=True,
    )  # fmt: skip
    count = torch.arange(1, n + 1, dtype=torch.float64)
    torch.testing.assert_close(out.o.flatten(), count * value / (prior + count * beta))
    torch.testing.assert_close(out.variance.flatten(), 1 / (prior + count * beta))
