"""Precisions that serve 16 rows and more, in Triton, against the reference: products of matrices in place of divisions.

In Triton's interpreter, or on the GPU where there is one.
"""

# B batch, T time, H heads, K key dim, V value dim, G precisions a head, N sequences packed along T
import importlib
import math

import pytest
import torch

from palimpsa.kernels import PalimpsaOutput, palimpsa_chunked, palimpsa_reference

pytest.importorskip("triton")


def kernels(name):
    """A module of the kernels' room: "groups", "gpu.grouped"."""
    return importlib.import_module(f"palimpsa.kernels.{name}")


@pytest.fixture(autouse=True)
def nothing_else_runs(monkeypatch):
    """The kernels with a division for every entry would take these calls, and hide what is wrong with the others."""

    def refuse(*args, **options):
        raise AssertionError("the kernels for rows with precisions of their own ran")

    for module, name in (("gpu.forward", "forward"), ("gpu.backward", "backward")):
        monkeypatch.setattr(kernels(module), name, refuse)


@pytest.fixture
def failures_in_half(failures, flat):
    """`failures` of a half precision. What is float32 there has bounds of its own, relative to its size: a final state
    2^-14, because nothing that it is made of is rounded; gradients 2 units of rounding, what p rounded once may cost.
    """

    def find(operator, problem, **options):
        found = failures(operator, problem, **options)
        unit = {torch.float16: 2**-11, torch.bfloat16: 2**-8}[problem["q"].dtype]
        in_float32 = ("mean", "importance", "g", "importance_prior")
        left = {name: text for name, text in found.items() if name.split()[-1] not in in_float32}
        exact = problem.to(torch.float64)
        for kind, bound, run in (
            ("", 2**-14, lambda problem, operator: flat(problem.run(operator, **options))),
            ("gradient of ", 2 * unit, lambda problem, operator: problem.gradients(operator, **options)),
        ):
            expected = run(exact, palimpsa_chunked)
            for name, x in run(problem, operator).items():
                lost = (x.double() - expected[name]).norm()
                if name in in_float32 and not lost <= bound * expected[name].norm() + 1e-6:
                    left[kind + name] = f"{lost / expected[name].norm():.1e} of its size"
        return left

    return find


@pytest.mark.parametrize("num_tokens", [0, 1, 3, 63, 64, 65, 130])
def test_it_is_as_exact_as_the_reference_at_every_length(Problem, failures, triton, num_tokens):
    problem = Problem((1, num_tokens, 1, 5, 16), torch.float32, seed=num_tokens, groups=1)
    assert failures(triton, problem) == {}


# Both sides of both tiles of keys and rows, one tile and several, one group and several, rows that fill no tile.
@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        *(((2, 9, 1, 5, 32), 1), ((1, 9, 2, 32, 32), 2), ((1, 5, 1, 33, 16), 1), ((1, 5, 1, 4, 33), 1)),
        *(((1, 5, 1, 64, 64), 1), ((1, 5, 1, 65, 48), 3), ((1, 5, 1, 48, 96), 6), ((1, 3, 1, 20, 140), 1)),
        *(((1, 3, 1, 140, 40), 2), ((1, 3, 5, 1, 16), 1)),
    ],
)
def test_it_is_as_exact_as_the_reference_at_every_size(Problem, failures, triton, shape, groups):
    assert failures(triton, Problem(shape, torch.float32, groups=groups)) == {}


@pytest.mark.parametrize(("shape", "groups"), [((1, 66, 1, 16, 32), 1), ((1, 5, 2, 40, 96), 3), ((2, 9, 1, 5, 34), 2)])
def test_half_precision(Problem, failures_in_half, triton, shape, groups):
    assert failures_in_half(triton, Problem(shape, torch.float16, groups=groups)) == {}


@pytest.mark.parametrize(("beta", "state"), [(True, True), (True, False), (False, True)])
def test_every_variant(Problem, failures, triton, beta, state):
    problem = Problem((2, 67, 2, 5, 32), torch.float32, beta=beta, state=state, groups=2)
    assert failures(triton, problem) == {}


@pytest.mark.parametrize("outputs", [("o",), ("variance",), ("mean",), ("importance",), ("o", "mean")], ids="+".join)
@pytest.mark.parametrize("state", [True, False])
def test_gradients_through_each_output(Problem, assert_equal, triton, outputs, state):
    problem = Problem((1, 66, 1, 5, 32), torch.float32, state=state, groups=2)
    expected = problem.gradients(palimpsa_reference, outputs)
    assert_equal(problem.gradients(triton, outputs), expected, 1e-5)


