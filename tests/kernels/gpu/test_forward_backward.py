"""The Triton path against the reference: in Triton's interpreter, or on the GPU where there is one."""

# B batch, T time, H heads, K key dim, V value dim, N sequences packed along T
import importlib
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from palimpsa.kernels import PalimpsaOutput, PalimpsaState, palimpsa, palimpsa_chunked, palimpsa_reference

pytest.importorskip("triton")
HAS_GPU = torch.cuda.is_available()
ROOT = Path(__file__).resolve().parents[2]
every_variant = pytest.mark.parametrize(("beta", "state"), [(True, True), (True, False), (False, True), (False, False)])


def host_module(name):
    return importlib.import_module(f"palimpsa.kernels.gpu.{name}")


@pytest.fixture
def device():
    return torch.device("cuda" if HAS_GPU else "cpu")


@pytest.fixture(autouse=True)
def choose_triton(monkeypatch):
    monkeypatch.setenv("PALIMPSA_PATH", "triton")


@pytest.fixture
def triton(device):
    """`palimpsa` on the device, with arguments and results on the CPU."""

    def run(*args, initial_state=None, cu_seqlens=None, **options):
        def move(xs, target):
            return tuple(None if x is None else x.to(target) for x in xs)

        state = None if initial_state is None else move(initial_state, device)
        (bounds,) = move((cu_seqlens,), device)
        out = palimpsa(*move(args, device), initial_state=state, cu_seqlens=bounds, **options)
        final = None if out.final_state is None else PalimpsaState(*move(out.final_state, "cpu"))
        return PalimpsaOutput(*move(out[:2], "cpu"), final)

    return run


@pytest.fixture
def short_segments(monkeypatch):
    """The backward cuts sequences into segments of 32 tokens, as it does with long ones."""
    module = host_module("backward")
    plan = module.plan_backward
    monkeypatch.setattr(module, "plan_backward", lambda *args: plan(*args)._replace(segment_size=32))


@pytest.mark.parametrize("num_tokens", [0, 1, 3, 4, 5, 31, 33, 70])
def test_it_is_as_exact_as_the_reference_at_every_length(Problem, failures, triton, num_tokens):
    problem = Problem((1, num_tokens, 2, 5, 7), torch.float32, seed=num_tokens)
    assert failures(triton, problem) == {}


