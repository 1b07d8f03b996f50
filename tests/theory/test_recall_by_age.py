"""How well a memory recalls a pair, against its age."""

import math

import pytest

from palimpsa.theory.recall_by_age import MEMORIES, Memory, recall_by_age


def ends(memory, column):
    """The mean over the 16 youngest and the 16 oldest pairs."""
    rows = recall_by_age(memory, num_memories=16, num_pairs=256, K=16, V=16)
    assert [row["age"] for row in rows] == list(range(1, 257))
    values = [row[column] for row in rows]
    return sum(values[:16]) / 16, sum(values[-16:]) / 16


def test_what_a_memory_recalls():
    naive, metaplastic, forgetting = MEMORIES
    # Without forgetting every pair has the same weight, whatever its age.
    for memory in (naive, metaplastic):
        young, old = ends(memory, "similarity")
        assert young == pytest.approx(old, abs=0.05)
    assert min(ends(naive, "error")) > 10
    assert max(ends(metaplastic, "error")) < 1.05
    young, old = ends(forgetting._replace(window=32.0), "similarity")
    assert young > 0.5
    assert abs(old) < 0.1
    assert ends(forgetting._replace(window=32.0), "error")[0] < 0.8


def test_recall_is_of_the_seed_alone():
    memory = Memory("some", 1.0, math.inf)
    sizes = {"num_memories": 2, "num_pairs": 5, "K": 4, "V": 3}
    assert recall_by_age(memory, **sizes) == recall_by_age(memory, **sizes)
    assert recall_by_age(memory, **sizes) != recall_by_age(memory, **sizes, seed=1)
