"""A precision for each group of rows equals the published form with each precision repeated over its rows."""

# B batch, T time, H heads, K key dim, V value dim, G precisions a head, N sequences packed along T
import importlib
import math

import pytest
import torch

from palimpsa.kernels import PalimpsaState, palimpsa, palimpsa_chunked, palimpsa_reference, palimpsa_step

GROUPS = importlib.import_module("palimpsa.kernels.groups")
OPERATORS = [palimpsa_reference, palimpsa_chunked]
every_operator = pytest.mark.parametrize("operator", OPERATORS, ids=["reference", "chunked"])
every_variant = pytest.mark.parametrize(("beta", "state"), [(True, True), (True, False), (False, True)])
SHAPE = (2, 37, 2, 4, 6)


def repeated(q, k, v, beta, g, prior, *, initial_state=None, **options):
    """The reference of precisions for every row, and of its final importance one row a group."""
    V = v.shape[-1]
    G = (initial_state[1] if beta is None else beta).shape[-1]

    def for_rows(x):
        return x if x is None or G == V else x.repeat_interleave(V // G, -1)

    state = None if initial_state is None else (initial_state[0], for_rows(initial_state[1]))
    out = palimpsa_reference(q, k, v, for_rows(beta), g, prior, initial_state=state, **options)
    if out.final_state is None or G == V:
        return out
    mean, importance = out.final_state
    return out._replace(final_state=PalimpsaState(mean, importance.unflatten(-1, (G, -1))[..., -1]))


def assert_repeated(problem, operator, assert_equal, **options):
    assert_equal(problem.run(operator, **options), problem.run(repeated, **options), 1e-10)
    assert_equal(problem.gradients(operator, **options), problem.gradients(repeated, **options), 1e-9)


@every_operator
@every_variant
@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_it_equals_the_published_form_with_beta_repeated(Problem, assert_equal, operator, beta, state, groups):
    assert_repeated(Problem(SHAPE, beta=beta, state=state, groups=groups), operator, assert_equal)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 2), (3, 130, 2, 16, 32), (2, 65, 2, 48, 96)])
@pytest.mark.parametrize("groups", [1, 2])
def test_it_equals_the_published_form_at_other_sizes(Problem, assert_equal, shape, groups):
    assert_repeated(Problem(shape, state=False, groups=groups), palimpsa_chunked, assert_equal)


@every_operator
@pytest.mark.parametrize("outputs", [("o",), ("variance",), ("mean",), ("importance",)], ids="+".join)
def test_gradients_through_each_output(Problem, assert_equal, operator, outputs):
    problem = Problem((2, 13, 2, 4, 6), groups=2)
    assert_equal(problem.gradients(operator, outputs), problem.gradients(repeated, outputs), 1e-9)


@every_operator
@pytest.mark.parametrize("g", [-math.inf, 0.0])
def test_extreme_decays(Problem, assert_equal, operator, g):
    problem = Problem(SHAPE, groups=2)
    problem["g"][:, 3:36:8] = g
    assert_repeated(problem, operator, assert_equal)


@every_operator
@every_variant
def test_packed_sequences(Problem, assert_equal, operator, beta, state):
    problem = Problem((1, 37, 2, 4, 6), beta=beta, state=state, num_states=4, groups=3)
    assert_repeated(problem, operator, assert_equal, cu_seqlens=torch.tensor([0, 5, 5, 36, 37]))


@every_operator
def test_a_precision_that_all_tokens_share_as_a_view(Problem, assert_equal, operator):
    problem = Problem(SHAPE, groups=2)
    expected = problem["beta"][:, :1, :1].expand_as(problem["beta"])
    problem.tensors["beta"] = expected.contiguous()
    found = problem.run(operator)
    problem.tensors["beta"] = expected
    assert_equal(problem.run(operator), found, 0)
    # And all groups: a view of a view once it is repeated.
    problem.tensors["beta"] = expected[..., :1].expand_as(expected)
    assert_repeated(problem, operator, assert_equal)


# Without values there are no groups of them: G is 0, as V is.
@every_operator
@pytest.mark.parametrize(
    ("shape", "groups"), [((2, 0, 2, 4, 6), 2), ((0, 3, 2, 4, 6), 2), ((2, 3, 0, 4, 6), 1), ((2, 3, 2, 4, 0), 0)]
)
@pytest.mark.parametrize("state", [True, False])
def test_nothing_to_compute(Problem, assert_equal, operator, shape, groups, state):
    problem = Problem(shape, state=state, groups=groups)
    out = problem.run(operator)
    B, _, H, K, V = shape
    assert out.final_state.mean.shape == (B, H, K, V)
    assert out.final_state.importance.shape == (B, H, K, groups)
    assert_equal(out, problem.run(palimpsa_reference), 0)
    assert_equal(problem.gradients(operator), problem.gradients(palimpsa_reference), 0)


