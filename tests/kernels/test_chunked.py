"""The chunked path against the reference: values, gradients, memory."""

# B batch, T time, H heads, K key dim, V value dim, N sequences packed along T
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from palimpsa.kernels import palimpsa_chunked, palimpsa_reference

LENGTHS = [0, 1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 129, 130]
CHUNK_SIZES = [None, 1, 3, 16, 64, 200]
# Odd sizes, and both sides of 400 = K V, where another product of matrices takes over.
SHAPES = [(1, 1, 1, 1, 1), (2, 37, 3, 5, 7), (1, 20, 2, 16, 25), (3, 33, 2, 24, 40), (2, 63, 4, 48, 96)]


def chunked(chunk_size):
    return lambda *args, **options: palimpsa_chunked(*args, chunk_size=chunk_size, **options)


@pytest.mark.parametrize("num_tokens", LENGTHS)
@pytest.mark.parametrize(("beta", "state"), [(True, True), (True, False), (False, True), (False, False)])
def test_chunked_matches_reference_at_every_length(Problem, assert_equal, num_tokens, beta, state):
    problem = Problem((2, num_tokens, 2, 3, 5), beta=beta, state=state, seed=num_tokens)
    expected = problem.run(palimpsa_reference)
    for chunk_size in CHUNK_SIZES:
        assert_equal(problem.run(chunked(chunk_size)), expected, 1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("chunk_size", [None, 7])
@pytest.mark.parametrize("state", [True, False])
def test_chunked_matches_reference(Problem, assert_equal, shape, chunk_size, state):
    problem = Problem(shape, state=state)
    operator = chunked(chunk_size)
    assert_equal(problem.run(operator), problem.run(palimpsa_reference), 1e-10)
    assert_equal(problem.gradients(operator), problem.gradients(palimpsa_reference), 1e-9)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 5])
def test_blocks_of_batch_rows_change_nothing(Problem, assert_equal, monkeypatch, num_rows):
    problem = Problem((5, 11, 2, 4, 6))
    expected = problem.run(palimpsa_reference), problem.gradients(palimpsa_reference)
    # The module, not the function of the same package.
    module = __import__("sys").modules[palimpsa_chunked.__module__]
    monkeypatch.setattr(module, "make_plan", lambda *args: module.Plan(num_rows, 4))
    assert_equal(problem.run(palimpsa_chunked), expected[0], 1e-10)
    assert_equal(problem.gradients(palimpsa_chunked), expected[1], 1e-9)


