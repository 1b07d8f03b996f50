"""One token in Triton against the reference: in Triton's interpreter, or on the GPU where there is one."""

# B batch, T time, H heads, K key dim, V value dim, G precisions a head
import math

import pytest
import torch

from palimpsa.kernels import PalimpsaOutput, PalimpsaState, palimpsa_reference, palimpsa_step

pytest.importorskip("triton")


@pytest.fixture
def steps(device):
    """A whole sequence by `palimpsa_step`, with the signature of `palimpsa`; no backward."""

    def run(q, k, v, beta, g, prior, *, initial_state, output_final_state, output_variance):
        assert output_final_state
        B, T, H, K = q.shape
        if initial_state is None:
            G = v.shape[-1] if beta is None else beta.shape[-1]
            start = prior.to(torch.float32)[:, None, None].expand(B, H, K, G)
            initial_state = torch.zeros(B, H, K, v.shape[-1]), start
        state = PalimpsaState(*(x.to(device, copy=True).contiguous() for x in initial_state))
        q, k, v, beta, g, prior = (None if x is None else x.to(device) for x in (q, k, v, beta, g, prior))
        tokens = []
        for t in range(T):
            beta_t = None if beta is None else beta[:, t]
            out = palimpsa_step(
                q[:, t], k[:, t], v[:, t], beta_t, g[:, t], prior, state, output_variance=output_variance
            )
            tokens.append(out)
        assert all(out.final_state.mean is state.mean for out in tokens)
        variance = torch.stack([out.variance for out in tokens], 1).cpu() if output_variance else None
        final = PalimpsaState(*(x.cpu() for x in state))
        return PalimpsaOutput(torch.stack([out.o for out in tokens], 1).cpu(), variance, final)

    return run


def failures(operator, problem, flat):
    """Outputs for which err(operator, fp64) > 2 err(reference in that dtype, fp64) + 1e-5."""
    truth = flat(problem.to(torch.float64).run(palimpsa_reference))
    reference, actual = flat(problem.run(palimpsa_reference)), flat(problem.run(operator))
    found = {}
    for name, exact in truth.items():
        assert actual[name].dtype == reference[name].dtype
        error, allowed = ((x[name].double() - exact).abs().max().item() for x in (actual, reference))
        limit = 2 * allowed + 1e-5 * max(1.0, exact.abs().max().item())
        if not error <= limit:
            found[name] = f"{error:.2e} > {limit:.2e}"
    return found


