"""Permutations without a table: every index once, one for a key, and all orders of a few items alike."""

import itertools
import math
from collections import Counter

import pytest
import torch

from palimpsa.tasks.random import derive_key, permuted


@pytest.mark.parametrize("size", [1, 2, 3, 7, 256, 257, 4_097, 100_000])
def test_every_index_comes_once(size):
    found = permuted(derive_key(1, 2), torch.arange(size), size)
    assert torch.equal(found.sort().values, torch.arange(size))
    # A part of the indices goes where it goes among all.
    part = torch.arange(0, size, 3)
    assert torch.equal(permuted(derive_key(1, 2), part, size), found[::3])


def test_a_set_that_no_table_would_hold():
    size = 10**15
    found = permuted(derive_key(3), torch.arange(size - 1_000, size), size)
    assert len(found.unique()) == 1_000
    assert found.min() >= 0
    assert found.max() < size
    # A thousand neighbours are everywhere.
    assert 0.4 < found.double().mean().item() / size < 0.6


@pytest.mark.parametrize(("size", "limit"), [(3, 20.5), (4, 49.7)])
def test_every_order_of_a_few_items_is_as_likely(size, limit):
    """The limits are those that chi-squared is above once in a thousand."""
    expected, num_orders = 15, math.factorial(size)
    keys = range(expected * num_orders)
    orders = Counter(tuple(permuted(derive_key(key), torch.arange(size), size).tolist()) for key in keys)
    assert set(orders) == set(itertools.permutations(range(size)))
    assert sum((count - expected) ** 2 / expected for count in orders.values()) < limit


def test_neighbours_are_torn_apart():
    size = 10_000
    found = permuted(derive_key(5), torch.arange(size), size).double()
    correlation = torch.corrcoef(torch.stack([found[:-1], found[1:]]))[0, 1].item()
    assert abs(correlation) < 0.03
    assert abs(torch.corrcoef(torch.stack([found, torch.arange(size).double()]))[0, 1].item()) < 0.03
