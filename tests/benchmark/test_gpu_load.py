"""How long a GPU was at work, from what its profiler saw."""

import random

import pytest

from palimpsa.benchmark.gpu_load import IncompleteProfileError, gpu_busy_ns, union_length


def test_the_union_counts_what_overlaps_once():
    assert union_length([]) == 0
    assert union_length([(3, 3)]) == 0
    # A copy on another stream within a kernel, and one that outlasts it.
    assert union_length([(0, 10), (2, 4), (8, 13)]) == 13
    # One after the other, without a gap and with one.
    assert union_length([(0, 2), (2, 3), (5, 6)]) == 4
    generator = random.Random(0)
    for _ in range(200):
        intervals = [(a, a + generator.randrange(8)) for a in generator.choices(range(40), k=generator.randrange(12))]
        assert union_length(intervals) == len({t for start, end in intervals for t in range(start, end)}), intervals


def test_a_profile_that_saw_nothing_or_ends_early_tells_no_share():
    second = 10**9
    kernels = [(t * second // 10, t * second // 10 + second // 20) for t in range(100)]
    assert gpu_busy_ns(kernels, 10 * second) == 100 * second // 20
    with pytest.raises(IncompleteProfileError, match="no work"):
        gpu_busy_ns([], second)
    with pytest.raises(IncompleteProfileError, match="fewer num_steps"):
        gpu_busy_ns(kernels[:80], 10 * second)
    # The host's work after the last kernel of a short window is no loss.
    assert gpu_busy_ns([(0, second // 100)], second // 20) == second // 100