# Both sides of every tile size, one, two and more tiles of keys, and more heads than programs run at a time.
@pytest.mark.parametrize(
    "shape",
    [
        *((2, 9, 1, 5, 5), (1, 9, 1, 16, 16), (1, 9, 1, 20, 33), (1, 9, 1, 33, 20), (1, 9, 1, 48, 16)),
        *((1, 9, 1, 16, 48), (1, 5, 1, 96, 8), (1, 5, 1, 100, 8), (1, 5, 6, 4, 5)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_it_is_as_exact_as_the_reference_at_every_size(Problem, failures, triton, shape, dtype):
    assert failures(triton, Problem(shape, dtype)) == {}


@every_variant
def test_every_variant(Problem, failures, triton, beta, state):
    problem = Problem((2, 13, 2, 5, 16), torch.float32, beta=beta, state=state)
    assert failures(triton, problem) == {}


@pytest.mark.parametrize("outputs", [("o",), ("variance",), ("mean",), ("importance",), ("o", "mean")], ids="+".join)
@pytest.mark.parametrize("state", [True, False])
def test_gradients_through_each_output(Problem, assert_equal, triton, outputs, state):
    problem = Problem((1, 6, 2, 5, 8), torch.float32, state=state)
    expected = problem.gradients(palimpsa_reference, outputs)
    assert_equal(problem.gradients(triton, outputs), expected, 1e-5)


@pytest.mark.parametrize(("beta", "state"), [(True, True), (False, False)])
def test_several_segments(Problem, failures, triton, short_segments, beta, state):
    problem = Problem((1, 70, 1, 5, 8), torch.float32, beta=beta, state=state)
    assert failures(triton, problem) == {}


@pytest.mark.parametrize("bounds", [(0, 6, 6, 7, 20), (0, 0, 20, 20), (0, 20)], ids=str)
@pytest.mark.parametrize("state", [True, False])
def test_packed_sequences(Problem, failures, triton, bounds, state):
    num_states = len(bounds) - 1
    problem = Problem((1, bounds[-1], 2, 5, 8), torch.float32, state=state, num_states=num_states)
    assert failures(triton, problem, cu_seqlens=torch.tensor(bounds)) == {}


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_packed_sequences_in_several_segments(Problem, failures, triton, short_segments, dtype):
    problem = Problem((1, 80, 1, 5, 8), torch.float32, num_states=4)
    assert failures(triton, problem, cu_seqlens=torch.tensor([0, 3, 3, 69, 80], dtype=dtype)) == {}


@pytest.mark.parametrize("g", [-math.inf, -50.0, -1e-6, 0.0])
def test_extreme_decays(Problem, failures, triton, short_segments, g):
    problem = Problem((1, 40, 1, 5, 8), torch.float32)
    problem["g"][:, [0, 5, 6, 17, 32, 39]] = g
    assert failures(triton, problem) == {}
    problem = Problem((1, 9, 1, 5, 8), torch.float32)
    problem["g"].fill_(g)
    assert failures(triton, problem) == {}


@pytest.mark.parametrize("beta", [0.0, 1e3])
@pytest.mark.parametrize("prior", [1e-3, 1e3])
def test_extreme_precisions(Problem, failures, triton, beta, prior):
    problem = Problem((1, 17, 1, 5, 8), torch.float32, state=False)
    problem["beta"].fill_(beta)
    problem["importance_prior"].fill_(prior)
    assert failures(triton, problem) == {}


# With these an importance grows 8, 45 and 440 times within a chunk: taken out again in both precisions, in half
# precision alone, and in neither.
@pytest.mark.parametrize("beta", [0.5, 3.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_importances_that_grow_within_a_chunk(Problem, failures, triton, beta, dtype):
    problem = Problem((1, 34, 1, 5, 8), dtype, state=False)
    problem["beta"].mul_(beta / 2)
    problem["g"].mul_(0.01)
    assert failures(triton, problem) == {}


# Within 32 tokens these forget exp(-3), exp(-12) and exp(-26): a chunk is walked through backwards in one piece, in
# parts of 8 tokens, and not at all. The last chunk is cut inside a part.
@pytest.mark.parametrize("g", [-0.1, -0.4, -0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_decays_within_a_chunk(Problem, failures, triton, g, dtype):
    problem = Problem((1, 75, 1, 5, 8), dtype)
    # A little forgotten in the middle chunk, whatever the others do.
    problem["g"].fill_(g)[:, 32:64] = -0.01
    assert failures(triton, problem) == {}


def test_a_part_of_a_chunk_after_little_and_before_much(Problem, failures, triton):
    """Each part decides for itself: what it writes is small, or large, beside what stood before it."""
    problem = Problem((1, 32, 1, 5, 8), torch.float32)
    problem["g"].fill_(-0.2)
    problem["v"][:, 8:16] *= 1e4
    problem["beta"][:, 20:24] *= 1e3
    assert failures(triton, problem) == {}


@pytest.mark.parametrize("beta", [0.5, 3.0, 1e5])
@pytest.mark.parametrize("shape", [(1, 34, 1, 5, 8), (1, 9, 1, 33, 40)])
def test_bfloat16_with_its_numbers_in_float32(Problem, failures, triton, monkeypatch, shape, beta):
    """The interpreter's bfloat16 is wrong: here float32 holds what it would, and the kernels do what they do for it."""
    precisions = host_module("primitives").PRECISIONS
    monkeypatch.setitem(precisions, torch.float32, precisions[torch.bfloat16])
    problem = Problem(shape, torch.bfloat16, state=False)
    problem["beta"].mul_(beta / 2)
    problem["g"].mul_(0.01)

    def widened(*args, **options):
        out = triton(*(x.float() for x in args), **options)
        return PalimpsaOutput(out.o.bfloat16(), out.variance.bfloat16(), out.final_state)

    assert failures(widened, problem) == {}


@pytest.mark.parametrize("where", ["last", "all but the first"])
def test_a_large_write_leaves_the_gradients_before_it_exact(Problem, triton, where):
    # The backward takes tokens out of the state after a chunk: (small + large) - large would lose the small part.
    problem = Problem((1, 16, 1, 5, 8), torch.float32)
    large = slice(15, None) if where == "last" else slice(1, None)
    problem["v"][:, large] *= 1e4
    problem["beta"].mul_(0.2)
    problem["importance"].add_(1)

    def gradients(operator, problem):
        leaves = [x.clone().requires_grad_() for x in problem.tensors.values()]
        o = operator(*leaves[:6], initial_state=tuple(leaves[6:])).o
        # Not through the large tokens: beside their gradients no loss would show.
        return torch.autograd.grad(o[:, : large.start].sum(), leaves)

    expected = gradients(palimpsa_reference, problem.to(torch.float64))
    for name, x, y in zip(problem.tensors, gradients(triton, problem), expected, strict=True):
        # The prior gets 3e-3 of terms around 1: rounding of those shows in its last digits.
        assert (x.double() - y).abs().max() <= 1e-5 * y.abs().max() + 5e-7, name


def test_many_writes_leave_the_gradients_before_them_exact(Problem, triton):
    # Each is 60 times the first, all together 1,900 times: what counts is what was written, not the largest write.
    problem = Problem((1, 32, 1, 5, 8), torch.float32, state=False)
    problem["k"].fill_(0.5)
    problem["v"].abs_()[:, 1:] *= 60
    problem["beta"].zero_()

    def gradients(operator, problem):
        leaves = [problem[name].clone().requires_grad_() for name in ("q", "beta", "importance_prior")]
        q, beta, prior = leaves
        o = operator(q, problem["k"], problem["v"], beta, problem["g"], prior).o
        return torch.autograd.grad(o[:, 0].sum(), leaves)

    expected = gradients(palimpsa_reference, problem.to(torch.float64))
    for x, y in zip(gradients(triton, problem), expected, strict=True):
        assert (x.double() - y).abs().max() <= 1e-5 * y.abs().max()


@pytest.mark.parametrize("many_warps", [0, 10**9])
@pytest.mark.parametrize("bounds", [None, [0, 0, 64, 128], [0, 128, 128]])
def test_states_in_one_pass_and_by_segments(Problem, failures, triton, monkeypatch, many_warps, bounds):
    # 0: sequences and heads fill the GPU, each is one pass; else its segments go side by side, joined by a scan.
    monkeypatch.setattr(host_module("forward"), "MANY_WARPS", many_warps)
    num_states = None if bounds is None else len(bounds) - 1
    problem = Problem((1, 128, 1, 5, 8), torch.float32, num_states=num_states)
    options = {} if bounds is None else {"cu_seqlens": torch.tensor(bounds)}
    assert failures(triton, problem, **options) == {}


def test_groups_of_heads_fit_a_grid():
    assert host_module("forward").slice_heads(7, 3) == [(0, 2), (2, 2), (4, 3)]
    groups = host_module("forward").slice_heads(2**17, 2**17)
    assert sum(size for _, size in groups) == 2**17
    assert max(size for _, size in groups) < 2**16


@pytest.mark.parametrize("shape", [(1, 35, 3, 5, 8), (1, 5, 3, 20, 40)])
def test_heads_done_in_groups_change_nothing(Problem, assert_equal, triton, short_segments, monkeypatch, shape):
    problem = Problem(shape, torch.float32)
    expected = problem.run(triton), problem.gradients(triton)
    planned = []
    for name, function in (("forward", "plan_forward"), ("backward", "plan_backward")):
        module = host_module(name)
        plan = getattr(module, function)

        def in_groups(*sizes, plan=plan):
            planned.append(plan(*sizes))
            return planned[-1]._replace(head_slices=[(0, 1), (1, 2)])

        monkeypatch.setattr(module, function, in_groups)
    assert_equal(problem.run(triton), expected[0], 0)
    assert_equal(problem.gradients(triton), expected[1], 0)
    assert {tuple(plan.head_slices) for plan in planned} == {((0, 3),)}


def test_heads_are_grouped_to_keep_to_the_scratch_memory(monkeypatch):
    forward, backward = host_module("forward"), host_module("backward")
    monkeypatch.setattr(forward, "SCRATCH_BYTES", 2**20)
    for plan in (forward.plan_forward(2**15, 8, 16, 96, 192), backward.plan_backward(2**15, 8, 16, 96, 192, 1584)):
        heads = [h for first, number in plan.head_slices for h in range(first, first + number)]
        assert heads == list(range(16))
        assert len(plan.head_slices) > 1


def test_sequences_are_cut_where_that_fills_the_gpu():
    plan = host_module("backward").plan_backward
    # 1,584 programs. Alone: 1,024 of them; 512 rows of heads that do not fit the scratch memory at once; 16.
    assert plan(2**16, 128, 8, 16, 32, 1584).segment_size == 512
    assert plan(2**18, 64, 16, 96, 192, 1584).segment_size == 128
    assert plan(2**15, 1, 16, 48, 96, 1584).segment_size == 128


@pytest.mark.parametrize("shape", [(2, 35, 2, 5, 8), (1, 18, 2, 20, 40)])
def test_offsets_of_64_bits_give_the_same(Problem, assert_equal, triton, short_segments, monkeypatch, shape):
    problem = Problem(shape, torch.float32)
    expected = problem.run(triton), problem.gradients(triton)
    # As if every tensor were too large for 32 bits.
    monkeypatch.setattr(host_module("primitives"), "LARGE", 0)
    assert_equal(problem.run(triton), expected[0], 0)
    assert_equal(problem.gradients(triton), expected[1], 0)


@pytest.mark.parametrize(
    ("module", "kernel", "entries"),
    [
        # B T H max(4 K, V): the planes of widened keys; and for gradients of q and k as many parts as tiles of V.
        ("forward", "_read_kernel", 2 * 5 * 3 * 4 * 20),
        ("backward", "_gradients_kernel", 2 * 5 * 3 * max(4 * 20, 2 * 20)),
        ("backward", "_flow_kernel", 2 * 5 * 3 * max(4 * 20, 2 * 20)),
    ],
)
def test_offsets_are_of_64_bits_from_the_first_size_that_needs_them(
    Problem, triton, monkeypatch, module, kernel, entries
):
    module = host_module(module)
    launch, seen = getattr(module, kernel), []

    class Spy:
        def __getitem__(self, grid):
            def run(*args, **options):
                seen.append(options["IS_LARGE"])
                return launch[grid](*args, **options)

            return run

    backward = host_module("backward")
    plan = backward.plan_backward
    # Two segments, so that there is a flow between them.
    monkeypatch.setattr(backward, "plan_backward", lambda *args: plan(*args)._replace(segment_size=32))
    monkeypatch.setattr(module, kernel, Spy())
    num_tokens = 5 if kernel != "_flow_kernel" else 40
    problem = Problem((2, num_tokens, 3, 20, 40), torch.float32)
    for limit, expected in ((entries * num_tokens // 5, True), (entries * num_tokens // 5 + 1, False)):
        monkeypatch.setattr(host_module("primitives"), "LARGE", limit)
        problem.gradients(triton)
        assert set(seen) == {expected}
        seen.clear()


def test_strides_change_nothing(Problem, assert_equal, triton):
    problem = Problem((2, 5, 2, 5, 8), torch.float32)
    expected = problem.run(triton), problem.gradients(triton)
    strided = Problem((2, 5, 2, 5, 8), torch.float32)
    for name, x in problem.tensors.items():
        larger = torch.full([2 * size for size in reversed(x.shape)], torch.nan, dtype=x.dtype)
        view = larger[tuple(slice(None, None, 2) for _ in x.shape)].permute(*reversed(range(x.ndim)))
        strided.tensors[name] = view.copy_(x)
    assert_equal(strided.run(triton), expected[0], 0)
    assert_equal(strided.gradients(triton), expected[1], 0)


def test_an_expanded_gradient(Problem, assert_equal, triton):
    found = []
    for operator in (triton, palimpsa_reference):
        problem = Problem((1, 5, 2, 5, 8), torch.float32)
        q = problem.tensors["q"] = problem["q"].requires_grad_()
        out = problem.run(operator)
        (out.o.sum() + out.final_state.importance.sum() + out.final_state.mean[0].sum()).backward()
        found.append({"q": q.grad})
    assert_equal(*found, 1e-5)


@pytest.mark.parametrize("shape", [(2, 0, 2, 4, 5), (0, 3, 2, 4, 5), (2, 3, 0, 4, 5), (2, 3, 2, 4, 0)])
@pytest.mark.parametrize("state", [True, False])
def test_empty_dimensions(Problem, assert_equal, triton, shape, state):
    problem = Problem(shape, torch.float32, state=state)
    assert_equal(problem.run(triton), problem.run(palimpsa_reference), 0)


def test_final_state_never_shares_memory_with_the_initial_one(Problem, triton):
    for num_tokens in (0, 1):
        problem = Problem((1, num_tokens, 1, 2, 2), torch.float32)
        before = [x.clone() for x in problem.state]
        for x in problem.run(triton).final_state:
            x.zero_()
        for x, y in zip(problem.state, before, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_autocast_changes_nothing(Problem, assert_equal, triton, device):
    problem = Problem((1, 6, 2, 5, 8), torch.float32)
    expected = problem.run(triton), problem.gradients(triton)
    with torch.autocast(device.type, torch.bfloat16):
        assert_equal(problem.run(triton), expected[0], 0)
        assert_equal(problem.gradients(triton), expected[1], 0)


def test_only_arguments_and_the_final_state_are_kept(Problem, device):
    problem = Problem((1, 5, 2, 5, 8), torch.float32)
    problem.tensors.update({name: x.to(device) for name, x in problem.tensors.items()})
    arguments = {x.data_ptr() for x in problem.tensors.values()}
    for final_state in (True, False):
        for x in problem.tensors.values():
            x.requires_grad_()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):  # noqa: B023
            out = problem.run(palimpsa, output_final_state=final_state)
            own = [x for x in kept if x.numel() and x.device == problem["q"].device and x.data_ptr() not in arguments]
        assert sum(x.numel() for x in own) == (2 * 2 * 5 * 8 if final_state else 0)
        del out
    with torch.no_grad():
        assert problem.run(palimpsa).o.grad_fn is None


# Terms that a kernel could lose, by changing what the host functions take or give.
def without_decay_gradient(module, monkeypatch):
    run = module.backward
    monkeypatch.setattr(module, "backward", lambda *args: run(*args)._replace(g=torch.zeros_like(args[4])))


def without_importance_gradient_of_final_state(module, monkeypatch):
    run = module.backward
    monkeypatch.setattr(module, "backward", lambda *args: run(*args[:-1], torch.zeros_like(args[-1])))


def without_variance_gradient(module, monkeypatch):
    run = module.backward
    monkeypatch.setattr(module, "backward", lambda *args: run(*args[:13], None, *args[14:]))


def without_consolidation(module, monkeypatch):
    run = module.forward
    monkeypatch.setattr(module, "forward", lambda q, k, v, beta, *rest: run(q, k, v, beta * 0, *rest))


def without_giving_back(module, monkeypatch):
    run = module.forward
    monkeypatch.setattr(module, "forward", lambda *args: run(*args[:5], args[5] * 1e-9, *args[6:]))


@pytest.mark.parametrize(
    ("name", "break_it", "expected"),
    [
        ("backward", without_decay_gradient, {"gradient of g"}),
        ("backward", without_importance_gradient_of_final_state, {"gradient of beta", "gradient of importance"}),
        ("backward", without_variance_gradient, {"gradient of q", "gradient of k", "gradient of beta"}),
        ("forward", without_consolidation, {"o", "variance", "mean", "importance"}),
        ("forward", without_giving_back, {"o", "variance", "importance"}),
    ],
)
def test_a_dropped_term_fails_the_comparison(Problem, failures, triton, monkeypatch, name, break_it, expected):
    problem = Problem((1, 9, 2, 5, 8), torch.float32)
    assert failures(triton, problem) == {}
    break_it(host_module(name), monkeypatch)
    assert expected <= failures(triton, problem).keys()


def test_a_kernel_without_a_term_fails_the_comparison(Problem, failures, triton, monkeypatch):
    """k^2 replaced by |k| where keys are widened to float32, as a kernel might."""
    module = host_module("forward")
    prepare = module.prepare
    problem = Problem((1, 9, 1, 33, 8), torch.float32)

    def broken(*args):
        wide, states = prepare(*args)
        wide[:, :, 2].sqrt_()
        return wide, states

    monkeypatch.setattr(module, "prepare", broken)
    monkeypatch.setattr(host_module("backward"), "prepare", broken)
    assert "o" in failures(triton, problem)


@pytest.mark.parametrize("path", ["forward", "backward", "step"])
def test_opcheck(Problem, device, path):
    library = host_module("library")
    problem = Problem((1, 1 if path == "step" else 3, 2, 4, 5), torch.float32)
    tensors = [x.to(device) for x in problem.tensors.values()]
    *inputs, mean, importance = tensors
    if path == "forward":
        args = ("triton", *(x.requires_grad_() for x in tensors), None, 0.5, 1, 1, False, True, True)
        torch.library.opcheck(library.forward, args)
    elif path == "backward":
        o, variance, *final, kept = library.forward("triton", *tensors, None, 0.5, 1, 1, False, True, True)
        flows = [torch.randn_like(x) for x in (o, variance, *final)]
        torch.library.opcheck(library.backward, ("triton", *tensors, None, *final, kept, *flows, 0.5, 1, 1, True, True))
    else:
        token = [x if x.ndim == 1 else x[:, 0] for x in inputs]
        torch.library.opcheck(library.step, ("triton", *token, mean, importance, 0.5, True))


def test_compiled_code_gives_the_same(Problem, assert_equal, triton):
    torch.compiler.reset()
    problem = Problem((1, 5, 1, 4, 5), torch.float32)
    expected = problem.run(palimpsa_reference), problem.gradients(palimpsa_reference)
    compiled = torch.compile(triton, backend="aot_eager", fullgraph=True)
    assert_equal(problem.run(compiled), expected[0], 1e-5)
    assert_equal(problem.gradients(compiled), expected[1], 1e-5)


def test_vmap_of_grad(Problem, assert_equal, triton):
    problems = [Problem((1, 3, 1, 4, 5), torch.float32, seed=seed) for seed in range(2)]
    names = list(problems[0].tensors)

    def loss(*tensors):
        *args, mean, importance = tensors
        out = triton(*args, initial_state=(mean, importance), output_final_state=True, output_variance=True)
        return sum(x.square().sum() for x in (out.o, out.variance, *out.final_state))

    gradient = torch.func.grad(loss, argnums=tuple(range(len(names))))
    stacked = [torch.stack([problem[name] for problem in problems]) for name in names]
    found = torch.func.vmap(gradient)(*stacked)
    for i, problem in enumerate(problems):
        expected = dict(zip(names, gradient(*problem.tensors.values()), strict=True))
        assert_equal({name: x[i] for name, x in zip(names, found, strict=True)}, expected, 1e-5)


@pytest.mark.parametrize(
    ("shape", "num_sequences"),
    [((2, 300, 2, 16, 16), 2), ((1, 1, 1, 16, 33), 1), ((1, 512, 1, 255, 256), 64), ((1, 600, 3, 256, 256), 1)],
)
def test_no_grid_is_larger_than_the_check_of_sizes_counts(monkeypatch, device, shape, num_sequences):
    B, T, H, K, V = shape
    grids = []

    class Recorder:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *args, **options: None

    forward, backward = host_module("forward"), host_module("backward")
    for module in (forward, backward):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Recorder())
    q, v = torch.zeros(B, T, H, K, device=device), torch.zeros(B, T, H, V, device=device)
    cu_seqlens = None if num_sequences == B else torch.arange(0, T + 1, T // num_sequences, device=device)
    args = (q, q, v, v, torch.zeros(B, T, H, device=device), torch.ones(H, device=device), 1.0)
    forward.forward(*args, None, None, False, False, cu_seqlens)
    backward.backward(*args, None, None, None, None, cu_seqlens, v, None, None, None)
    validation = host_module("validation")
    validation.check_triton_sizes(B, T, H, K, V, num_sequences)
    assert all(size < 2**16 for grid in grids for size in grid[1:])
    # With as many programs as there were it has to refuse.
    monkeypatch.setattr(validation, "_MAX_GRID", max(grid[0] for grid in grids))
    with pytest.raises(ValueError, match="programs of the path triton"):
        validation.check_triton_sizes(B, T, H, K, V, num_sequences)


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu(tmp_path):
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT / "src")}
    environment.pop("TRITON_INTERPRET", None)
    script = [sys.executable, str(Path(__file__).with_name("compile_for_hopper.py"))]
    done = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    files = [ROOT / "kernels/gpu" / f"{name}.py" for name in ("forward", "backward", "step", "convolution")]
    files += [ROOT / "src/palimpsa" / f"{name}_kernel.py" for name in ("data/random", "loss", "embedding")]
    source = "".join(file.read_text() for file in files)
    # What a host function launches: name[grid](...).
    launched = set(re.findall(r"(\w+_kernel)\[", source))
    assert {line.split()[0] for line in done.stdout.splitlines()} == launched


def test_sizes_above_the_limit_are_errors(Problem, triton):
    for shape, message in (
        ((1, 1, 1, 257, 1), "q has K = 257.*K <= 256"),
        ((1, 1, 1, 1, 300), "v has V = 300.*<= 256"),
    ):
        with pytest.raises(ValueError, match=message):
            triton(*Problem(shape, torch.float32).args)
    check = host_module("validation").check_triton_sizes
    check(2**8, 2**20, 16, 256, 256, 2**8)
    with pytest.raises(ValueError, match=r"programs of the path triton, which takes less than 2\^31"):
        check(2**11, 2**20, 16, 8, 8, 2**11)


@pytest.mark.gpu
class TestOnTheGpu:
    @pytest.mark.parametrize(
        "shape",
        [(2, 300, 3, 48, 96), (1, 130, 2, 96, 192), (2, 257, 2, 16, 32), (1, 65, 1, 256, 256), (1, 1, 1, 16, 33)],
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_it_is_as_exact_as_the_reference(self, Problem, failures, triton, shape, dtype):
        assert failures(triton, Problem(shape, dtype)) == {}

    @pytest.mark.parametrize("beta", [True, False])
    def test_long_sequences_are_exact(self, Problem, assert_equal, triton, beta):
        problem = Problem((1, 32768, 2, 48, 96), torch.float32, beta=beta, state=beta)
        exact = problem.to(torch.float64)
        found = {**problem.gradients(triton)}
        expected = exact.gradients(palimpsa_chunked)
        # Against float64, by the same relative measure for both: 1e-4 is what float32 sums of 32,768 terms lose.
        for name, x in expected.items():
            assert torch.isfinite(found[name]).all(), name
            scale = x.abs().max().item()
            assert (found[name].double() - x).abs().max().item() <= 1e-4 * max(1.0, scale), name
        out, truth = problem.run(triton), exact.run(palimpsa_chunked)
        for x, y in zip(
            (out.o, out.variance, *out.final_state), (truth.o, truth.variance, *truth.final_state), strict=True
        ):
            assert (x.double() - y).abs().max().item() <= 1e-4 * max(1.0, y.abs().max().item())

    def test_two_runs_are_bit_identical(self, Problem, assert_equal, triton):
        problem = Problem((2, 1000, 4, 48, 96), torch.bfloat16)
        assert_equal(problem.run(triton), problem.run(triton), 0)
        assert_equal(problem.gradients(triton), problem.gradients(triton), 0)

    @pytest.mark.parametrize("packed", [True, False])
    def test_a_cuda_graph_can_be_captured(self, Problem, device, packed):
        bounds = torch.tensor([0, 100, 100, 300], device=device) if packed else None
        problem = Problem((1, 300, 2, 48, 96), torch.float32, num_states=3 if packed else None)
        leaves = [x.to(device).requires_grad_() for x in problem.tensors.values()]

        def run():
            *args, mean, importance = leaves
            out = palimpsa(*args, initial_state=(mean, importance), output_final_state=True, cu_seqlens=bounds)
            return torch.autograd.grad(out.o.sum() + out.final_state.mean.sum(), leaves)

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = run()
        with torch.no_grad():
            leaves[2].mul_(2)
        graph.replay()
        for x, y in zip(found, run(), strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=0)

    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_compiled_code_gives_the_same(self, Problem, assert_equal, triton, backend):
        torch.compiler.reset()
        problem = Problem((2, 100, 2, 48, 96), torch.bfloat16)
        compiled = torch.compile(triton, backend=backend, fullgraph=True)
        assert_equal(problem.gradients(compiled), problem.gradients(triton), 1e-2)

    @pytest.mark.parametrize("packed", [True, False])
    def test_without_beta_it_is_the_library(self, Problem, triton, packed):
        bounds = torch.tensor([0, 100, 100, 300]) if packed else None
        problem = Problem((1, 300, 2, 48, 96), torch.bfloat16, beta=False, state=False)
        problem["k"].mul_(0.2)
        problem["g"][:, 7] = -math.inf
        exact = problem.to(torch.float64)
        found = problem.gradients(triton, cu_seqlens=bounds)
        for name, x in exact.gradients(palimpsa_reference, cu_seqlens=bounds).items():
            # The library keeps its chunks' states in half precision.
            assert (found[name].double() - x).abs().max().item() <= 2e-2 * max(1.0, x.abs().max().item()), name
