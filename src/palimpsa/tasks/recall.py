"""Recall accuracy of a model on MQAR."""

# B batch, n pairs, V vocabulary

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from palimpsa.tasks.loss import cross_entropy
from palimpsa.tasks.mqar_examples import NUM_AGE_SLICES, MQARSpec, age_slices, mqar_examples
from palimpsa.tasks.task import Capture


@dataclass(frozen=True)
class Recall:
    """accuracy: share of queries answered rightly. loss: mean cross-entropy, nats a query.

    accuracy_by_age: the same share for pairs whose query comes less than a quarter, half, three quarters, or the whole
    of the context length later, or for the spec's other `slice_names`; None for a slice without queries.
    """

    accuracy: float
    loss: float
    accuracy_by_age: list[float | None]


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
        capture: makes the evaluation of a batch cheaper to repeat; None: as it stands.
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
        capture: Capture | None = None,
    ) -> None:
        self.model = model
        self.spec = spec
        self.seed = seed
        self.split = split
        self.stage = stage
        self.batch_size = batch_size
        self.device = device
        # Where what is captured reads its examples from.
        self._examples = torch.zeros(batch_size, dtype=torch.int64, device=device)
        self._captured = None if capture is None else capture(lambda: self._sums(self._examples))

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
            elif self._captured is None:
                sums = self._sums(examples)
            else:
                self._examples.copy_(examples)
                sums = self._captured()
            right += sums.right
            queries += sums.queries
            loss += sums.loss
        num_queries = num_examples * self.spec.num_pairs
        by_age = [r / n if n else None for r, n in zip(right.tolist(), queries.tolist(), strict=True)]
        return Recall(right.sum().item() / num_queries, loss.item() / num_queries, by_age)

    def _sums(self, examples: Tensor) -> _Sums:
        batch = mqar_examples(self.spec, seed=self.seed, split=self.split, stage=self.stage, examples=examples)
        logits = self.model(batch.inputs, batch.query_positions)
        loss, is_right = cross_entropy(logits.flatten(0, 1), batch.labels.flatten())
        slices = age_slices(batch).flatten()
        right = torch.zeros(NUM_AGE_SLICES, dtype=torch.float64, device=self.device)
        queries = torch.zeros_like(right)
        right.index_add_(0, slices, is_right.double())
        queries.index_add_(0, slices, torch.ones_like(slices, dtype=torch.float64))
        return _Sums(right, queries, loss.double() * batch.labels.numel())
