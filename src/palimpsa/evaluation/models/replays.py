"""What a GPU computes for batches of the same few sizes, replayed: launching its kernels one by one takes longer."""

# B rows, T time, D model width

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from palimpsa.kernels.validation import debug_enabled
from palimpsa.training.cuda_graph import Replay

# Of more tokens the GPU takes longer than its host does, and what a graph keeps would be gigabytes.
MAX_TOKENS = 32_768
# Sizes that are kept: evaluation goes from the longest requests to the shortest.
MAX_SIZES = 8


def is_replayed(tokens: Tensor) -> bool:
    """Whether these are on a GPU, few enough, and nobody wants values checked, for which the host waits."""
    is_on_gpu = tokens.device.type == "cuda"
    return is_on_gpu and tokens.numel() <= MAX_TOKENS and not debug_enabled(tokens.device)


class Replays:
    """A function of tokens that is replayed on a GPU where it was called with their size before, and called elsewhere.

    Args:
        function: tokens [B, T] int64 to what is computed of them; see `training.cuda_graph.Replay` for what it may do.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function
        # A call of each size, and the tokens that it reads; what was called last stands last.
        self._by_size: dict[torch.Size, tuple[Tensor, Replay[Tensor]]] = {}
        self._pool: Any = None
        self._is_off = False

    def __call__(self, tokens: Tensor) -> Tensor:
        """What the function makes of them: overwritten by the next call."""
        if self._is_off or not is_replayed(tokens):
            return self._function(tokens)
        found = self._by_size.pop(tokens.shape, None)
        if found is None:
            if len(self._by_size) == MAX_SIZES:
                del self._by_size[next(iter(self._by_size))]
            own = tokens.clone()
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            found = own, Replay(partial(self._function, own), self._pool)
        self._by_size[tokens.shape] = found
        own, replay = found
        own.copy_(tokens)
        try:
            return replay()
        except RuntimeError:
            # A capture takes memory of its own, which a small GPU may not have: plainly, and so from now on. What is
            # wrong with the function itself it raises again.
            self._is_off = True
            self._by_size.clear()
            self._pool = None
        return self._function(tokens)
