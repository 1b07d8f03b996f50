"""The operators as PyTorch knows them: torch.compile, opcheck, torch.func and torch.vmap."""

# B batch, T time, H heads, K key dim, V value dim, G precisions a head
import importlib

import pytest
import torch

from palimpsa.kernels import PalimpsaState, palimpsa, palimpsa_step

LIBRARY = importlib.import_module("palimpsa.kernels.library")


# Without beta it is many small operations, which take inductor most of a minute.
@pytest.mark.parametrize(
    ("backend", "beta", "state", "groups"),
    [
        ("eager", True, True, 6),
        ("aot_eager", True, True, 6),
        ("aot_eager", True, True, 2),
        ("aot_eager", True, False, 1),
        ("aot_eager", False, True, 3),
        ("aot_eager", False, False, 6),
        ("inductor", True, True, 2),
        ("inductor", True, False, 6),
    ],
)
def test_compiled_code_gives_the_same(Problem, assert_equal, backend, beta, state, groups):
    torch.compiler.reset()
    problem = Problem((1, 9, 2, 4, 6), beta=beta, state=state, groups=groups)
    compiled = torch.compile(palimpsa, backend=backend, fullgraph=True)
    tolerance = 1e-12 if backend == "inductor" else 0
    assert_equal(problem.run(compiled), problem.run(palimpsa), tolerance)
    # The compiler may add gradients up in another order.
    assert_equal(problem.gradients(compiled), problem.gradients(palimpsa), 1e-12)


def test_code_compiled_for_any_length_gives_the_same(Problem, assert_equal):
    torch.compiler.reset()
    compiled = torch.compile(palimpsa, backend="aot_eager", fullgraph=True, dynamic=True)
    for num_tokens in (9, 70, 200):
        problem = Problem((2, num_tokens, 2, 4, 5))
        assert_equal(problem.gradients(compiled), problem.gradients(palimpsa), 1e-12)


@pytest.mark.parametrize(("backend", "groups"), [("aot_eager", 6), ("aot_eager", 2), ("inductor", 1)])
def test_a_compiled_step_writes_into_its_state(Problem, assert_equal, backend, groups):
    torch.compiler.reset()
    problem = Problem((2, 1, 2, 4, 6), groups=groups)
    token = [x if x.ndim == 1 else x[:, 0] for x in problem.args]
    found = []
    for function in (palimpsa_step, torch.compile(palimpsa_step, backend=backend, fullgraph=True)):
        state = PalimpsaState(*(x.clone() for x in problem.state))
        out = function(*token, state, output_variance=True)
        assert not torch.equal(state.mean, problem["mean"])
        found.append(out._replace(final_state=state))
    assert_equal(*found, 1e-12)


@pytest.mark.parametrize("outputs", [True, False])
@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("groups", [6, 2])
def test_opcheck_of_forward(Problem, outputs, state, groups):
    problem = Problem((2, 6, 2, 4, 6), torch.float32, state=state, groups=groups)
    tensors = [None if x is None else x.requires_grad_() for x in problem.tensors.values()]
    torch.library.opcheck(LIBRARY.forward, ("chunked", *tensors, None, 0.5, 1, 4, True, outputs, outputs))


@pytest.mark.parametrize("flows", [(True, True, True, True), (True, False, False, False), (False, False, True, False)])
@pytest.mark.parametrize("groups", [6, 2])
def test_opcheck_of_backward(Problem, flows, groups):
    tensors = Problem((2, 6, 2, 4, 6), torch.float32, groups=groups).tensors.values()
    o, variance, mean, importance, kept = LIBRARY.forward("chunked", *tensors, None, 0.5, 1, 4, True, True, True)
    outputs = (o, variance, mean, importance)
    gradients = [torch.randn_like(x) if flow else None for x, flow in zip(outputs, flows, strict=True)]
    args = ("chunked", *tensors, None, mean, importance, kept, *gradients, 0.5, 1, 4, True, flows[0])
    torch.library.opcheck(LIBRARY.backward, args)


@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("groups", [6, 2])
def test_opcheck_of_step(Problem, beta, groups):
    problem = Problem((2, 1, 2, 4, 6), torch.float32, beta=beta, groups=groups)
    token = [x if x is None or x.ndim == 1 else x[:, 0] for x in problem.args]
    torch.library.opcheck(LIBRARY.step, ("chunked", *token, *problem.state, 0.5, True))


NAMES = ("q", "k", "v", "beta", "g", "importance_prior", "mean", "importance")


