"""What the recurrence must do, whatever computes it: resets, split sequences, causality, bounds, packed sequences."""

# B batch, T time, H heads, K key dim, V value dim, N sequences packed along T
import math
from itertools import pairwise

import pytest
import torch

from palimpsa.kernels import PalimpsaState, palimpsa_chunked, palimpsa_reference

OPERATORS = [palimpsa_reference, palimpsa_chunked]
every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=["reference", "chunked"])
VARIANTS = [(True, True), (True, False), (False, True), (False, False)]
every_variant = pytest.mark.parametrize(("beta", "state"), VARIANTS)


def test_reference_is_the_equations_in_scalars():
    # One key, one value, two tokens, by hand: alpha = 1/2, I_prior = 1, scale = 2.
    one = torch.ones(1, 2, 1, 1, dtype=torch.float64)
    g = torch.full((1, 2, 1), math.log(0.5), dtype=torch.float64)
    prior = torch.ones(1, dtype=torch.float64)
    for operator in OPERATORS:
        out = operator(one, 3 * one, one, one, g, prior, scale=2, output_variance=True, output_final_state=True)
        # I_1 = 1/2 + 1/2 + 9, M_1 = 3;  I_2 = 10/2 + 1/2 + 9, M_2 = 3/2 + 3.
        expected = [2 * 3 / 10, 2 * 4.5 / 14.5]
        torch.testing.assert_close(out.o.flatten().tolist(), expected)
        torch.testing.assert_close(out.variance.flatten().tolist(), [4 / 10, 4 / 14.5])
        torch.testing.assert_close(out.final_state.mean.item(), 4.5 / 14.5)
        torch.testing.assert_close(out.final_state.importance.item(), 14.5)


@every_operator
@every_variant
@pytest.mark.parametrize("cut", [0, 1, 7, 16, 30, 31])
def test_a_split_sequence_with_carried_state_equals_the_whole(Problem, assert_equal, operator, beta, state, cut):
    problem = Problem((2, 31, 2, 3, 5), beta=beta, state=state)

    def split(*args, initial_state, **options):
        parts = [
            [x if x is None or x.ndim == 1 else x[:, part] for x in args] for part in (slice(cut), slice(cut, None))
        ]
        first = operator(*parts[0], initial_state=initial_state, **options)
        second = operator(*parts[1], initial_state=first.final_state, **options)
        return second._replace(
            o=torch.cat([first.o, second.o], 1), variance=torch.cat([first.variance, second.variance], 1)
        )

    assert_equal(problem.run(split), problem.run(operator), 1e-10)
    assert_equal(problem.gradients(split), problem.gradients(operator), 1e-9)


@every_variant
def test_no_forgetting(Problem, assert_equal, beta, state):
    problem = Problem((2, 40, 2, 3, 5), beta=beta, state=state)
    problem["g"].zero_()
    assert_equal(problem.run(palimpsa_chunked), problem.run(palimpsa_reference), 1e-10)
    expected = problem.gradients(palimpsa_reference)
    assert_equal(problem.gradients(palimpsa_chunked), expected, 1e-9)


@every_operator
@every_variant
def test_a_reset_forgets_everything_before_it(Problem, assert_equal, operator, beta, state):
    problem = Problem((2, 40, 2, 3, 5), beta=beta, state=state)
    # The first token, two in a row, one at the end of a chunk of 8, the last.
    for t in (0, 13, 14, 23, 39):
        problem["g"][:, t] = -math.inf
    problem["g"][1, 30, 1] = -math.inf
    out = problem.run(operator)
    fresh = [x if x is None or x.ndim == 1 else x[:, 14:30] for x in problem.args]
    expected = operator(*fresh, output_variance=True)
    assert_equal({"o": out.o[:, 14:23]}, {"o": expected.o[:, :9]}, 1e-12)
    assert_equal({"var": out.variance[:, 14:23]}, {"var": expected.variance[:, :9]}, 1e-12)

    gradients = problem.gradients(operator)
    # Finite, and equal to the reference's.
    assert_equal(gradients, problem.gradients(palimpsa_reference), 1e-9)
    assert_equal(problem.run(operator), problem.run(palimpsa_reference), 1e-10)
    # alpha = 0 does not move with g, and nothing reaches the initial state.
    assert (gradients["g"][:, [0, 13, 14, 23, 39]] == 0).all()
    if state:
        assert (gradients["mean"] == 0).all()
        assert (gradients["importance"] == 0).all()


