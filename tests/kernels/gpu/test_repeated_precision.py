"""A precision for each group of rows in Triton, where its kernels take it repeated over the rows.

In Triton's interpreter, or on the GPU where there is one.
"""

# B batch, T time, H heads, K key dim, V value dim, G precisions a head, N sequences packed along T
import importlib

import pytest
import torch

from palimpsa.kernels import palimpsa_reference

pytest.importorskip("triton")


# From a state, packed, without beta; groups of fewer rows than the matrix units take, and of all there are.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("groups", "beta", "state"), [(1, True, True), (4, True, False), (2, False, True)])
def test_it_is_as_exact_as_the_reference(Problem, failures, triton, dtype, groups, beta, state):
    problem = Problem((1, 5, 2, 5, 8), dtype, beta=beta, state=state, groups=groups)
    assert failures(triton, problem) == {}


def test_packed_sequences(Problem, failures, triton):
    problem = Problem((1, 7, 1, 5, 6), torch.float32, num_states=3, groups=2)
    assert failures(triton, problem, cu_seqlens=torch.tensor([0, 4, 4, 7])) == {}


@pytest.mark.parametrize("outputs", [("o",), ("variance",), ("mean",), ("importance",)], ids="+".join)
def test_gradients_through_each_output(Problem, assert_equal, triton, outputs):
    problem = Problem((1, 4, 1, 5, 6), torch.float32, groups=3)
    assert_equal(problem.gradients(triton, outputs), problem.gradients(palimpsa_reference, outputs), 1e-5)


def test_betas_gradient_is_added_over_a_group_before_it_is_rounded(Problem, triton):
    # mu = v / (1 + beta), and what the rows of a group want of beta, -0.3 v / 4, nearly cancels: rounded one by one to
    # half precision, 0.0375 would be 0.03125.
    one = Problem((1, 1, 1, 1, 8), torch.float16, state=False, groups=1)
    for name in ("q", "k", "beta", "importance_prior"):
        one[name].fill_(1)
    one["g"].zero_()
    one["v"].fill_(100)
    one["v"][..., 1::2] = -100.125
    beta = one.tensors["beta"] = one["beta"].requires_grad_()
    (found,) = torch.autograd.grad(one.run(triton, scale=0.3).o.sum(), beta)
    assert found.item() == pytest.approx(0.3 / 4 * 4 * 0.125, rel=2e-3)


def test_an_empty_call_has_a_state_of_groups(Problem, triton):
    for shape in ((1, 0, 2, 3, 6), (0, 3, 2, 3, 6)):
        out = Problem(shape, torch.float32, state=False, groups=2).run(triton)
        assert out.final_state.importance.shape == (shape[0], 2, 3, 2)


@pytest.mark.parametrize("dropped", ["sum_over_rows", "place_in_first_rows"])
def test_a_gradient_that_is_not_added_over_a_group_fails_the_comparison(
    Problem, failures, triton, monkeypatch, dropped
):
    groups, library = (importlib.import_module(f"palimpsa.kernels.{name}") for name in ("groups", "library"))
    wrong = {"sum_over_rows": groups.first_of_rows, "place_in_first_rows": groups.repeat_for_rows}[dropped]
    problem = Problem((1, 4, 1, 3, 6), torch.float32, groups=2)
    assert failures(triton, problem) == {}
    monkeypatch.setattr(library, dropped, wrong)
    assert {"gradient of beta", "gradient of importance"} <= failures(triton, problem).keys()