@pytest.mark.parametrize(
    ("bounds", "state"),
    [((0, 3, 3, 70, 75), True), ((0, 3, 3, 70, 75), False), ((0, 0, 65, 65), True), ((0, 5), False)],
    ids=str,
)
def test_packed_sequences(Problem, failures, triton, bounds, state):
    problem = Problem((1, bounds[-1], 2, 5, 32), torch.float32, state=state, num_states=len(bounds) - 1, groups=1)
    assert failures(triton, problem, cu_seqlens=torch.tensor(bounds)) == {}


@pytest.mark.parametrize("g", [-math.inf, -1e4, -50.0, -1e-6, 0.0])
def test_extreme_decays(Problem, failures, triton, g):
    problem = Problem((1, 67, 1, 5, 16), torch.float32, groups=1)
    problem["g"][:, [0, 5, 6, 17, 63, 64, 66]] = g
    assert failures(triton, problem) == {}
    problem = Problem((1, 4, 1, 5, 16), torch.float32, groups=1)
    problem["g"].fill_(g)
    assert failures(triton, problem) == {}


def test_small_decays_behind_many_resets(Problem, failures, triton):
    """Their sums are thousands of times as large as what is left of them after the last reset."""
    problem = Problem((1, 64, 1, 5, 16), torch.float32, groups=1)
    problem["g"].fill_(-1e-3)[:, 10:56] = -math.inf
    assert failures(triton, problem) == {}