@pytest.mark.parametrize(
    "outputs", [("o",), ("variance",), ("mean",), ("importance",), ("o", "variance")], ids="+".join
)
@pytest.mark.parametrize(("beta", "state"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("chunk_size", [1, 3, 16])
def test_gradients_match_reference_through_each_output(Problem, assert_equal, outputs, beta, state, chunk_size):
    problem = Problem((2, 13, 2, 4, 5), beta=beta, state=state)
    expected = problem.gradients(palimpsa_reference, outputs)
    assert_equal(problem.gradients(chunked(chunk_size), outputs), expected, 1e-9)


@pytest.mark.parametrize("num_tokens", [0, 1, 2, 17, 65, 130])
def test_gradients_match_reference_at_every_length(Problem, assert_equal, num_tokens):
    problem = Problem((1, num_tokens, 2, 3, 4), seed=num_tokens)
    expected = problem.gradients(palimpsa_reference)
    for chunk_size in CHUNK_SIZES:
        assert_equal(problem.gradients(chunked(chunk_size)), expected, 1e-9)


@pytest.mark.parametrize(("beta", "state"), [(True, True), (True, False), (False, True), (False, False)])
def test_gradcheck(Problem, flat, beta, state):
    problem = Problem((1, 5, 2, 2, 3), beta=beta, state=state)
    names = [name for name, x in problem.tensors.items() if x is not None]

    def function(*leaves):
        copy = Problem.__new__(Problem)
        copy.tensors = {**problem.tensors, **dict(zip(names, leaves, strict=True))}
        return tuple(flat(copy.run(chunked(2))).values())

    leaves = [problem[name].clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("name", ["q", "k", "v", "beta", "g", "importance_prior", "mean", "importance"])
def test_one_leaf_at_a_time(Problem, name):
    problem = Problem((2, 9, 2, 3, 4))
    expected = problem.gradients(palimpsa_reference, ("o",))[name]
    leaf = problem.tensors[name] = problem[name].clone().requires_grad_()
    out = problem.run(chunked(4), output_final_state=False, output_variance=False)
    generator = torch.Generator().manual_seed(1)
    out.o.backward(torch.randn(out.o.shape, generator=generator, dtype=torch.float64))
    torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=1e-9)


def test_second_derivatives_are_refused_by_chunked_alone(Problem):
    problem = Problem((1, 3, 1, 2, 2))
    q = problem.tensors["q"] = problem["q"].clone().requires_grad_()
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(problem.run(palimpsa_chunked).o.sum(), q, create_graph=True)
    (dq,) = torch.autograd.grad(problem.run(palimpsa_reference).variance.sum(), q, create_graph=True)
    dq.sum().backward()
    assert q.grad is not None


@pytest.mark.parametrize("shape", [(2, 63, 4, 48, 96), (2, 130, 2, 8, 16), (1, 257, 2, 16, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("beta", [True, False])
def test_lower_precision_is_as_exact_as_the_reference(Problem, failures, shape, dtype, beta):
    # Without a state, beta = None takes the path of matrix products.
    problem = Problem(shape, dtype, beta=beta, state=beta)
    assert failures(palimpsa_chunked, problem) == {}


def dropped_prior(q, k, v, beta, g, importance_prior, **options):
    """Forgetting without giving back to the prior: as if (1 - alpha) I_prior were dropped from Eq. 25."""
    return palimpsa_chunked(q, k, v, beta, g, importance_prior * 0 + 1e-30, **options)


def dropped_square(q, k, v, beta, g, importance_prior, **options):
    """An importance written by a constant instead of k^2 (beta is scaled to keep its size)."""
    beta = beta * k.square().mean(-1, keepdim=True).detach()
    return palimpsa_chunked(q, torch.ones_like(k) * k.sign(), v, beta, g, importance_prior, **options)


@pytest.mark.parametrize("broken", [dropped_prior, dropped_square])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dropped_term_fails_the_comparison(Problem, failures, broken, dtype):
    problem = Problem((2, 63, 2, 8, 16), dtype)
    assert failures(palimpsa_chunked, problem) == {}
    found = failures(broken, problem)
    assert {"o", "importance"} <= found.keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_beta_beside_lower_precision(Problem, assert_equal, dtype):
    problem = Problem((1, 20, 2, 3, 4), dtype)
    expected = problem.run(palimpsa_reference)
    problem.tensors["beta"] = problem["beta"].float()
    assert_equal(problem.run(palimpsa_chunked), expected, 1e-6 if dtype == torch.float32 else 1e-2)
    assert problem.gradients(palimpsa_chunked)["beta"].dtype == torch.float32


def test_autocast_changes_nothing(Problem, assert_equal):
    for beta in (True, False):
        problem = Problem((2, 40, 2, 16, 32), torch.float32, beta=beta, state=beta)
        for operator in (palimpsa_chunked, palimpsa_reference):
            expected = problem.run(operator), problem.gradients(operator)
            with torch.autocast("cpu", torch.bfloat16):
                assert_equal(problem.run(operator), expected[0], 0)
                # Autograd runs the backward of plain operations under the caller's autocast: only the chunked
                # path's own backward can be shielded from it.
                if beta:
                    assert_equal(problem.gradients(operator), expected[1], 0)


def test_strides_change_nothing(Problem, assert_equal):
    problem = Problem((2, 19, 3, 4, 6))
    # Values shared by all heads and tokens, seen through an expanded view.
    problem.tensors["beta"] = problem["beta"][:, :1, :1].expand(2, 19, 3, 6)
    expected = problem.run(palimpsa_reference)
    strided = Problem((2, 19, 3, 4, 6))
    for name, x in problem.tensors.items():
        if name != "beta":
            # Every second entry of a larger tensor, dimensions stored backwards.
            larger = torch.full([2 * size for size in reversed(x.shape)], torch.nan, dtype=x.dtype)
            view = larger[tuple(slice(None, None, 2) for _ in x.shape)].permute(*reversed(range(x.ndim)))
            strided.tensors[name] = view.copy_(x)
    strided.tensors["beta"] = problem["beta"]
    for operator in (palimpsa_chunked, palimpsa_reference):
        assert_equal(strided.run(operator), expected, 1e-12)


def test_gradient_of_an_expanded_view(Problem, assert_equal):
    found = []
    for operator in (palimpsa_chunked, palimpsa_reference):
        problem = Problem((2, 9, 3, 4, 6))
        base = problem["beta"][:, :1, :1].clone().requires_grad_()
        problem.tensors["beta"] = base.expand(2, 9, 3, 6)
        # sum() hands back an expanded gradient as well.
        problem.run(operator).o.sum().backward()
        found.append({"beta": base.grad})
    assert_equal(*found, 1e-10)


def test_final_state_never_shares_memory_with_the_initial_one(Problem):
    for operator in (palimpsa_chunked, palimpsa_reference):
        for num_tokens in (0, 3):
            problem = Problem((1, num_tokens, 1, 2, 2))
            before = [x.clone() for x in problem.state]
            for x in problem.run(operator).final_state:
                x.zero_()
            for x, y in zip(problem.state, before, strict=True):
                torch.testing.assert_close(x, y, rtol=0, atol=0)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(*(st.integers(1, n) for n in (3, 40, 3, 9, 9))),
    chunk_size=st.integers(1, 45),
    seed=st.integers(0, 2**31),
    beta=st.booleans(),
    state=st.booleans(),
)
def test_any_shape(Problem, assert_equal, shape, chunk_size, seed, beta, state):
    problem = Problem(shape, beta=beta, state=state, seed=seed)
    operator = chunked(chunk_size)
    assert_equal(problem.run(operator), problem.run(palimpsa_reference), 1e-10)
    assert_equal(problem.gradients(operator), problem.gradients(palimpsa_reference), 1e-9)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest storage that any operation returned."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(result):
            if isinstance(x, torch.Tensor):
                self.size = max(self.size, x.untyped_storage().nbytes() // x.element_size())
        return result


@pytest.mark.parametrize("beta", [True, False])
def test_memory_does_not_grow_like_all_states(Problem, beta):
    largest, kept = {}, {}
    for T in (256, 1024):
        B, H, K, V = 2, 4, 32, 64
        problem = Problem((B, T, H, K, V), torch.float32, beta=beta, state=beta)
        saved = {}

        def pack(x, saved=saved):
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes() // x.element_size()
            return x

        with LargestTensor() as watch, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            problem.gradients(palimpsa_chunked)
        all_states = B * T * H * K * V
        largest[T], kept[T] = watch.size / all_states, sum(saved.values()) / all_states
    # 4 C states at work in one piece and 2 T / C kept, with C = T^(1/2). The arguments are 1/12 of all states.
    assert largest[256] <= 0.3
    assert kept[256] <= 0.4
    # Four times the tokens, twice the memory.
    if beta:
        assert largest[1024] <= 0.6 * largest[256]
        assert kept[1024] <= 0.75 * kept[256]
