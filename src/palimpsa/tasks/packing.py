"""How a stream of documents is cut: rows that an epoch's order moves as a whole, and the sequences within each.

A row is `contexts_per_row` times `context` consecutive tokens of the stream. What starts anew within it, and what is
predicted, is said by `documents`, with D a document's first token and | a cut, of a row of 2 contexts of 4 tokens:

    stream                 a a D b b b D c | c c c c
    reset                 |a a|D b|b b|D c|            at every document's start and every context of the row
    run_on                |a a D b|b b D c|            every context of the row
    reset_every_context   |a a|D b b b|D c|            at every document's start and every context of the document

A row starts anew in any case. The target of a token is the next one of the stream, also across a cut, but for a
document's last token: only with run_on is the next document's first token its target.
"""

# N sequences, n targets

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RUN_ON, RESET_EVERY_CONTEXT = "run_on", "reset_every_context"


@dataclass(frozen=True)
class Packing:
    """Of a stream of documents.

    Args:
        document_ends: [documents] int64, the position one past each one's last token, increasing.
        context: tokens that a state is carried over at most.
        documents: "reset", "run_on" or "reset_every_context".
    """

    document_ends: np.ndarray
    context: int
    documents: str

    @property
    def num_tokens(self) -> int:
        """Of the stream."""
        return int(self.document_ends[-1])

    def boundaries(self, start: int, stop: int) -> np.ndarray:
        """[N + 1] int64: where the sequences of the tokens from start to stop begin, and their end, from 0."""
        length, inner = stop - start, self._ends(start + 1, stop) - start
        starts = np.array([0]) if self.documents == RUN_ON else np.concatenate([[0], inner])
        if self.documents == RESET_EVERY_CONTEXT:
            stops = np.append(starts[1:], length)
            pieces = [np.arange(a, b, self.context) for a, b in zip(starts, stops, strict=True)]
            starts = np.concatenate(pieces)
        else:
            starts = np.union1d(starts, np.arange(0, length, self.context))
        return np.append(starts, length).astype(np.int64)

    def target_positions(self, start: int, stop: int) -> np.ndarray:
        """[n] int64: which of the tokens from start to stop have a target, from 0."""
        is_target = np.ones(stop - start, dtype=bool)
        without = np.array([self.num_tokens]) if self.documents == RUN_ON else self._ends(start + 1, stop + 1)
        without = without[(without > start) & (without <= stop)]
        is_target[without - 1 - start] = False
        return np.flatnonzero(is_target)

    def num_targets(self, starts: np.ndarray, length: int) -> int:
        """How many tokens of rows [R], of `length` tokens each, have a target: of any number of rows in no time."""
        stops = starts + length
        if self.documents == RUN_ON:
            num_without = int((stops == self.num_tokens).sum())
        else:
            first, last = (np.searchsorted(self.document_ends, ends, side="right") for ends in (starts, stops))
            num_without = int((last - first).sum())
        return len(starts) * length - num_without

    def _ends(self, low: int, high: int) -> np.ndarray:
        """The document ends in [low, high)."""
        first, last = np.searchsorted(self.document_ends, [low, high])
        return np.asarray(self.document_ends[first:last])
