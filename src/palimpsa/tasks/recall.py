"""Recall accuracy of a model on MQAR."""

# B batch, n pairs, V vocabulary

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsa.mixers.layers import at_least_fp32
from palimpsa.tasks.mqar import NUM_AGE_SLICES, MQARSpec, age_slices, mqar_examples
from palimpsa.training.cuda_graph import Replay


@dataclass(frozen=True)
class Recall:
    """accuracy: share of queries answered rightly. loss: mean cross-entropy, nats a query.

    accuracy_by_age: the same share for pairs whose query comes less than a quarter, half, three quarters, or the whole
    of the context length later; None for a slice without queries.
    """

    accuracy: float
    loss: float
    accuracy_by_age: list[float | None]


class QueryLoss(NamedTuple):
    """mean: cross-entropy over all queries, nats, a scalar in fp32 (fp64 of such logits). is_right: [B, n] bool, where
    the largest logit is the label's and the loss is a number.

    gradient: [B, n, V], of the mean by the logits, in their dtype, or None.
    """

    mean: Tensor
    is_right: Tensor
    gradient: Tensor | None


def query_loss(logits: Tensor, labels: Tensor, *, with_gradient: bool) -> QueryLoss:
    """The loss at the queries, of logits [B, n, V] at labels [B, n] int64; nothing for autograd to follow."""
    rows, row_labels = logits.detach().flatten(0, 1), labels.flatten()
    if logits.is_cuda:
        from palimpsa.kernels.gpu.cross_entropy import MAX_CLASSES, row_results

        if rows.shape[1] <= MAX_CLASSES and rows.dtype != torch.float64:
            losses, is_right, gradient = row_results(rows, row_labels, with_gradient=with_gradient)
            if gradient is not None:
                gradient = gradient.view_as(logits)
            return QueryLoss(losses.mean(), is_right.view_as(labels), gradient)
    with torch.enable_grad():
        rows.requires_grad_(with_gradient)
        mean = F.cross_entropy(at_least_fp32(rows), row_labels)
        gradient = torch.autograd.grad(mean, rows)[0].view_as(logits) if with_gradient else None
    largest, answers = rows.detach().max(dim=1)
    # An infinite logit, or none that is finite, makes the loss NaN.
    is_right = (answers == row_labels) & largest.isfinite()
    return QueryLoss(mean.detach(), is_right.view_as(labels), gradient)


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
        logits = self.model(batch.inputs, batch.query_positions)
        loss, is_right, _ = query_loss(logits, batch.labels, with_gradient=False)
        slices = age_slices(batch).flatten()
        right = torch.zeros(NUM_AGE_SLICES, dtype=torch.float64, device=self.device)
        queries = torch.zeros_like(right)
        right.index_add_(0, slices, is_right.flatten().double())
        queries.index_add_(0, slices, torch.ones_like(slices, dtype=torch.float64))
        return _Sums(right, queries, loss.double() * batch.labels.numel())
