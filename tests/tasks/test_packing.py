"""Where a stream is cut and what is predicted, against one token at a time."""

import numpy as np
import pytest

from palimpsa.tasks.packing import Packing

WAYS = ("reset", "run_on", "reset_every_context")


def expected(ends: list[int], context: int, documents: str, start: int, stop: int) -> tuple[list[int], list[int]]:
    """Boundaries and target positions, token by token."""
    boundaries, targets, since_document = [], [], 0
    for position in range(start, stop):
        if position in ends or position == start:
            since_document = 0
        at_document = documents != "run_on" and position in ends
        count = since_document if documents == "reset_every_context" else position - start
        if position == start or at_document or count % context == 0:
            boundaries.append(position - start)
        following = position + 1
        if following < ends[-1] and (documents == "run_on" or following not in ends):
            targets.append(position - start)
        since_document += 1
    return [*boundaries, stop - start], targets


@pytest.mark.parametrize("documents", WAYS)
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("contexts", [1, 3])
def test_cuts_and_targets_are_those_of_token_by_token(documents, seed, contexts):
    generator = np.random.default_rng(seed)
    ends = np.cumsum(generator.integers(1, 20, 30))
    context = int(generator.integers(2, 12))
    packing, row = Packing(ends, context, documents), contexts * context
    starts = np.arange(ends[-1] // row) * row
    found_targets = 0
    # The last row ends with the stream.
    for start, stop in [*((start, start + row) for start in starts.tolist()), (int(ends[-1]) - row, int(ends[-1]))]:
        boundaries, targets = expected(ends.tolist(), context, documents, start, stop)
        assert packing.boundaries(start, stop).tolist() == boundaries
        assert packing.target_positions(start, stop).tolist() == targets
        assert packing.num_targets(np.array([start]), row) == len(targets)
        assert np.diff(boundaries).max() <= context
        found_targets += len(targets)
    assert packing.num_targets(np.append(starts, ends[-1] - row), row) == found_targets


@pytest.mark.parametrize(
    ("documents", "boundaries", "targets"),
    [
        # As the module's docstring draws it.
        ("reset", [0, 2, 4, 6, 8], [0, 2, 3, 4, 6, 7]),
        ("run_on", [0, 4, 8], [0, 1, 2, 3, 4, 5, 6, 7]),
        ("reset_every_context", [0, 2, 6, 8], [0, 2, 3, 4, 6, 7]),
    ],
)
def test_the_drawn_row(documents, boundaries, targets):
    packing = Packing(np.array([2, 6, 12]), 4, documents)
    assert packing.boundaries(0, 8).tolist() == boundaries
    assert packing.target_positions(0, 8).tolist() == targets
