"""The public operators: choice of the path, decoding one token at a time, what importing them does."""

# B batch, T time, H heads, K key dim, V value dim
import importlib
import inspect
import itertools
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from palimpsa.kernels import (
    PalimpsaOutput,
    PalimpsaState,
    palimpsa,
    palimpsa_chunked,
    palimpsa_reference,
    palimpsa_step,
)

LIBRARY = importlib.import_module("palimpsa.kernels.library")
ROOT = Path(__file__).resolve().parents[2]
every_variant = pytest.mark.parametrize(("beta", "state"), [(True, True), (True, False), (False, True), (False, False)])


def test_unused_fields_are_none_and_the_type_never_changes(Problem):
    args = Problem((1, 3, 2, 4, 5)).args
    out = palimpsa(*args)
    assert isinstance(out, PalimpsaOutput)
    assert out.variance is None
    assert out.final_state is None
    out = palimpsa(*args, output_final_state=True, output_variance=True)
    assert isinstance(out, PalimpsaOutput)
    assert isinstance(out.final_state, PalimpsaState)
    assert out.variance.shape == out.o.shape == (1, 3, 2, 5)


@pytest.mark.parametrize("path", ["reference", "chunked"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_of_the_results(Problem, monkeypatch, path, dtype):
    monkeypatch.setenv("PALIMPSA_PATH", path)
    for beta in (True, False):
        for num_tokens in (0, 3):
            problem = Problem((1, num_tokens, 2, 4, 5), dtype, beta=beta, state=False)
            out = problem.run(palimpsa)
            assert out.o.dtype == out.variance.dtype == dtype
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            assert out.final_state.mean.dtype == out.final_state.importance.dtype == wide
            assert all(x.is_contiguous() for x in (out.o, out.variance, *out.final_state))


def test_default_scale(Problem, assert_equal):
    problem = Problem((1, 6, 2, 4, 5))
    assert_equal(problem.run(palimpsa), problem.run(palimpsa, scale=0.5), 1e-14)


def test_the_environment_chooses_the_path(Problem, monkeypatch):
    problem = Problem((1, 6, 2, 4, 5))
    module = sys.modules[palimpsa.__module__]
    called = []
    for name in ("reference", "chunked"):
        function = module._PATHS[name]
        monkeypatch.setitem(
            module._PATHS, name, lambda *args, f=function, n=name, **options: called.append(n) or f(*args, **options)
        )
    for setting in ("reference", "chunked", ""):
        monkeypatch.setenv("PALIMPSA_PATH", setting)
        problem.run(palimpsa)
    monkeypatch.delenv("PALIMPSA_PATH")
    problem.run(palimpsa)
    assert called == ["reference", "chunked", "chunked", "chunked"]


def test_the_device_and_the_precision_choose_the_path(monkeypatch):
    module = sys.modules[palimpsa.__module__]
    monkeypatch.delenv("PALIMPSA_PATH", raising=False)
    monkeypatch.setattr(module, "_HAS_TRITON", True)
    for device, dtype, expected in (
        ("cpu", torch.float32, "chunked"),
        ("cuda", torch.float32, "triton"),
        ("cuda", torch.bfloat16, "triton"),
        ("cuda", torch.float64, "chunked"),
        ("mps", torch.float32, "chunked"),
    ):
        assert module._choose_path(torch.device(device), dtype) == expected


def test_a_path_that_cannot_run_is_one_clear_error(Problem, monkeypatch):
    module = sys.modules[palimpsa.__module__]
    monkeypatch.setenv("PALIMPSA_PATH", "triton")
    half = Problem((1, 6, 2, 4, 5), torch.float16)
    state = PalimpsaState(torch.zeros(1, 2, 4, 5), torch.ones(1, 2, 4, 5))

    def step():
        q, k, v, beta, g, prior = (x if x.ndim == 1 else x[:, 0] for x in half.args)
        return palimpsa_step(q, k, v, beta, g, prior, state)

    if module._HAS_TRITON:
        with pytest.raises(ValueError, match=r"triton \(PALIMPSA_PATH\) computes in float32, but q has dtype float64"):
            Problem((1, 6, 2, 4, 5)).run(palimpsa)
        monkeypatch.setattr("palimpsa.kernels.gpu.primitives.INTERPRETED", False)
        for call in (lambda: half.run(palimpsa), step):
            with pytest.raises(ValueError, match=r"cannot run on device cpu \(on cpu with TRITON_INTERPRET=1 only"):
                call()
        with pytest.raises(ValueError, match="cannot run on device mps"):
            module._choose_path(torch.device("mps"), torch.float32)
    monkeypatch.setattr(module, "_HAS_TRITON", False)
    for call in (lambda: half.run(palimpsa), step):
        with pytest.raises(ValueError, match="needs the package triton, which is not installed"):
            call()
    monkeypatch.delenv("PALIMPSA_PATH")
    with pytest.raises(ValueError, match=r"the default on cuda\) needs the package triton.*PALIMPSA_PATH=chunked"):
        module._choose_path(torch.device("cuda"), torch.float32)


def test_an_unknown_path_is_an_error_that_lists_the_choices(Problem, monkeypatch):
    monkeypatch.setenv("PALIMPSA_PATH", "fast")
    with pytest.raises(ValueError, match=r"PALIMPSA_PATH is 'fast'.*reference, chunked, triton"):
        Problem((1, 6, 2, 4, 5)).run(palimpsa)


def test_the_paths_share_one_signature():
    expected = inspect.signature(palimpsa)
    assert inspect.signature(palimpsa_reference) == expected
    chunked = inspect.signature(palimpsa_chunked)
    own = chunked.parameters["chunk_size"]
    assert own.default is None
    assert chunked.replace(parameters=[p for p in chunked.parameters.values() if p is not own]) == expected
    for function in (palimpsa, palimpsa_step):
        kinds = {p.kind for p in inspect.signature(function).parameters.values()}
        assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}


@every_variant
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_steps_equal_the_whole_sequence(Problem, assert_equal, beta, state, dtype):
    problem = Problem((2, 23, 3, 4, 5), dtype, beta=beta, state=state)
    expected = problem.run(palimpsa)
    q, k, v, beta_t, g, prior = problem.args
    # A sequence of no tokens leaves a state of our own to write into.
    memory = palimpsa(
        *(x if x is None or x.ndim == 1 else x[:, :0] for x in problem.args),
        initial_state=problem.state,
        output_final_state=True,
    ).final_state
    outputs, variances = [], []
    for t in range(23):
        beta_now = None if beta_t is None else beta_t[:, t]
        out = palimpsa_step(q[:, t], k[:, t], v[:, t], beta_now, g[:, t], prior, memory, output_variance=True)
        assert out.final_state.mean is memory.mean
        assert out.final_state.importance is memory.importance
        assert out.o.dtype == out.variance.dtype == dtype
        outputs.append(out.o)
        variances.append(out.variance)
    actual = PalimpsaOutput(torch.stack(outputs, 1), torch.stack(variances, 1), memory)
    # bf16: the outputs may round to either side.
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    assert_equal(actual, expected, tolerance)


def test_a_step_takes_any_pair_and_any_strides(Problem):
    problem = Problem((2, 1, 3, 4, 5))
    q, k, v, beta, g, prior = (x if x.ndim == 1 else x[:, 0] for x in problem.args)
    larger = torch.ones(2, 3, 5, 8, dtype=torch.float64)
    mean, importance = (larger.clone().mT[:, :, ::2].copy_(x) for x in problem.state)
    expected = problem.run(palimpsa)
    out = palimpsa_step(q, k, v, beta, g, prior, (mean, importance))
    assert out.variance is None
    torch.testing.assert_close(out.o, expected.o[:, 0], rtol=0, atol=1e-12)
    torch.testing.assert_close(mean, expected.final_state.mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(importance, expected.final_state.importance, rtol=0, atol=1e-12)


def test_a_step_may_reset(Problem):
    problem = Problem((1, 1, 2, 4, 5))
    problem["g"].fill_(-torch.inf)
    q, k, v, beta, g, prior = (x if x.ndim == 1 else x[:, 0] for x in problem.args)
    out = palimpsa_step(q, k, v, beta, g, prior, [x.clone() for x in problem.state])
    expected = palimpsa(*problem.args)
    torch.testing.assert_close(out.o, expected.o[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["q", "k", "v", "beta", "g", "importance_prior", "mean", "importance"])
def test_a_step_refuses_gradients(Problem, name):
    problem = Problem((1, 1, 2, 4, 5))
    problem[name].requires_grad_()

    def step():
        args = (x if x.ndim == 1 else x[:, 0] for x in problem.args)
        return palimpsa_step(*args, problem.state)

    with pytest.raises(ValueError, match=rf"{name} requires grad.*no_grad"):
        step()
    with torch.no_grad():
        step()


def test_inference_mode(Problem, assert_equal):
    problem = Problem((1, 9, 2, 4, 5))
    expected = problem.run(palimpsa)
    with torch.inference_mode():
        assert_equal(problem.run(palimpsa), expected, 0)


# Without beta it is many small operations, which take inductor most of a minute.
@pytest.mark.parametrize(
    ("backend", "beta", "state"),
    [
        ("eager", True, True),
        ("aot_eager", True, True),
        ("aot_eager", True, False),
        ("aot_eager", False, False),
        ("inductor", True, True),
        ("inductor", True, False),
    ],
)
def test_compiled_code_gives_the_same(Problem, assert_equal, backend, beta, state):
    torch.compiler.reset()
    problem = Problem((1, 9, 2, 4, 5), beta=beta, state=state)
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


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_step_writes_into_its_state(Problem, assert_equal, backend):
    torch.compiler.reset()
    problem = Problem((2, 1, 2, 4, 5))
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
def test_opcheck_of_forward(Problem, outputs, state):
    problem = Problem((2, 6, 2, 4, 5), torch.float32, state=state)
    tensors = [None if x is None else x.requires_grad_() for x in problem.tensors.values()]
    torch.library.opcheck(LIBRARY.forward, ("chunked", *tensors, None, 0.5, 1, 4, True, outputs, outputs))


@pytest.mark.parametrize("flows", [(True, True, True, True), (True, False, False, False), (False, False, True, False)])
def test_opcheck_of_backward(Problem, flows):
    tensors = Problem((2, 6, 2, 4, 5), torch.float32).tensors.values()
    o, variance, mean, importance, kept = LIBRARY.forward("chunked", *tensors, None, 0.5, 1, 4, True, True, True)
    outputs = (o, variance, mean, importance)
    gradients = [torch.randn_like(x) if flow else None for x, flow in zip(outputs, flows, strict=True)]
    args = ("chunked", *tensors, None, mean, importance, kept, *gradients, 0.5, 1, 4, True, flows[0])
    torch.library.opcheck(LIBRARY.backward, args)


@pytest.mark.parametrize("beta", [True, False])
def test_opcheck_of_step(Problem, beta):
    problem = Problem((2, 1, 2, 4, 5), torch.float32, beta=beta)
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
        problems = [Problem((2, 6, 2, 4, 5), seed=seed, **kwargs) for seed in range(3)]
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
@pytest.mark.parametrize("in_dim", [0, 1])
def test_vmap(Problem, names, in_dim):
    mapped = Mapped(Problem, names, in_dim)
    found = torch.func.vmap(outputs_of, in_dims=mapped.in_dims)(*mapped.args)
    for i, tensors in enumerate(mapped.each):
        assert_all_close([x[i] for x in found], outputs_of(*tensors))


@pytest.mark.parametrize("state", [True, False])
def test_vmap_without_beta(Problem, state):
    mapped = Mapped(Problem, NAMES, beta=False, state=state)
    found = torch.func.vmap(outputs_of, in_dims=mapped.in_dims)(*mapped.args)
    for i, tensors in enumerate(mapped.each):
        assert_all_close([x[i] for x in found], outputs_of(*tensors))


@every_mapping
def test_vmap_of_grad(Problem, names):
    mapped = Mapped(Problem, names)
    gradient = torch.func.grad(loss_of, argnums=mapped.argnums)
    found = torch.func.vmap(gradient, in_dims=mapped.in_dims)(*mapped.args)
    for i, tensors in enumerate(mapped.each):
        assert_all_close([x[i] for x in found], gradient(*tensors))


@every_mapping
@pytest.mark.parametrize("functional", [True, False])
def test_grad_through_vmap(Problem, names, functional):
    mapped = Mapped(Problem, names)

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


def test_vmap_over_packed_sequences(Problem):
    bounds = torch.tensor([0, 2, 2, 6])
    problems = [Problem((1, 6, 2, 4, 5), seed=seed, num_states=3) for seed in range(2)]
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


def test_a_backward_without_what_the_forward_kept_is_right(Problem):
    tensors = list(Problem((2, 9, 2, 4, 5)).tensors.values())
    o, _, _, _, kept = LIBRARY.forward("chunked", *tensors, None, 0.5, 1, 4, True, False, False)
    found = [
        LIBRARY.backward(
            "chunked", *tensors, None, None, None, x, torch.ones_like(o), None, None, None, 0.5, 1, 4, True, True
        )
        for x in (kept, kept[:0])
    ]
    for x, y in zip(*found, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


def run_python(code, **environment):
    """Runs code in a fresh interpreter at the root of the repository."""
    import os

    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_kernels_folder_is_a_package_of_its_own():
    code = "import kernels, sys; assert not any(m.startswith('palimpsa') for m in sys.modules); print(kernels.__all__)"
    assert "palimpsa_step" in run_python(code)


@pytest.mark.parametrize("folder", ["kernels", "palimpsa.kernels"])
def test_the_kernels_import_without_triton_and_without_its_neighbours(folder):
    code = f"""
import sys
sys.modules["triton"] = sys.modules["fla"] = None
import torch
from {folder} import palimpsa, palimpsa_step
x = torch.ones(1, 1, 1, 1)
print(palimpsa(x, x, x, x, x[..., 0] * 0, x.flatten()).o.item())
"""
    assert run_python(code, PYTHONPATH=str(ROOT / "src"), PALIMPSA_PATH="").strip() == "0.5"


def test_both_copies_of_the_kernels_work_beside_each_other():
    code = """
import torch, kernels, palimpsa.kernels
x = torch.ones(1, 1, 1, 1)
for package in (kernels, palimpsa.kernels, kernels):
    print(package.palimpsa(x, x, x, x, x[..., 0] * 0, x.flatten()).o.item())
"""
    assert run_python(code, PYTHONPATH=str(ROOT / "src")).split() == ["0.5"] * 3


def test_without_beta_on_a_gpu_a_missing_library_is_named(Problem, monkeypatch):
    monkeypatch.setitem(sys.modules, "fla.ops.simple_gla", None)
    q, k, v, _, g, prior = Problem((1, 6, 2, 4, 5), torch.float32).args
    linear = importlib.import_module("palimpsa.kernels.linear")
    with pytest.raises(ImportError, match=r"pip install flash-linear-attention==0\.6\.0"):
        linear.linear_attention(q, k, v, g, prior, 0.5, False, False, None)


@pytest.mark.parametrize("packed", [True, False])
def test_without_beta_the_library_is_called_as_it_should_be(Problem, assert_equal, monkeypatch, packed):
    """The library's kernel needs a GPU: here its definition stands in for it."""

    def chunk_simple_gla(q, k, v, g, scale, output_final_state, cu_seqlens):
        assert torch.isfinite(g).all()
        bounds = [0, q.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
        outputs, states = [], []
        for start, end in itertools.pairwise(bounds):
            M = torch.zeros(q.shape[0], *q.shape[2:], v.shape[-1])
            for t in range(start, end):
                M = g[:, t, :, None, None].exp() * M + k[:, t, ..., None] * v[:, t, :, None]
                outputs.append(scale * (q[:, t, :, None] @ M).squeeze(-2))
            states.append(M)
        return torch.stack(outputs, 1), torch.cat(states) if output_final_state else None

    monkeypatch.setitem(sys.modules, "fla", types.ModuleType("fla"))
    monkeypatch.setitem(sys.modules, "fla.ops", types.ModuleType("fla.ops"))
    module = types.ModuleType("fla.ops.simple_gla")
    module.chunk_simple_gla = chunk_simple_gla
    monkeypatch.setitem(sys.modules, "fla.ops.simple_gla", module)
    linear = importlib.import_module("palimpsa.kernels.linear")

    def operator(q, k, v, beta, g, prior, *, initial_state, output_final_state, output_variance, cu_seqlens):
        assert beta is initial_state is None
        scale = q.shape[-1] ** -0.5
        return linear.linear_attention(q, k, v, g, prior, scale, output_final_state, output_variance, cu_seqlens)

    problem = Problem((1, 9, 2, 4, 5), torch.float32, beta=False, state=False)
    problem["g"][:, 4] = -torch.inf
    bounds = torch.tensor([0, 2, 2, 9], dtype=torch.int32) if packed else None
    options = {"cu_seqlens": bounds}
    assert_equal(problem.run(operator, **options), problem.run(palimpsa_reference, **options), 1e-5)
    assert_equal(problem.gradients(operator, **options), problem.gradients(palimpsa_reference, **options), 1e-5)


def test_configurations_of_the_library_that_are_compiled_wrongly_are_left_out():
    code = """
from fla.ops.common.chunk_o import chunk_bwd_kernel_dqkwg as kernel
from palimpsa.kernels.fla.guards import keep_right_configurations
keep_right_configurations(kernel.fn)
for BK in (16, 32, 64):
    print(BK, {c.num_warps >= 4 for c in kernel.fn.early_config_prune(kernel.fn.configs, {}, BK=BK)})
"""
    # Without the interpreter, which would import another kind of kernel.
    found = run_python(code, PYTHONPATH=str(ROOT / "src"), TRITON_INTERPRET="0").split("\n")[-4:-1]
    assert found == ["16 {False}", "32 {False}", "64 {False, True}"]


def test_importing_the_project_does_not_import_torch():
    run_python("import sys, palimpsa; assert 'torch' not in sys.modules", PYTHONPATH=str(ROOT / "src"))


def test_transformers_imports_beside_a_folder_named_kernels():
    # transformers looks for a package named `kernels`, and from the root of the repository it finds ours.
    code = "import transformers; from transformers import LlamaForCausalLM; print(LlamaForCausalLM.__name__)"
    assert run_python(code).strip().endswith("LlamaForCausalLM")