@every_operator
def test_almost_a_reset_in_float32(Problem, assert_equal, operator):
    # exp(-100) is a denormal number in float32, exp(-104) is 0.
    for g in (-80.0, -100.0, -104.0, -1e30):
        problem = Problem((1, 20, 2, 3, 5), torch.float32)
        problem["g"][:, 9] = g
        reset = Problem((1, 20, 2, 3, 5), torch.float32)
        reset["g"][:, 9] = -math.inf
        assert_equal(problem.run(operator), reset.run(operator), 1e-6)
        assert_equal(problem.gradients(operator), reset.gradients(operator), 1e-5)


@pytest.mark.parametrize("state", [True, False])
@every_operator
def test_zero_beta_equals_no_beta(Problem, assert_equal, operator, state):
    without = Problem((2, 33, 2, 4, 5), beta=False, state=state)
    zero = Problem((2, 33, 2, 4, 5), beta=False, state=state)
    zero.tensors["beta"] = torch.zeros_like(zero["v"])
    assert_equal(zero.run(operator), without.run(operator), 1e-12)
    gradients = zero.gradients(operator)
    del gradients["beta"]
    assert_equal(gradients, without.gradients(operator), 1e-10)


@every_operator
@every_variant
def test_no_tokens(Problem, operator, beta, state):
    problem = Problem((2, 0, 3, 4, 5), beta=beta, state=state)
    out = problem.run(operator)
    assert out.o.shape == out.variance.shape == (2, 0, 3, 5)
    mean, importance = out.final_state
    if state:
        torch.testing.assert_close(mean, problem["mean"], rtol=0, atol=0)
        torch.testing.assert_close(importance, problem["importance"], rtol=0, atol=0)
    else:
        assert (mean == 0).all()
        expected = problem["importance_prior"][:, None, None].expand(2, 3, 4, 5)
        torch.testing.assert_close(importance, expected, rtol=0, atol=0)
    gradients = problem.gradients(operator, ("mean", "importance"))
    if state:
        assert (gradients["mean"] != 0).all()
        assert (gradients["importance_prior"] == 0).all()
    else:
        assert (gradients["importance_prior"] != 0).all()


@every_operator
@every_variant
@pytest.mark.parametrize("shape", [(0, 3, 2, 4, 5), (2, 0, 2, 4, 5), (2, 3, 2, 4, 0)])
def test_of_nothing_every_gradient_is_zeros(Problem, operator, beta, state, shape):
    problem = Problem(shape, beta=beta, state=state)
    for output in ("o", "variance"):
        leaves = {name: x.requires_grad_() for name, x in problem.tensors.items() if x is not None}
        out = problem.run(operator)
        gradients = torch.autograd.grad(getattr(out, output).sum(), list(leaves.values()))
        for x, grad in zip(leaves.values(), gradients, strict=True):
            assert torch.equal(grad, torch.zeros_like(x))


@every_operator
@pytest.mark.parametrize("shape", [(0, 3, 2, 4, 5), (2, 3, 0, 4, 5), (2, 3, 2, 4, 0)])
def test_other_empty_dimensions(Problem, operator, shape):
    B, T, H, K, V = shape
    out = Problem(shape, state=False).run(operator)
    assert out.o.shape == (B, T, H, V)
    assert out.final_state.mean.shape == out.final_state.importance.shape == (B, H, K, V)


@every_operator
@every_variant
@pytest.mark.parametrize("t", [0, 5, 16, 30])
def test_causality(Problem, operator, beta, state, t):
    problem = Problem((1, 33, 2, 3, 4), beta=beta, state=state)
    out = problem.run(operator)
    changed = Problem((1, 33, 2, 3, 4), beta=beta, state=state)
    for name in ("q", "k", "v", "beta", "g"):
        if changed[name] is not None:
            changed[name][:, t] *= 1.5
    after = changed.run(operator)
    torch.testing.assert_close(after.o[:, :t], out.o[:, :t], rtol=0, atol=1e-14)
    torch.testing.assert_close(after.variance[:, :t], out.variance[:, :t], rtol=0, atol=1e-14)
    assert (after.o[:, t] != out.o[:, t]).any()

    def past(*args, **options):
        out = operator(*args, **options)
        return out._replace(o=out.o[:, :t], variance=out.variance[:, :t])

    gradients = problem.gradients(past, ("o", "variance"))
    for name in ("q", "k", "v", "beta", "g"):
        if name in gradients:
            assert (gradients[name][:, t:] == 0).all(), name
    assert t == 0 or (gradients["v"][:, :t] != 0).any()


