"""CUDA graphs: the hundreds of kernels of a step, launched as one."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")

# Calls that run the function before it is captured: kernels are compiled, and libraries take their workspaces.
NUM_WARMUP = 2


class Replay(Generic[T]):
    """A function on the GPU that is captured at its third call and replayed from then on.

    It computes the same at every call, captured or not. The results of a replay are the same tensors each time: the
    next one overwrites them.

    The function takes what changes from tensors that its owner keeps where they are, must not wait for the GPU and must
    not choose by values on it. bf16 copies of weights that autocast would keep between calls are made anew in each,
    since a replay would read those of the capture.

    Args:
        function: let go once it is captured, so that a graph lives no longer than its owner, whose method it may be.
        pool: of `torch.cuda.graph_pool_handle`: memory for what is computed on the way, shared with other replays, none
            of which is called at the same time; None: memory of its own.
    """

    def __init__(self, function: Callable[[], T], pool: Any = None) -> None:
        self._function: Callable[[], T] | None = function
        self._pool = pool
        self._num_calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: T | None = None

    def __call__(self) -> T:
        if self._graph is None:
            assert self._function is not None
            if self._num_calls < NUM_WARMUP:
                self._num_calls += 1
                return run_aside(self._function)
            graph = torch.cuda.CUDAGraph()
            with no_collection(), torch.cuda.graph(graph, pool=self._pool), uncached_autocast("cuda"):
                self._result = self._function()
            self._graph, self._function = graph, None
        self._graph.replay()
        assert self._result is not None
        return self._result


@contextmanager
def no_collection() -> Iterator[None]:
    """Without Python's collection of cycles: one that holds an older graph would end the capture with an error."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def run_aside(function: Callable[[], T]) -> T:
    """Calls a function on a stream of its own, between what the current one has been given and will be given.

    On the stream that everything else uses, what autograd remembers of streams would end up in a later capture.
    """
    here, own = torch.cuda.current_stream(), torch.cuda.Stream()
    own.wait_stream(here)
    with torch.cuda.stream(own), uncached_autocast("cuda"):
        result = function()
    here.wait_stream(own)
    return result


def uncached_autocast(device: str) -> torch.autocast:
    """The autocast that is active on a kind of device, or none, without its cache of weights."""
    return torch.autocast(
        device,
        dtype=torch.get_autocast_dtype(device),
        enabled=torch.is_autocast_enabled(device),
        cache_enabled=False,
    )