def outputs_of(*tensors, **options):
    *args, mean, importance = tensors
    state = None if mean is None else (mean, importance)
    out = palimpsa(*args, initial_state=state, output_final_state=True, output_variance=True, **options)
    return (out.o, out.variance, *out.final_state)


def loss_of(*tensors):
    return sum(x.square().sum() for x in outputs_of(*tensors))


class Mapped:
    """Three problems, some of whose arguments are stacked for vmap; the others are the first problem's."""

    def __init__(self, Problem, names, in_dim=0, **kwargs):
        problems = [Problem((2, 6, 2, 4, 6), seed=seed, **kwargs) for seed in range(3)]
        first = problems[0]
        names = [name for name in names if first[name] is not None]
        self.each = [[p[name] if name in names else first[name] for name in NAMES] for p in problems]
        self.args = [
            torch.stack([p[name] for p in problems], in_dim) if name in names else first[name] for name in NAMES
        ]
        self.in_dims = tuple(in_dim if name in names else None for name in NAMES)
        # What a gradient can be taken for.
        self.argnums = tuple(i for i, x in enumerate(self.args) if x is not None)


MAPPINGS = [NAMES, NAMES[:5], ("q",), ("q", "importance_prior"), ("mean", "importance"), ("beta", "g")]

every_mapping = pytest.mark.parametrize("names", MAPPINGS, ids="+".join)


def assert_all_close(actual, expected):
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-10)


@every_mapping
@pytest.mark.parametrize(("in_dim", "groups"), [(0, 6), (1, 6), (1, 2), (0, 1)])
def test_vmap(Problem, names, in_dim, groups):
    mapped = Mapped(Problem, names, in_dim, groups=groups)
    found = torch.func.vmap(outputs_of, in_dims=mapped.in_dims)(*mapped.args)
    for i, tensors in enumerate(mapped.each):
        assert_all_close([x[i] for x in found], outputs_of(*tensors))


@pytest.mark.parametrize(("state", "groups"), [(True, 6), (True, 2), (False, 6)])
def test_vmap_without_beta(Problem, state, groups):
    mapped = Mapped(Problem, NAMES, beta=False, state=state, groups=groups)
    found = torch.func.vmap(outputs_of, in_dims=mapped.in_dims)(*mapped.args)
    for i, tensors in enumerate(mapped.each):
        assert_all_close([x[i] for x in found], outputs_of(*tensors))


@every_mapping
@pytest.mark.parametrize("groups", [6, 2])
def test_vmap_of_grad(Problem, names, groups):
    mapped = Mapped(Problem, names, groups=groups)
    gradient = torch.func.grad(loss_of, argnums=mapped.argnums)
    found = torch.func.vmap(gradient, in_dims=mapped.in_dims)(*mapped.args)
    for i, tensors in enumerate(mapped.each):
        assert_all_close([x[i] for x in found], gradient(*tensors))


@every_mapping
@pytest.mark.parametrize(("functional", "groups"), [(True, 6), (False, 6), (False, 2)])
def test_grad_through_vmap(Problem, names, functional, groups):
    mapped = Mapped(Problem, names, groups=groups)

    def total(*args):
        return torch.func.vmap(loss_of, in_dims=mapped.in_dims)(*args).sum()

    def one_by_one(*args):
        each = [[x if dim is None else x[i] for x, dim in zip(args, mapped.in_dims, strict=True)] for i in range(3)]
        return sum(loss_of(*tensors) for tensors in each)

    def gradients(function):
        leaves = [x.clone().requires_grad_() for x in mapped.args]
        return torch.autograd.grad(function(*leaves), leaves)

    found = torch.func.grad(total, argnums=mapped.argnums)(*mapped.args) if functional else gradients(total)
    assert_all_close(found, gradients(one_by_one))


def test_nested_vmap(Problem):
    mapped = Mapped(Problem, ("v", "g"))
    args = [x if dim is None else torch.stack([x, 2 * x]) for x, dim in zip(mapped.args, mapped.in_dims, strict=True)]
    function = torch.func.vmap(torch.func.vmap(outputs_of, in_dims=mapped.in_dims), in_dims=mapped.in_dims)
    found = function(*args)
    tensors = [x if dim is None else 2 * x for x, dim in zip(mapped.each[1], mapped.in_dims, strict=True)]
    assert_all_close([x[1, 1] for x in found], outputs_of(*tensors))