def test_without_values_only_no_groups_are_taken(Problem):
    problem = Problem((2, 3, 2, 4, 0), state=False, groups=1)
    with pytest.raises(ValueError, match=r"beta has shape \(2, 3, 2, 1\), .*G a divisor of V = 0"):
        problem.run(palimpsa)


@pytest.mark.parametrize("groups", [1, 3])
def test_without_beta_the_state_says_how_many_groups(Problem, assert_equal, groups):
    problem = Problem(SHAPE, beta=False, groups=groups)
    for operator in OPERATORS:
        out = problem.run(operator)
        assert out.final_state.importance.shape[-1] == groups
        problem.tensors["beta"] = torch.zeros(*SHAPE[:3], groups, dtype=torch.float64)
        assert_equal(out, problem.run(operator), 1e-12)
        problem.tensors["beta"] = None
    # From the prior nothing does: one for every row.
    problem = Problem(SHAPE, beta=False, state=False)
    assert problem.run(palimpsa).final_state.importance.shape[-1] == SHAPE[4]


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("beta", [True, False])
def test_steps_equal_the_sequence(Problem, assert_equal, groups, beta):
    problem = Problem((2, 7, 2, 4, 6), beta=beta, groups=groups)
    expected = problem.run(palimpsa_reference)
    state, outs = PalimpsaState(*(x.clone() for x in problem.state)), []
    for t in range(7):
        token = [x if x is None or x.ndim == 1 else x[:, t] for x in problem.args]
        outs.append(palimpsa_step(*token, state, output_variance=True))
        # Not a view of what is one a group.
        assert outs[-1].o.is_contiguous()
        assert outs[-1].variance.is_contiguous()
    o, variance = (torch.stack([getattr(out, name) for out in outs], 1) for name in ("o", "variance"))
    assert_equal(expected._replace(o=o, variance=variance, final_state=state), expected, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("groups", [1, 4])
def test_lower_precision_is_as_exact_as_the_reference(Problem, failures, dtype, groups):
    assert failures(palimpsa_chunked, Problem((2, 130, 2, 8, 16), dtype, groups=groups)) == {}


def regrouped(q, k, v, beta, *args, initial_state, **options):
    """Row r as if of group r % G."""
    V, G = v.shape[-1], beta.shape[-1]
    order = torch.arange(V).view(V // G, G).T.flatten()
    back = order.argsort()
    mean, importance = initial_state
    out = palimpsa_chunked(q, k, v[..., order], beta, *args, initial_state=(mean[..., order], importance), **options)
    state = PalimpsaState(out.final_state.mean[..., back], out.final_state.importance)
    return out._replace(o=out.o[..., back], variance=out.variance[..., back], final_state=state)


def shared(q, k, v, beta, *args, **options):
    """Every group as if it had the first one's precision."""
    return palimpsa_chunked(q, k, v, beta[..., :1].expand_as(beta), *args, **options)


@pytest.mark.parametrize(
    ("broken", "wrong"),
    [(regrouped, {"o", "variance", "mean", "gradient of beta"}), (shared, {"o", "variance", "importance", "mean"})],
)
def test_a_wrong_precision_fails_the_comparison(Problem, failures, broken, wrong):
    problem = Problem((2, 33, 2, 8, 16), torch.float32, groups=4)
    assert failures(palimpsa_chunked, problem) == {}
    assert wrong <= failures(broken, problem).keys()


@pytest.mark.parametrize("dropped", ["sum_over_rows", "place_in_first_rows"])
def test_a_gradient_that_is_not_added_over_a_group_fails_the_comparison(Problem, failures, monkeypatch, dropped):
    library = importlib.import_module("palimpsa.kernels.library")
    wrong = {"sum_over_rows": GROUPS.first_of_rows, "place_in_first_rows": GROUPS.repeat_for_rows}[dropped]
    problem = Problem((2, 9, 2, 4, 6), torch.float32, groups=2)
    assert failures(palimpsa_chunked, problem) == {}
    monkeypatch.setattr(library, dropped, wrong)
    assert {"gradient of beta", "gradient of importance"} <= failures(palimpsa_chunked, problem).keys()


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_debug_mode_names_what_is_wrong_with_a_precision(Problem, monkeypatch, groups):
    monkeypatch.setenv("PALIMPSA_DEBUG", "1")
    for name, value, message in (
        ("beta", -1.0, "beta must be >= 0"),
        ("importance", 0.0, "initial_state.importance must be > 0"),
    ):
        problem = Problem((1, 3, 1, 2, 6), groups=groups)
        problem[name].view(-1)[-1] = value
        with pytest.raises(ValueError, match=message):
            problem.run(palimpsa)
