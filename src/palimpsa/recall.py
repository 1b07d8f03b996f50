"""Recall accuracy of a model on MQAR."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsa.data.mqar import NUM_AGE_SLICES, MQARBatch, MQARSpec, age_slices, mqar_examples


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
    return F.cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten()), logits


@torch.no_grad()
def evaluate_recall(
    model: nn.Module,
    spec: MQARSpec,
    *,
    seed: int,
    split: str,
    stage: int,
    num_examples: int,
    batch_size: int,
    device: torch.device | str,
) -> Recall:
    """Evaluates a model on the first `num_examples` examples of a split of (seed, stage)."""
    right = torch.zeros(NUM_AGE_SLICES, dtype=torch.float64, device=device)
    total = torch.zeros_like(right)
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    for start in range(0, num_examples, batch_size):
        examples = torch.arange(start, min(start + batch_size, num_examples), device=device)
        batch = mqar_examples(spec, seed=seed, split=split, stage=stage, examples=examples)
        loss, logits = query_loss(model, batch)
        slices = age_slices(batch).flatten()
        right.index_add_(0, slices, (logits.argmax(dim=-1) == batch.labels).flatten().double())
        total.index_add_(0, slices, torch.ones_like(slices, dtype=torch.float64))
        loss_sum += loss.double() * batch.labels.numel()
    queries = num_examples * spec.num_pairs
    by_age = [r / n if n else None for r, n in zip(right.tolist(), total.tolist(), strict=True)]
    return Recall(right.sum().item() / queries, loss_sum.item() / queries, by_age)