@pytest.mark.parametrize("groups", [6, 3])
def test_vmap_over_packed_sequences(Problem, groups):
    bounds = torch.tensor([0, 2, 2, 6])
    problems = [Problem((1, 6, 2, 4, 6), seed=seed, num_states=3, groups=groups) for seed in range(2)]
    stacked = [torch.stack([p[name] for p in problems]) for name in NAMES]
    found = torch.func.vmap(lambda *tensors: outputs_of(*tensors, cu_seqlens=bounds))(*stacked)
    for i, problem in enumerate(problems):
        assert_all_close([x[i] for x in found], outputs_of(*problem.tensors.values(), cu_seqlens=bounds))
    with pytest.raises(ValueError, match=r"cu_seqlens cannot be mapped over by torch.vmap"):
        torch.func.vmap(lambda b: palimpsa(*problems[0].args, cu_seqlens=b).o)(torch.stack([bounds, bounds]))


def test_functional_gradients(Problem):
    problem = Problem((2, 6, 2, 4, 5))
    tensors = list(problem.tensors.values())
    found = torch.func.grad(loss_of, argnums=tuple(range(8)))(*tensors)
    leaves = [x.clone().requires_grad_() for x in tensors]
    assert_all_close(found, torch.autograd.grad(loss_of(*leaves), leaves))


def test_second_derivatives_are_refused_under_transforms(Problem):
    q, *rest = Problem((1, 3, 1, 2, 2)).tensors.values()
    first = torch.func.grad(lambda q: loss_of(q, *rest))
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.func.grad(lambda q: first(q).sum())(q)


def batched_and_one_by_one(function, leaves):
    """The gradients of three projections of function(*leaves), by is_grads_batched and by three calls."""
    y = torch.cat([x.flatten() for x in function(*leaves)])
    weights = torch.randn(3, len(y), generator=torch.Generator().manual_seed(0), dtype=y.dtype)
    found = torch.autograd.grad(y, leaves, weights, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, leaves, w, retain_graph=True) for w in weights]
    by_vmap = torch.func.vmap(lambda w: torch.autograd.grad(y, leaves, w, retain_graph=True))(weights)
    assert_all_close(by_vmap, found)
    return found, [torch.stack(xs) for xs in zip(*each, strict=True)]


