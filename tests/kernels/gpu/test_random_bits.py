"""The counter-based stream of palimpsa.tasks in Triton, to the same bits as in torch: interpreted, or on a GPU."""

import pytest
import torch

pytest.importorskip("triton")
from palimpsa.kernels.gpu.random_bits import random_bits_kernel
from palimpsa.tasks.random import random_bits

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("key", [0, 1, 7, 2**40 + 3, 2**63 - 1, -1, -(2**63)])
@pytest.mark.parametrize("num_draws", [0, 1, 1500])
def test_bits_are_those_of_torch(key, num_draws):
    examples = torch.tensor([0, 1, 3, 2**33 + 5, 2**62])
    found = random_bits_kernel(key, examples.to(DEVICE), num_draws).cpu()
    assert torch.equal(found, random_bits(key, examples, num_draws))


def test_no_example_gives_no_bits():
    assert random_bits_kernel(7, torch.empty(0, dtype=torch.int64, device=DEVICE), 5).shape == (0, 5)