@pytest.mark.parametrize("groups", [1, 16])
def test_boundaries_that_are_a_view(Problem, assert_equal, triton, groups, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("PALIMPSA_PATH", "triton")
    problem = Problem((1, 10, 1, 5, 16), torch.float32, state=False, groups=groups)
    bounds = torch.tensor([0, 99, 4, 99, 10, 99])[::2]
    assert_equal(
        problem.run(triton, cu_seqlens=bounds), problem.run(palimpsa_reference, cu_seqlens=bounds.contiguous()), 1e-5
    )
    expected = problem.gradients(palimpsa_reference, cu_seqlens=bounds.contiguous())
    assert_equal(problem.gradients(triton, cu_seqlens=bounds), expected, 1e-5)


@pytest.mark.parametrize("beta", [0.0, 1e3])
@pytest.mark.parametrize("prior", [1e-3, 1e3])
def test_extreme_precisions(Problem, failures, triton, beta, prior):
    problem = Problem((1, 9, 1, 5, 16), torch.float32, state=False, groups=1)
    problem["beta"].fill_(beta)
    problem["importance_prior"].fill_(prior)
    assert failures(triton, problem) == {}


def test_importances_that_half_precision_cannot_hold(Problem, triton):
    """q / I is far beyond 65,504 here; o is not."""
    problem = Problem((1, 9, 1, 5, 16), torch.float16, state=False, groups=1)
    problem["beta"].fill_(1e-7)
    problem["importance_prior"].fill_(1e-7)
    problem["v"].mul_(1e-6)
    out = problem.run(triton)
    exact = problem.to(torch.float64).run(palimpsa_reference)
    assert (out.o.double() - exact.o).norm() <= 2**-10 * exact.o.norm()


@pytest.mark.parametrize(("beta", "groups"), [(0.5, 1), (1e4, 2)])
def test_bfloat16_with_its_numbers_in_float32(Problem, failures_in_half, triton, monkeypatch, beta, groups):
    """The interpreter's bfloat16 is wrong: here float32 holds what it would, and the kernels do what they do for it."""
    modes = kernels("gpu.grouped").MODES
    monkeypatch.setitem(modes, torch.float32, modes[torch.bfloat16])
    problem = Problem((1, 66, 1, 16, 32), torch.bfloat16, state=False, groups=groups)
    problem["beta"].mul_(beta / 2)

    def widened(*args, **options):
        out = triton(*(x.float() for x in args), **options)
        return PalimpsaOutput(out.o.bfloat16(), out.variance.bfloat16(), out.final_state)

    assert failures_in_half(widened, problem) == {}


def test_heads_done_in_groups_change_nothing(Problem, assert_equal, outputs_and_gradients, triton, monkeypatch):
    problem = Problem((1, 66, 3, 5, 32), torch.float32, groups=2)
    expected = outputs_and_gradients(problem, triton)
    module, planned = kernels("gpu.grouped"), []
    plan = module.make_plan

    def in_groups(*sizes):
        planned.append(plan(*sizes))
        return planned[-1]._replace(head_slices=[(0, 1), (1, 2)])

    monkeypatch.setattr(module, "make_plan", in_groups)
    for found, wanted in zip(outputs_and_gradients(problem, triton), expected, strict=True):
        assert_equal(found, wanted, 0)
    assert {tuple(plan.head_slices) for plan in planned} == {((0, 3),)}


def test_heads_are_grouped_to_keep_to_the_scratch_memory(monkeypatch):
    monkeypatch.setattr(kernels("gpu.forward"), "SCRATCH_BYTES", 2**20)
    plan = kernels("gpu.grouped").make_plan(2**15, 2**9, 16, 96, 192, 12, 2, True)
    assert [h for first, number in plan.head_slices for h in range(first, first + number)] == list(range(16))
    assert len(plan.head_slices) > 1


# One dropped at a time: the flow between chunks, the state before them, and what importances pass on to the keys.
@pytest.mark.parametrize(
    ("module", "name", "replacement"),
    [
        ("gpu.grouped_backward", "carry", lambda *args, **options: None),
        ("gpu.grouped", "carry", lambda *args, **options: None),
        ("gpu.grouped_backward", "repeat_for_rows", lambda x, V: x.repeat(*[1] * (x.ndim - 1), V // x.shape[-1])),
    ],
)
def test_a_dropped_term_fails_the_comparison(Problem, failures, triton, monkeypatch, module, name, replacement):
    problem = Problem((1, 130, 1, 5, 32), torch.float32, groups=2)
    monkeypatch.setattr(kernels(module), name, replacement)
    assert failures(triton, problem)


@pytest.mark.parametrize("bounds", [None, (0, 3, 3, 6)], ids=str)
def test_pytorch_knows_what_the_operators_give_and_keep(Problem, bounds):
    library = kernels("library")
    problem = Problem((1, 6, 2, 5, 16), torch.float32, num_states=bounds and len(bounds) - 1, groups=1)
    tensors = [x.requires_grad_() for x in problem.tensors.values()]
    places = None if bounds is None else torch.tensor(bounds)
    args = ("triton", *tensors, places, 0.5, 1, 1)
    torch.library.opcheck(library.forward, (*args, True, True, True))
    *outputs, kept = library.forward(*args, True, True, True)
    assert kept.numel() > 0
    assert library.forward(*args, False, True, True)[-1].numel() == 0
    tensors = [x.detach() for x in tensors]
    outputs = [x.detach() for x in outputs]
    flows = [torch.randn_like(x) for x in outputs]
    call = ("triton", *tensors, places, *outputs[2:])
    torch.library.opcheck(library.backward, (*call, kept, *flows, 0.5, 1, 1, True, True))
    # What the forward kept is what the backward computes without it.
    found = library.backward(*call, kept, *flows, 0.5, 1, 1, True, True)
    for x, y in zip(found, library.backward(*call, kept.new_empty(0), *flows, 0.5, 1, 1, True, True), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_code_gives_the_same(Problem, assert_equal, triton, dynamic):
    torch.compiler.reset()
    compiled = torch.compile(triton, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for num_tokens in (5, 7):
        problem = Problem((1, num_tokens, 1, 5, 16), torch.float32, groups=1)
        assert_equal(problem.gradients(compiled), problem.gradients(triton), 1e-6)


def test_it_maps_over_arguments_and_over_gradients(Problem, triton):
    problem = Problem((1, 5, 1, 5, 16), torch.float32, groups=1)
    args, state = [x.clone().requires_grad_() for x in problem.args], problem.state
    several = torch.stack([args[0], 2 * args[0]]).detach()

    def run(q):
        return triton(q, *args[1:], initial_state=state).o

    torch.testing.assert_close(torch.vmap(run)(several), torch.stack([run(q) for q in several]))
    o = triton(*args, initial_state=state).o
    weights = torch.randn(3, *o.shape, generator=torch.Generator().manual_seed(0))
    found = torch.autograd.grad(o, args, weights, is_grads_batched=True, retain_graph=True)
    for i, w in enumerate(weights):
        for x, expected in zip(found, torch.autograd.grad(o, args, w, retain_graph=True), strict=True):
            torch.testing.assert_close(x[i], expected, rtol=1e-5, atol=1e-5)


def test_groups_of_fewer_rows_are_for_the_other_kernels(Problem, triton):
    assert [kernels("groups").suits_products(V, G) for V, G in ((16, 1), (15, 1), (96, 6), (96, 8))] == [
        True, False, True, False,
    ]  # fmt: skip
    with pytest.raises(AssertionError, match="precisions of their own ran"):
        Problem((1, 3, 1, 5, 30), torch.float32, groups=2).run(triton)


def test_gradients_of_views_and_of_some_arguments_alone(Problem, assert_equal, triton):
    """Arguments that do not begin at 16 bytes, and a beta that is one for all tokens."""
    problem = Problem((1, 6, 1, 5, 16), torch.float32, groups=1)
    whole = problem.tensors["beta"]
    problem.tensors["beta"] = whole[:, :1].expand_as(whole)
    for name in ("q", "k", "v"):
        x = problem.tensors[name]
        problem.tensors[name] = torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape)
    assert_equal(problem.run(triton), problem.run(palimpsa_reference), 1e-5)
    assert_equal(problem.gradients(triton), problem.gradients(palimpsa_reference), 1e-5)


@pytest.mark.gpu
class TestOnTheGpu:
    """Tiles of both widths, one and several of keys and of rows, and rows that fill none."""

    shapes = pytest.mark.parametrize(
        ("shape", "groups"),
        [
            *(((2, 300, 3, 48, 96), 1), ((1, 130, 2, 96, 192), 1), ((1, 300, 2, 48, 96), 6), ((2, 257, 2, 16, 32), 1)),
            *(((1, 200, 2, 16, 32), 2), ((1, 190, 2, 100, 48), 3), ((1, 190, 2, 7, 24), 1), ((1, 1, 1, 16, 16), 1)),
            *(((2, 64, 2, 64, 64), 1), ((1, 257, 2, 128, 128), 2), ((1, 65, 1, 256, 256), 1)),
        ],
    )

    @shapes
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, Problem, failures_in_half, triton, shape, groups, dtype):
        assert failures_in_half(triton, Problem(shape, dtype, groups=groups)) == {}

    @shapes
    def test_it_is_as_exact_as_the_reference(self, Problem, failures, triton, shape, groups):
        assert failures(triton, Problem(shape, torch.float32, groups=groups)) == {}

    @pytest.mark.parametrize("state", [True, False])
    def test_packed_sequences(self, Problem, failures_in_half, triton, state):
        problem = Problem((1, 300, 2, 48, 96), torch.bfloat16, state=state, num_states=4, groups=1)
        bounds = torch.tensor([0, 3, 3, 170, 300])
        assert failures_in_half(triton, problem, cu_seqlens=bounds) == {}

    def test_long_sequences_are_exact(self, Problem, triton):
        problem = Problem((1, 32768, 2, 48, 96), torch.float32, groups=1)
        found, expected = problem.gradients(triton), problem.to(torch.float64).gradients(palimpsa_chunked)
        # 1e-4 is what float32 sums of 32,768 terms lose.
        for name, x in expected.items():
            assert (found[name].double() - x).abs().max() <= 1e-4 * max(1.0, x.abs().max().item()), name

    def test_a_decay_that_is_no_number_is_seen(self, Problem, triton, monkeypatch):
        monkeypatch.setenv("PALIMPSA_DEBUG", "0")
        problem = Problem((1, 70, 1, 48, 96), torch.bfloat16, state=False, groups=1)
        problem["g"][:, 5] = math.nan
        assert problem.run(triton).o[:, 5:].isnan().all()

    def test_two_runs_are_bit_identical(self, Problem, assert_equal, triton):
        problem = Problem((2, 1000, 4, 48, 96), torch.bfloat16, groups=1)
        assert_equal(problem.run(triton), problem.run(triton), 0)
        assert_equal(problem.gradients(triton), problem.gradients(triton), 0)

    def test_another_length_batch_or_number_of_heads_compiles_nothing(self, Problem, triton, monkeypatch):
        Problem((2, 100, 2, 48, 96), torch.bfloat16, groups=1).gradients(triton)
        compiled = []
        runtime = importlib.import_module("triton.knobs").runtime
        monkeypatch.setattr(runtime, "jit_post_compile_hook", lambda **options: compiled.append(options["fn"].name))
        for B, T, H in ((2, 101, 2), (1, 1, 1), (16, 64, 16), (1, 5000, 3), (3, 1024, 2)):
            Problem((B, T, H, 48, 96), torch.bfloat16, groups=1).gradients(triton)
        assert compiled == []

    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_compiled_code_gives_the_same(self, Problem, assert_equal, triton, backend):
        torch.compiler.reset()
        problem = Problem((2, 100, 2, 48, 96), torch.bfloat16, groups=1)
        compiled = torch.compile(triton, backend=backend, fullgraph=True)
        assert_equal(problem.gradients(compiled), problem.gradients(triton), 1e-2)
