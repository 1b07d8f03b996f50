"""What makes Triton's interpreter quicker changes no bit of what it computes: see tests/kernels/interpreter.py."""

# B batch, T time, H heads, K key dim, V value dim, G precisions a head
import pytest
import torch

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled where there is a GPU")


@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_quick_interpreter_gives_the_same_bits(
    Problem, outputs_and_gradients, assert_equal, triton, slow_interpreter, dtype, groups
):
    """Of the kernels for rows with precisions of their own and of those for groups."""
    problem = Problem((1, 9, 1, 5, 32), dtype, num_states=2, groups=groups)
    bounds = torch.tensor([0, 3, 9])
    quick = outputs_and_gradients(problem, triton, cu_seqlens=bounds)
    with slow_interpreter():
        expected = outputs_and_gradients(problem, triton, cu_seqlens=bounds)
    for found, wanted in zip(quick, expected, strict=True):
        assert_equal(found, wanted, 0)
