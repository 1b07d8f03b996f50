"""A captured function's bookkeeping: nothing of Python's own may end a capture, or keep a graph."""

import gc
import weakref

import pytest
import torch

from palimpsa.training import cuda_graph as replay
from palimpsa.training.cuda_graph import NUM_WARMUP, Replay


class Graph:
    """Stands in for a CUDA graph where there is no GPU: calls of the function are all that a capture keeps."""

    capturing = False

    def replay(self):
        pass


class Capture:
    def __init__(self, graph, pool):
        pass

    def __enter__(self):
        Graph.capturing = True

    def __exit__(self, *error):
        Graph.capturing = False


@pytest.fixture
def fake_graphs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    monkeypatch.setattr(replay, "run_aside", lambda function: function())


@pytest.mark.usefixtures("fake_graphs")
def test_nothing_is_collected_during_a_capture():
    seen = []
    replayed = Replay(lambda: seen.append((Graph.capturing, gc.isenabled())) or 1)
    for _ in range(NUM_WARMUP + 2):
        assert replayed() == 1
    assert seen == [(False, True)] * NUM_WARMUP + [(True, False)]
    assert gc.isenabled()


@pytest.mark.usefixtures("fake_graphs")
@pytest.mark.parametrize("enabled", [True, False])
def test_a_capture_that_fails_leaves_collection_as_it_was(enabled):
    def function():
        if Graph.capturing:
            raise RuntimeError("captured")
        return 1

    replayed = Replay(function)
    assert [replayed() for _ in range(NUM_WARMUP)] == [1] * NUM_WARMUP
    if not enabled:
        gc.disable()
    try:
        with pytest.raises(RuntimeError, match="captured"):
            replayed()
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


@pytest.mark.usefixtures("fake_graphs")
def test_a_graph_goes_with_its_owner():
    class Owner:
        def __init__(self):
            self.replayed = Replay(self.compute)

        def compute(self):
            return 1

    owner = Owner()
    for _ in range(NUM_WARMUP + 1):
        assert owner.replayed() == 1
    seen = weakref.ref(owner)
    gc.disable()
    try:
        del owner
        assert seen() is None
    finally:
        gc.enable()


@pytest.mark.gpu
def test_an_older_graph_in_a_cycle_does_not_end_a_capture():
    x = torch.ones(4, device="cuda")
    older = Replay(lambda: x + 1)
    for _ in range(NUM_WARMUP + 1):
        older()
    older.itself, held = older, [older]
    del older

    def function():
        if torch.cuda.is_current_stream_capturing():
            held.clear()
            # Enough objects for a collection of all generations.
            [[[] for _ in range(1000)] for _ in range(1000)]
        return 2 * x

    replayed = Replay(function)
    for _ in range(NUM_WARMUP + 2):
        assert replayed().tolist() == [2, 2, 2, 2]
