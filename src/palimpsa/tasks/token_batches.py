"""Batches of packed tokens: rows of a stream, read by their number, as one row that the model takes at once."""

# B rows, T tokens of all of them, n targets, N sequences

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from palimpsa.tasks.packing import Packing
from palimpsa.text.shards import TokenShards


class TokenBatch(NamedTuple):
    """Rows side by side, B times their length of T tokens in all.

    tokens: [1, T] int64. positions: [1, n] int64, of the tokens that have a target; labels: [n] int64, the targets.
    cu_seqlens: [N + 1] int64, from 0 to T: what starts anew. weight: [] fp32, what the mean loss over n is multiplied
    by: 1, or of one share of a step what makes the mean over all shares that over the step's targets.
    """

    tokens: Tensor
    positions: Tensor
    labels: Tensor
    cu_seqlens: Tensor
    weight: Tensor

    def to(self, device: torch.device) -> TokenBatch:
        """On a device; on a GPU with a number of sequences that few batches differ in."""
        if device.type != "cuda":
            return self
        # For each number of sequences blocks would be compiled anew: empty ones at the end cost next to nothing.
        batch = self._replace(cu_seqlens=padded_boundaries(self.cu_seqlens))
        return TokenBatch(*(x.pin_memory().to(device, non_blocking=True) for x in batch))


def padded_boundaries(cu_seqlens: Tensor) -> Tensor:
    """[M + 1] of [N + 1]: with empty sequences at the end, M the next power of two.

    >>> padded_boundaries(torch.tensor([0, 2, 3, 9])).tolist()
    [0, 2, 3, 9, 9]
    """
    num_sequences = len(cu_seqlens) - 1
    num_empty = (1 << (num_sequences - 1).bit_length()) - num_sequences
    return torch.cat([cu_seqlens, cu_seqlens[-1:].expand(num_empty)])


def read_rows(shards: TokenShards, packing: Packing, bounds: Sequence[tuple[int, int]]) -> TokenBatch:
    """The batch of some rows of a stream, on the CPU.

    Args:
        bounds: start and stop of each row, positions in the stream.
    """
    tokens, positions, labels, starts = [], [], [], []
    offset = 0
    for start, stop in bounds:
        # The last token's target is the first one behind the row.
        read = shards.tokens(start, min(stop + 1, shards.num_tokens))
        targets = packing.target_positions(start, stop)
        tokens.append(read[: stop - start])
        positions.append(targets + offset)
        labels.append(read[targets + 1])
        starts.append(packing.boundaries(start, stop)[:-1] + offset)
        offset += stop - start
    return TokenBatch(
        torch.from_numpy(np.concatenate(tokens))[None],
        torch.from_numpy(np.concatenate(positions))[None],
        torch.from_numpy(np.concatenate(labels)),
        torch.from_numpy(np.concatenate([*starts, [offset]])),
        torch.ones(()),
    )


class Prefetch:
    """Makes the batch after the one that was asked for while that one is trained on: the same batches, sooner.

    Each step is taken to ask for the parts that the step before it asked for, in the same order.

    Args:
        make: a pure function of a step and of which part of it.
    """

    def __init__(self, make: Callable[..., TokenBatch]) -> None:
        self._make = make
        self._pool: ThreadPoolExecutor | None = None
        self._pending: tuple[Hashable, Future[TokenBatch]] | None = None
        # The step that is under way, what was asked for of it, and of the one before.
        self._step: int | None = None
        self._parts: list[tuple[int, ...]] = []
        self._parts_before: list[tuple[int, ...]] = []

    def take(self, step: int, *part: int) -> TokenBatch:
        """`make(step, *part)`."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "batches")
        pending, self._pending = self._pending, None
        if pending is not None and pending[0] == (step, *part):
            batch = pending[1].result()
        else:
            batch = self._make(step, *part)
        following = self._following(step, part)
        self._pending = following, self._pool.submit(self._make, *following)
        return batch

    def _following(self, step: int, part: tuple[int, ...]) -> tuple[int, ...]:
        """What is asked for after a part of a step."""
        if step != self._step:
            self._step, self._parts, self._parts_before = step, [], self._parts
        self._parts.append(part)
        if len(self._parts) < len(self._parts_before):
            return (step, *self._parts_before[len(self._parts)])
        return (step + 1, *self._parts[0])

    def close(self) -> None:
        """Ends the thread."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = self._pending = None