@pytest.mark.parametrize(
    "shape",
    [(2, 3, 2, 5, 5), (1, 3, 2, 16, 16), (1, 2, 2, 20, 33), (1, 2, 1, 33, 130), (1, 2, 1, 48, 96), (1, 1, 1, 256, 256)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("beta", [True, False])
def test_a_step_is_as_exact_as_the_reference(Problem, flat, steps, shape, dtype, beta):
    assert failures(steps, Problem(shape, dtype, beta=beta), flat) == {}


# Groups of several tiles, of one that they fill or do not, several a tile of some keys, a program with fewer.
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        *(((2, 3, 2, 5, 8), 1), ((2, 3, 2, 5, 8), 4), ((1, 2, 2, 20, 66), 1), ((1, 2, 1, 48, 96), 1)),
        *(
            ((1, 2, 1, 48, 96), 16),
            ((1, 2, 2, 48, 96), 2),
            ((1, 2, 1, 33, 62), 31),
            ((1, 2, 1, 96, 20), 4),
            ((1, 2, 1, 80, 192), 12),
        ),
        *(((1, 1, 1, 256, 256), 1), ((1, 2, 2, 1, 2), 1)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("beta", [True, False])
def test_a_step_of_groups_is_as_exact_as_the_reference(Problem, flat, steps, shape, groups, dtype, beta):
    assert failures(steps, Problem(shape, dtype, beta=beta, groups=groups), flat) == {}


def test_a_step_of_wrongly_assigned_groups_fails_the_comparison(Problem, flat, steps):
    problem = Problem((2, 3, 2, 5, 8), torch.float32, groups=2)

    def interleaved(q, k, v, *args, initial_state, **options):
        # As if row r were of group r % G.
        order = torch.arange(8).view(4, 2).T.flatten()
        back = order.argsort()
        mean, importance = initial_state
        out = steps(q, k, v[..., order], *args, initial_state=(mean[..., order], importance), **options)
        state = PalimpsaState(out.final_state.mean[..., back], out.final_state.importance)
        return PalimpsaOutput(out.o[..., back], out.variance[..., back], state)

    assert failures(steps, problem, flat) == {}
    assert failures(interleaved, problem, flat).keys() == {"o", "variance", "mean"}


@pytest.mark.parametrize("g", [-math.inf, -50.0, -1e-6, 0.0])
@pytest.mark.parametrize("state", [True, False])
def test_extreme_decays(Problem, flat, steps, g, state):
    problem = Problem((1, 3, 2, 5, 8), torch.float32, state=state)
    problem["g"][:, 1] = g
    assert failures(steps, problem, flat) == {}


@pytest.mark.parametrize("beta", [0.0, 1e3])
@pytest.mark.parametrize("prior", [1e-3, 1e3])
def test_extreme_precisions(Problem, flat, steps, beta, prior):
    problem = Problem((1, 3, 2, 5, 8), torch.float32, state=False)
    problem["beta"].fill_(beta)
    problem["importance_prior"].fill_(prior)
    assert failures(steps, problem, flat) == {}


def test_without_beta_importance_changes_by_forgetting_alone(Problem, device):
    problem = Problem((2, 1, 2, 5, 8), torch.float32, beta=False)
    for g in (0.0, -0.5):
        problem["g"].fill_(g)
        q, k, v, _, decay, prior = (x if x is None or x.ndim == 1 else x[:, 0] for x in problem.args)
        state = [x.to(device, copy=True) for x in problem.state]
        palimpsa_step(*(x.to(device) for x in (q, k, v)), None, decay.to(device), prior.to(device), state)
        alpha = math.exp(g)
        expected = alpha * problem["importance"] + (1 - alpha) * prior[:, None, None]
        torch.testing.assert_close(state[1].cpu(), expected, rtol=0 if g == 0 else 1e-6, atol=0)


# Of one tile, and of several of keys or of rows.
@pytest.mark.parametrize(
    ("shape", "groups"),
    [*(((2, 1, 3, 5, 8), groups) for groups in (8, 2, 1)), ((1, 1, 3, 80, 192), 12), ((1, 1, 3, 5, 96), 1)],
)
def test_strides_change_nothing(Problem, device, shape, groups):
    problem = Problem(shape, torch.float32, groups=groups)
    token = [x.to(device) if x.ndim == 1 else x[:, 0].to(device) for x in problem.args]
    plain = PalimpsaState(*(x.to(device, copy=True) for x in problem.state))
    expected = palimpsa_step(*token, plain, output_variance=True)
    B, _, H, K, _ = shape
    strided = [torch.ones(B, H, x.shape[3], 2 * K, device=device).mT[:, :, ::2].copy_(x) for x in problem.state]
    # A row of a state of several layers: aligned, and not one after the other.
    layers = [torch.ones(B, 4, *x.shape[1:], device=device)[:, 1].copy_(x) for x in problem.state]
    # Every second entry of larger tensors, and views that repeat one entry.
    token = [torch.stack([x, x * torch.nan], -1)[..., 0] for x in token]
    for state in (strided, layers):
        out = palimpsa_step(*token, state, output_variance=True)
        for x, y in zip((out.o, out.variance, *state), (expected.o, expected.variance, *plain), strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-6)
    # One precision that all tokens and heads share, as a view.
    token[3] = token[3][:1, :1, :1].expand_as(token[3])
    expected = palimpsa_step(*(x.contiguous() for x in token), plain)
    torch.testing.assert_close(palimpsa_step(*token, layers).o, expected.o, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 1, 2, 4, 5), (2, 1, 0, 4, 5), (2, 1, 2, 4, 0)])
def test_empty_dimensions(Problem, device, shape):
    problem = Problem(shape, torch.float32)
    token = [x.to(device) if x.ndim == 1 else x[:, 0].to(device) for x in problem.args]
    out = palimpsa_step(*token, [x.to(device) for x in problem.state], output_variance=True)
    B, _, H, _, V = shape
    assert out.o.shape == out.variance.shape == (B, H, V)


def test_a_dropped_term_fails_the_comparison(Problem, flat, steps):
    problem = Problem((2, 3, 2, 5, 8), torch.float32)

    def without_plasticity(q, k, v, beta, *rest, **options):
        return steps(q, k, v, None, *rest, **options)

    def without_giving_back(q, k, v, beta, g, prior, **options):
        return steps(q, k, v, beta, g, prior * 1e-9, **options)

    assert failures(steps, problem, flat) == {}
    for broken in (without_plasticity, without_giving_back):
        assert failures(broken, problem, flat).keys() >= {"o", "variance", "mean", "importance"}


def test_sizes_above_the_limit_are_errors(Problem, device):
    problem = Problem((1, 1, 1, 257, 1), torch.float32)
    token = [x.to(device) if x.ndim == 1 else x[:, 0].to(device) for x in problem.args]
    with pytest.raises(ValueError, match=r"q has K = 257.*K <= 256"):
        palimpsa_step(*token, [x.to(device) for x in problem.state])


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(8, 3, 16, 96, 192), (2, 2, 3, 48, 96), (2, 2, 3, 17, 31)])
def test_bfloat16_on_the_gpu(Problem, flat, steps, shape):
    assert failures(steps, Problem(shape, torch.bfloat16), flat) == {}


@pytest.mark.gpu
def test_a_cuda_graph_of_a_step_can_be_replayed(Problem, device):
    problem = Problem((4, 1, 2, 48, 96), torch.bfloat16)
    token = [x.to(device) if x.ndim == 1 else x[:, 0].to(device) for x in problem.args]
    state = PalimpsaState(*(x.to(device, copy=True) for x in problem.state))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        palimpsa_step(*token, state)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = palimpsa_step(*token, state)
    expected = PalimpsaState(*(x.clone() for x in state))
    for _ in range(3):
        graph.replay()
        again = palimpsa_step(*token, expected)
        torch.testing.assert_close(out.o, again.o, rtol=0, atol=0)
    torch.testing.assert_close(state.importance, expected.importance, rtol=0, atol=0)
