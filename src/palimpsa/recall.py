"""Recall accuracy of a model on MQAR."""

# B batch, n pairs, V vocabulary

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsa.data.mqar import NUM_AGE_SLICES, MQARBatch, MQARSpec, age_slices, mqar_examples
from palimpsa.replay import Replay


@dataclass(frozen=True)
class Recall:
    """accuracy: share of queries answered rightly. loss: mean cross-entropy, nats a query.

    accuracy_by_age: the same share for pairs whose query comes less than a quarter, half, three quarters, or the whole
    of the context length later; None for a slice without queries.
    """

    accuracy: float
    loss: float
    accuracy_by_age: list[float | None]


def query_loss(model: nn.Module, batch: MQARBatch) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy over the query positions, a scalar, and their logits [B, n, V]: no other position counts."""
    logits = model(batch.inputs, batch.query_positions)
    return cross_entropy(logits.flatten(0, 1), batch.labels.flatten()), logits


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in fp32 of logits [N, V] at labels [N] int64, a scalar."""
    if not logits.is_cuda:
        return F.cross_entropy(logits.float(), labels)
    # PyTorch's own writes the logits in fp32, and then their softmax: 2 GB in a step of 65,536 tokens.
    from fla.modules import fused_cross_entropy

    # Its decorators hide from the type checker what it takes.
    per_query: Any = fused_cross_entropy.cross_entropy_loss
    losses: Tensor = per_query(logits, labels)[0]
    return losses.mean()


class _Sums(NamedTuple):
    """Over some examples: right answers and queries by age [4] float64, and the summed loss, float64."""

    right: Tensor
    queries: Tensor
    loss: Tensor


class RecallMeter:
    """Evaluates a model on the first examples of a split of (seed, stage).

    Args:
        batch_size: examples at a time.
        device: where the model is.
        use_graph: capture the evaluation of a batch as a CUDA graph; kept for the meter's next calls.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: MQARSpec,
        *,
        seed: int,
        split: str,
        stage: int,
        batch_size: int,
        device: torch.device | str,
        use_graph: bool = False,
    ) -> None:
        self.model = model
        self.spec = spec
        self.seed = seed
        self.split = split
        self.stage = stage
        self.batch_size = batch_size
        self.device = device
        # What a graph reads its examples from.
        self._examples = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._replay = Replay(lambda: self._sums(self._examples)) if use_graph else None

    @torch.no_grad()
    def __call__(self, num_examples: int) -> Recall:
        right = torch.zeros(NUM_AGE_SLICES, dtype=torch.float64, device=self.device)
        queries = torch.zeros_like(right)
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for start in range(0, num_examples, self.batch_size):
            examples = torch.arange(start, min(start + self.batch_size, num_examples), device=self.device)
            if len(examples) < self.batch_size:
                # Not worth compiling for.
                with torch.compiler.set_stance("force_eager"):
                    sums = self._sums(examples)
            elif self._replay is None:
                sums = self._sums(examples)
            else:
                self._examples.copy_(examples)
                sums = self._replay()
            right += sums.right
            queries += sums.queries
            loss += sums.loss
        num_queries = num_examples * self.spec.num_pairs
        by_age = [r / n if n else None for r, n in zip(right.tolist(), queries.tolist(), strict=True)]
        return Recall(right.sum().item() / num_queries, loss.item() / num_queries, by_age)

    def _sums(self, examples: Tensor) -> _Sums:
        batch = mqar_examples(self.spec, seed=self.seed, split=self.split, stage=self.stage, examples=examples)
        loss, logits = query_loss(self.model, batch)
        slices = age_slices(batch).flatten()
        right = torch.zeros(NUM_AGE_SLICES, dtype=torch.float64, device=self.device)
        queries = torch.zeros_like(right)
        right.index_add_(0, slices, (logits.argmax(dim=-1) == batch.labels).flatten().double())
        queries.index_add_(0, slices, torch.ones_like(slices, dtype=torch.float64))
        return _Sums(right, queries, loss.double() * batch.labels.numel())
