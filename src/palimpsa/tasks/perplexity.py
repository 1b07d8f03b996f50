"""How well a model predicts held-out documents: nats a token, perplexities, loss by position and by length."""

# T tokens, V vocabulary, n targets

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from palimpsa.config.errors import ConfigError
from palimpsa.tasks.loss import row_losses
from palimpsa.tasks.packing import RESET_EVERY_CONTEXT, Packing
from palimpsa.tasks.task import Metrics
from palimpsa.tasks.token_batches import read_rows
from palimpsa.text.shards import TokenShards

# Tokens that a model sees at a time, or one context where that is longer.
TOKENS_AT_A_TIME = 16_384
# Where exp would leave the range of a float: no text has such a perplexity.
MAX_NATS = 700.0


class Perplexity:
    """Evaluates a model on the first tokens of a split, each document from its start, cut every `context` tokens.

    So whatever a run's own packing is: runs that pack differently are compared on the same predictions. The first token
    of a document is not predicted; its end_of_text is.

    Args:
        shards: the split.
        context: tokens that a state is carried over.
        num_tokens: of the first ones of the split, at most.
        tokens_at_a_time: see TOKENS_AT_A_TIME; changes no number beyond rounding.

    Raises:
        ConfigError: for text in which nothing is predicted.
    """

    def __init__(
        self, shards: TokenShards, *, context: int, num_tokens: int, tokens_at_a_time: int = TOKENS_AT_A_TIME
    ) -> None:
        self.shards = shards
        self.num_tokens = min(num_tokens, shards.num_tokens)
        self._packing = Packing(shards.document_ends, context, RESET_EVERY_CONTEXT)
        if not self._packing.num_targets(np.zeros(1, np.int64), self.num_tokens):
            raise ConfigError(
                f"task.validation_tokens: got {num_tokens}, expected more: those of {shards.directory} are documents "
                "of one token"
            )
        num_documents = int(np.searchsorted(shards.document_ends, self.num_tokens)) + 1
        self._ends = np.asarray(shards.document_ends[:num_documents])
        self._lengths = np.diff(self._ends, prepend=0)
        # Of a document that is not read to its end a share.
        read = np.minimum(self._ends, self.num_tokens) - (self._ends - self._lengths)
        self.num_bytes = float((shards.document_bytes[:num_documents] * (read / self._lengths)).sum())
        self._rows = list(pairwise(self._row_bounds(max(context, tokens_at_a_time))))

    def _row_bounds(self, limit: int) -> list[int]:
        """Where to cut the split into rows of at most `limit` tokens: where a sequence begins."""
        cuts = self._packing.boundaries(0, self.num_tokens).tolist()
        bounds = [0]
        for cut, following in pairwise(cuts):
            if following - bounds[-1] > limit:
                bounds.append(cut)
        return [*bounds, self.num_tokens]

    @torch.no_grad()
    def __call__(self, model: nn.Module, device: torch.device) -> Metrics:
        """Metrics of a model on a device.

        Returns:
            loss: nats a token, the sum over predicted tokens divided by their number. perplexity: its exponential.
            perplexity_per_byte: that of the sum divided by the bytes of the text, whatever the tokenizer.
            loss/position1, 2, 3to4, 5to8...: of the tokens that are predicted from so many. loss/length1, 2, 3to4...:
            of those in documents of so many tokens.

        Raises:
            FloatingPointError: for a loss that is no number.
        """
        sums, counts = np.zeros((2, 64)), np.zeros((2, 64), dtype=np.int64)
        for start, stop in self._rows:
            batch = read_rows(self.shards, self._packing, [(start, stop)])
            # Of a document that ends one token behind a cut.
            if not len(batch.labels):
                continue
            positions, boundaries = batch.positions[0].numpy(), batch.cu_seqlens.numpy()
            on_device = batch.to(device)
            # Rows end where documents do: compiled code would be made anew for the length of each.
            with torch.compiler.set_stance("force_eager"):
                logits = model(on_device.tokens, on_device.positions, cu_seqlens=on_device.cu_seqlens)
            # Summed on the CPU: a GPU adds to bins in an order that differs from call to call.
            losses = row_losses(logits[0], on_device.labels).double().cpu().numpy()
            seen = positions - boundaries[np.searchsorted(boundaries, positions, side="right") - 1] + 1
            lengths = self._lengths[np.searchsorted(self._ends, start + positions, side="right")]
            for i, values in enumerate((seen, lengths)):
                bins = np.ceil(np.log2(values)).astype(np.int64)
                sums[i] += np.bincount(bins, losses, 64)
                counts[i] += np.bincount(bins, minlength=64)
        total, count = float(sums[0].sum()), int(counts[0].sum())
        if not math.isfinite(total):
            raise FloatingPointError(f"the validation loss is {total}: a lower optimizer.lr may help")
        metrics = {
            "loss": total / count,
            "perplexity": math.exp(min(total / count, MAX_NATS)),
            "perplexity_per_byte": math.exp(min(total / max(self.num_bytes, 1.0), MAX_NATS)),
        }
        for i, name in enumerate(("position", "length")):
            for k in np.flatnonzero(counts[i]).tolist():
                metrics[f"loss/{name}{bin_name(k)}"] = float(sums[i][k] / counts[i][k])
        return metrics


def bin_name(k: int) -> str:
    """The numbers above 2^(k-1) up to 2^k.

    >>> [bin_name(k) for k in range(4)]
    ['1', '2', '3to4', '5to8']
    """
    low, high = (1 << k) // 2 + 1, 1 << k
    return f"{low}to{high}" if low < high else f"{high}"