@every_operator
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_importance_is_never_below_the_prior(Problem, operator, dtype):
    rounding = 4 * torch.finfo(dtype).eps
    for num_tokens in (1, 10, 100):
        problem = Problem((2, num_tokens, 3, 4, 5), dtype, state=False)
        prior = problem["importance_prior"][:, None, None]
        importance = problem.run(operator).final_state.importance
        assert (importance >= prior * (1 - num_tokens * rounding)).all()


@every_operator
def test_importance_is_never_below_what_the_prior_and_the_start_leave(Problem, operator):
    problem = Problem((2, 60, 3, 4, 5))
    kept = problem["g"].sum(1).exp()[..., None, None]
    prior = problem["importance_prior"][:, None, None]
    floor = (1 - kept) * prior + kept * problem["importance"]
    importance = problem.run(operator).final_state.importance
    assert (importance >= floor * (1 - 1e-12)).all()
    # With beta = 0 that is all there is.
    bare = Problem((2, 60, 3, 4, 5), beta=False)
    bare.tensors["g"] = problem["g"]
    bare.tensors["importance"] = problem["importance"]
    bare.tensors["importance_prior"] = problem["importance_prior"]
    torch.testing.assert_close(bare.run(operator).final_state.importance, floor)


@every_operator
def test_heads_and_batch_rows_are_independent(Problem, operator):
    problem = Problem((3, 21, 4, 3, 5))
    out = problem.run(operator)
    rows, heads = [2, 0], [3, 1]
    part = [x[rows][:, :, heads] for x in problem.args[:5]]
    state = [x[rows][:, heads] for x in problem.state]
    alone = operator(*part, problem["importance_prior"][heads], initial_state=state)
    torch.testing.assert_close(alone.o, out.o[rows][:, :, heads], rtol=0, atol=1e-12)


BOUNDS = [
    [0, 25],
    [0, 0, 25],
    [0, 7, 7, 7, 20, 25],
    [0, 25, 25],
    [0, 1, 2, 9, 25],
]


@every_operator
@every_variant
@pytest.mark.parametrize("bounds", BOUNDS, ids=lambda bounds: "bounds" + "_".join(map(str, bounds)))
def test_packed_sequences_equal_separate_ones(Problem, assert_equal, operator, beta, state, bounds):
    num_sequences = len(bounds) - 1
    problem = Problem((1, 25, 2, 3, 5), beta=beta, state=state, num_states=num_sequences)

    def separate(*args, initial_state, cu_seqlens, **options):
        outputs = []
        for n, (start, end) in enumerate(pairwise(bounds)):
            part = [x if x is None or x.ndim == 1 else x[:, start:end] for x in args]
            own = None if initial_state is None else [x[n : n + 1] for x in initial_state]
            outputs.append(palimpsa_reference(*part, initial_state=own, **options))
        return outputs[0]._replace(
            o=torch.cat([out.o for out in outputs], 1),
            variance=torch.cat([out.variance for out in outputs], 1),
            final_state=PalimpsaState(*(torch.cat(x) for x in zip(*(out.final_state for out in outputs), strict=True))),
        )

    for dtype in (torch.int64, torch.int32):
        cu_seqlens = torch.tensor(bounds, dtype=dtype)
        assert_equal(problem.run(operator, cu_seqlens=cu_seqlens), problem.run(separate, cu_seqlens=cu_seqlens), 1e-10)
    expected = problem.gradients(separate, cu_seqlens=cu_seqlens)
    assert_equal(problem.gradients(operator, cu_seqlens=cu_seqlens), expected, 1e-9)


@every_operator
def test_packed_sequences_of_no_tokens(Problem, operator):
    problem = Problem((1, 0, 2, 3, 5), num_states=2)
    out = problem.run(operator, cu_seqlens=torch.tensor([0, 0, 0]))
    assert out.o.shape == (1, 0, 2, 5)
    torch.testing.assert_close(out.final_state.mean, problem["mean"], rtol=0, atol=0)
