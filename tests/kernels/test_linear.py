"""Without beta on a GPU: what is asked of flash-linear-attention, tested without one."""

# B batch, T time, H heads, K key dim, V value dim
import importlib
import itertools
import sys
import types

import pytest
import torch

from palimpsa.kernels import palimpsa, palimpsa_reference


def test_without_beta_on_a_gpu_a_missing_library_is_named(Problem, monkeypatch):
    monkeypatch.setitem(sys.modules, "fla.ops.simple_gla", None)
    q, k, v, _, g, prior = Problem((1, 6, 2, 4, 5), torch.float32).args
    linear = importlib.import_module("palimpsa.kernels.linear")
    with pytest.raises(ImportError, match=r"pip install flash-linear-attention==0\.6\.0"):
        linear.linear_attention(q, k, v, g, prior, 0.5, False, False, None)


@pytest.mark.parametrize("packed", [True, False])
def test_without_beta_the_library_is_called_as_it_should_be(Problem, assert_equal, monkeypatch, packed):
    """The library's kernel needs a GPU: here its definition stands in for it."""

    def chunk_simple_gla(q, k, v, g, scale, initial_state, output_final_state, cu_seqlens):
        assert initial_state is None
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


@pytest.mark.parametrize(("K", "V"), [(17, 31), (3, 100)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bounds", [None, (0, 3, 45)])
def test_the_librarys_kernel_gets_even_heads_in_half_precision(Problem, monkeypatch, K, V, dtype, bounds):
    """Of an odd width its way back ends in an assertion."""
    linear = importlib.import_module("palimpsa.kernels.linear")
    recurrences = importlib.import_module("palimpsa.kernels.fla.recurrences")

    def kernel(q, k, v, g, *, scale, initial_state, output_final_state, cu_seqlens):
        assert q.shape[-1] % 2 == v.shape[-1] % 2 == 0
        operands = (q.float() * (scale * q.shape[-1] ** 0.5), k, v.float(), g[..., None])
        return recurrences._by_reference(recurrences._gated_recurrence, operands, initial_state, cu_seqlens)

    monkeypatch.setattr(linear, "guarded_chunk_simple_gla", lambda device: kernel)
    problem = Problem((1, 45, 2, K, V), dtype, beta=False, state=False)
    cu_seqlens = None if bounds is None else torch.tensor(bounds)

    def by_library(q, k, v, beta, g, prior, initial_state, output_final_state, output_variance, cu_seqlens):
        return linear.linear_attention(q, k, v, g, prior, K**-0.5, output_final_state, output_variance, cu_seqlens)

    options = {"cu_seqlens": cu_seqlens}
    exact = problem.to(torch.float64)
    found, expected = problem.gradients(by_library, **options), exact.gradients(palimpsa_reference, **options)
    for name, x in expected.items():
        assert found[name].shape == x.shape
        assert (found[name].double() - x).abs().max() <= 2e-2 * x.abs().max().clamp(min=1)


@pytest.mark.gpu
@pytest.mark.parametrize(("K", "V"), [(64, 128), (64, 64), (48, 96)])
def test_every_configuration_at_the_heads_of_language_models_is_right(Problem, K, V):
    """Of the kernel that has wrong ones at narrower keys (guards.py): autotuning may choose any of them."""
    problem = Problem((1, 300, 2, K, V), torch.bfloat16, beta=False, state=False)
    arguments = [None if x is None else x.cuda() for x in problem.args]
    exact = [None if x is None else x.double() for x in arguments]
    expected = gradients_of_operands(palimpsa_reference, exact)
    gradients_of_operands(palimpsa, arguments)
    tuner = importlib.import_module("fla.ops.common.chunk_o").chunk_bwd_kernel_dqkwg.fn
    all_configurations = list(tuner.configs)
    try:
        for configuration in all_configurations:
            tuner.configs, tuner.cache_results = [configuration], False
            tuner.cache.clear()
            for one, other in zip(gradients_of_operands(palimpsa, arguments), expected, strict=True):
                assert (one.double() - other).norm() <= 1e-2 * other.norm(), configuration
    finally:
        tuner.configs = all_configurations
        tuner.cache.clear()


def gradients_of_operands(operator, arguments):
    """Of q, k, v and g, of the sum of the squared output."""
    leaves = [None if x is None else x.detach().clone().requires_grad_() for x in arguments]
    operator(*leaves).o.double().square().sum().backward()
    return [leaves[i].grad for i in (0, 1, 2, 4)]