# A user who asks for a Jacobian in one call would have lost it.
@pytest.mark.parametrize("path", ["reference", "chunked"])
@pytest.mark.parametrize(("beta", "state"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize(("bounds", "groups"), [(None, 6), ((0, 2, 2, 6), 6), (None, 2), ((0, 2, 2, 6), 1)])
def test_batched_gradients(Problem, monkeypatch, path, beta, state, bounds, groups):
    monkeypatch.setenv("PALIMPSA_PATH", path)
    shape, num_states = ((2, 6, 2, 4, 6), None) if bounds is None else ((1, 6, 2, 4, 6), 3)
    problem = Problem(shape, beta=beta, state=state, num_states=num_states, groups=groups)
    cu_seqlens = None if bounds is None else torch.tensor(bounds)
    names = [name for name in NAMES if problem[name] is not None]

    def run(*leaves):
        tensors = {**problem.tensors, **dict(zip(names, leaves, strict=True))}
        return outputs_of(*tensors.values(), cu_seqlens=cu_seqlens)

    leaves = [problem[name].clone().requires_grad_() for name in names]
    assert_all_close(*batched_and_one_by_one(run, leaves))


def test_batched_gradients_of_some_outputs(Problem):
    leaves = [x.requires_grad_() for x in Problem((2, 6, 2, 4, 5)).tensors.values()]
    for part in (slice(0, 1), slice(1, 2), slice(3, 4)):
        assert_all_close(*batched_and_one_by_one(lambda *xs, part=part: outputs_of(*xs)[part], leaves))


@pytest.mark.parametrize("groups", [2, 1])
def test_nested_batched_gradients(Problem, groups):
    leaves = [x.requires_grad_() for x in Problem((2, 4, 2, 3, 2), groups=groups).tensors.values()]
    y = outputs_of(*leaves)[0]
    weights = torch.randn(2, 3, *y.shape, dtype=y.dtype)

    def batch(grads, **options):
        return torch.autograd.grad(y, leaves, grads, retain_graph=True, **options)

    found = torch._vmap_internals._vmap(lambda w: batch(w, is_grads_batched=True))(weights)
    expected = zip(*(batch(w, is_grads_batched=True) for w in weights), strict=True)
    assert_all_close(found, [torch.stack(xs) for xs in expected])


def test_jacobians_agree(Problem):
    q, *rest = Problem((1, 3, 2, 3, 2)).tensors.values()

    def run(q):
        return outputs_of(q, *rest)[0]

    expected = torch.autograd.functional.jacobian(run, q)
    assert_all_close([torch.func.jacrev(run)(q)], [expected])
    assert_all_close([torch.autograd.functional.jacobian(run, q, vectorize=True)], [expected])
    stacked = torch.func.vmap(torch.func.jacrev(run))(torch.stack([q, 2 * q]))
    assert_all_close(stacked, [torch.func.jacrev(run)(x) for x in (q, 2 * q)])


def test_a_jacobian_of_nothing_is_empty(Problem):
    q, *rest = Problem((1, 3, 2, 3, 2)).tensors.values()
    assert torch.func.jacrev(lambda q: outputs_of(q, *rest)[0][:, :0])(q).shape == (1, 0, 2, 2, *q.shape)
    assert torch.func.vmap(lambda q: outputs_of(q, *rest)[0])(q[None][:0]).shape == (0, 1, 3, 2, 2)


def test_the_reference_has_a_hessian_and_a_forward_mode(Problem, monkeypatch):
    q, *rest = Problem((1, 2, 1, 2, 2)).tensors.values()
    monkeypatch.setenv("PALIMPSA_PATH", "reference")
    expected = torch.autograd.functional.hessian(lambda q: loss_of(q, *rest), q)
    assert_all_close([torch.func.hessian(lambda q: loss_of(q, *rest))(q)], [expected])
    twice = torch.func.jacrev(torch.func.jacrev(lambda q: loss_of(q, *rest)))
    assert_all_close(torch.func.vmap(twice)(torch.stack([q, q])), [expected, expected])
    monkeypatch.setenv("PALIMPSA_PATH", "chunked")
    for transform in (torch.func.hessian, torch.func.jacfwd):
        with pytest.raises(RuntimeError, match=r"palimpsa is differentiable once, and backwards.*reference"):
            transform(lambda q: loss_of(q, *rest))(q)


@pytest.mark.parametrize("groups", [6, 2])
def test_a_step_under_transforms_is_each_entrys_own(Problem, assert_equal, groups):
    problems = [Problem((2, 1, 2, 4, 6), seed=seed, groups=groups) for seed in range(3)]
    tokens = [[x if x.ndim == 1 else x[:, 0] for x in p.args] for p in problems]
    states = [torch.stack([p[name] for p in problems]) for name in ("mean", "importance")]

    def step(mean, importance, *token):
        return palimpsa_step(*token, (mean, importance)).o

    found = torch.func.vmap(step)(*states, *(torch.stack(xs) for xs in zip(*tokens, strict=True)))
    for i, problem in enumerate(problems):
        state = PalimpsaState(*(x.clone() for x in problem.state))
        expected = palimpsa_step(*tokens[i], state)
        assert_equal({"o": found[i], "mean": states[0][i]}, {"o": expected.o, "mean": state.mean}, 1e-12)


@pytest.mark.parametrize("name", ["mean", "importance"])
def test_a_state_that_all_entries_of_a_step_share_is_one_clear_error(Problem, name):
    problem = Problem((2, 1, 2, 4, 5))
    token = [x if x.ndim == 1 else x[:, 0] for x in problem.args]
    state = {key: torch.stack([problem[key]] * 2) for key in ("mean", "importance")}
    state[name] = problem[name]

    def step(q, *state):
        return palimpsa_step(q, *token[1:], state).o

    in_dims = (0, *(None if key == name else 0 for key in state))
    with pytest.raises(ValueError, match=f"state.{name} is not mapped over by torch.vmap"):
        torch.func.vmap(step, in_dims=in_dims)(torch.stack([token[0]] * 2), *state.values())


@pytest.mark.parametrize("groups", [6, 2])
def test_a_backward_without_what_the_forward_kept_is_right(Problem, groups):
    tensors = list(Problem((2, 9, 2, 4, 6), groups=groups).tensors.values())
    o, _, _, _, kept = LIBRARY.forward("chunked", *tensors, None, 0.5, 1, 4, True, False, False)
    found = [
        LIBRARY.backward(
            "chunked", *tensors, None, None, None, x, torch.ones_like(o), None, None, None, 0.5, 1, 4, True, True
        )
        for x in (kept, kept[:0])
    ]
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)
