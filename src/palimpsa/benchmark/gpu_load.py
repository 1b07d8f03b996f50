"""How much of a window a GPU computes or copies in: from what the profiler saw, the union over all streams."""

from __future__ import annotations

from collections.abc import Iterable

# ns, start and end.
Interval = tuple[int, int]
# Of the window's length: a profiler whose buffers are full goes on without a word, and its last event ends early.
MAX_UNSEEN_SHARE = 0.1
# A window of few steps ends with the host's work after the last kernel.
MAX_UNSEEN_NS = 100_000_000


class IncompleteProfileError(Exception):
    """The profiler saw too little of the window."""


def union_length(intervals: Iterable[Interval]) -> int:
    """The length of the union: what overlaps, on two streams, say, counts once.

    Args:
        intervals: (start, end) each, in any order.

    Returns:
        in their unit.

    >>> union_length([(5, 9), (0, 4), (3, 5), (6, 7)])
    9
    """
    total = 0
    covered = None
    for start, end in sorted(intervals):
        if covered is None or start > covered:
            total += end - start
            covered = end
        elif end > covered:
            total += end - covered
            covered = end
    return total


def gpu_busy_ns(intervals: list[Interval], window_ns: int) -> int:
    """The union of a window's kernels, copies and fills.

    Args:
        intervals: of each, ns.
        window_ns: the window's length by the host's clock.

    Raises:
        IncompleteProfileError: there are none, or they end long before the window does.
    """
    if not intervals:
        raise IncompleteProfileError("the profiler saw no work on the GPU; is CUPTI allowed here?")
    seen = max(end for _, end in intervals) - min(start for start, _ in intervals)
    if window_ns - seen > MAX_UNSEEN_SHARE * window_ns + MAX_UNSEEN_NS:
        raise IncompleteProfileError(
            f"the profiler saw {seen / 1e9:.2f} s of a window of {window_ns / 1e9:.2f} s; take fewer num_steps"
        )
    return union_length(intervals)
