"""The public operators: choice of the path, and decoding one token at a time."""

# B batch, T time, H heads, K key dim, V value dim
import inspect
import sys

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
