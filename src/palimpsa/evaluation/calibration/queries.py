"""A model's answers to queries, and by how much each is unsure: of what its memory recalls, and of its answer."""

# B batch, T time, n queries a sequence, N queries of all, H heads, V value dim or vocabulary

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from palimpsa.config.errors import ConfigError
from palimpsa.mixers.palimpsa import PalimpsaMixer
from palimpsa.model.language_model import LanguageModel
from palimpsa.tasks.task import Stage, Task

VARIANCE, RELATIVE_VARIANCE = "variance", "relative_variance"
CONFIDENCE, ENTROPY, AGE = "confidence", "entropy", "age"
# The square of a length that is none.
SMALLEST_LENGTH = 1e-60
# Of the layers' scores their sum.
ALL_LAYERS = "sum"


class Signal(NamedTuple):
    """What a score is, and of which layer: its number from 0, `ALL_LAYERS`, or "" where layers have no part in it."""

    name: str
    layer: str = ""


@dataclass(frozen=True)
class AnsweredQueries:
    """What came of N queries.

    is_wrong: [N] bool, whether the most likely token is another than the right one. losses: [N], nats of the right
    one. sequences: [N], where each query stands. scores: [N] each, greater where the answer should be less sure.
    """

    is_wrong: np.ndarray
    losses: np.ndarray
    sequences: np.ndarray
    scores: dict[Signal, np.ndarray]

    @property
    def accuracy(self) -> float:
        return float(1 - self.is_wrong.mean())

    @property
    def loss(self) -> float:
        return float(self.losses.mean())


def check_has_variance(model: LanguageModel, name: str, label: str) -> None:
    """Raises ConfigError where a memory's variance is no measurement: of another mixer, or one without importances.

    Args:
        name: of what asks for it, in errors. label: of the model.
    """
    for mixer in model.mixers():
        if not isinstance(mixer, PalimpsaMixer):
            raise ConfigError(
                f"{name}: got {label}, whose {type(mixer).__name__} has no variance, expected Palimpsa-D or Palimpsa-M"
            )
        if mixer.plasticity is None:
            raise ConfigError(
                f"{name}: got {label}, without importances: its variance is that of the prior and knows nothing of "
                "the memory; expected a metaplastic Palimpsa"
            )


@torch.no_grad()
def answer_queries(
    model: LanguageModel,
    task: Task[Any, Any],
    stage: Stage,
    *,
    num_examples: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda num_examples: None,
) -> AnsweredQueries:
    """Asks a model the queries of the first test examples of a stage, in the precision of its weights.

    The scores, by name:

        variance            the sum over heads and value rows of var_t = scale^2 q_t^2 (1 / I_t) at the query: the
                            trace of the covariance of all that a layer recalls; a layer, and the layers' sum
        relative_variance   that over the squared length of what the layer recalls, which its norm divides by
        confidence          1 minus the probability of the most likely token
        entropy             of the distribution over tokens, nats
        age                 tokens from the pair to its query, which no model is told: what mere time explains

    Args:
        model: of Palimpsa mixers with importances, on its device.
        task: of which `asks_queries` is true.
        num_examples, batch_size: sequences, of all and at a time.
        advance: told of sequences that are done.
    """
    device = model.embedding.weight.device
    parts: list[dict[Any, np.ndarray]] = []
    for start in range(0, num_examples, batch_size):
        examples = torch.arange(start, min(start + batch_size, num_examples), device=device)
        batch = task.make_batch(stage, "test", examples)
        found = _ask(model, batch.inputs, batch.query_positions, batch.labels)
        found[Signal(AGE)] = batch.ages()
        found["sequences"] = examples[:, None].expand_as(batch.labels)
        parts.append({name: value.flatten().cpu().numpy() for name, value in found.items()})
        advance(len(examples))
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    scores = {name: value.astype(float) for name, value in whole.items() if isinstance(name, Signal)}
    return AnsweredQueries(whole["is_wrong"], whole["losses"], whole["sequences"], scores)


def _ask(model: LanguageModel, inputs: Tensor, positions: Tensor, labels: Tensor) -> dict[Any, Tensor]:
    """[B, n] each, of inputs [B, T], query positions and labels [B, n]."""
    residuals: list[Tensor] = []
    hidden = model.mix(model.embedding(inputs), residuals=residuals)
    hidden = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))
    # A probability so near to 1 that float32 would say 1 still tells more from less.
    log_p = model.logits(hidden).double().log_softmax(-1)
    best = log_p.max(-1)
    found: dict[Any, Tensor] = {
        "is_wrong": best.indices != labels,
        "losses": -log_p.gather(-1, labels[..., None])[..., 0],
        Signal(CONFIDENCE): -torch.expm1(best.values),
        Signal(ENTROPY): -(log_p.exp() * log_p).sum(-1),
    }
    for name in (VARIANCE, RELATIVE_VARIANCE):
        found[Signal(name, ALL_LAYERS)] = torch.zeros_like(best.values)
    for layer, (block, x) in enumerate(zip(model.blocks, residuals, strict=True)):
        mixer: Any = block.mixer
        normed: Any = block.mixer_norm
        recalled = mixer.recall(normed(x))
        variance = _at(recalled.variance, positions).sum(-1)
        # A memory in which nothing was written recalls nothing: as unsure as can be, and a number still.
        relative = variance / _at(recalled.o, positions).square().sum(-1).clamp(min=SMALLEST_LENGTH)
        for name, value in ((VARIANCE, variance), (RELATIVE_VARIANCE, relative)):
            found[Signal(name, str(layer))] = value
            found[Signal(name, ALL_LAYERS)] = found[Signal(name, ALL_LAYERS)] + value
    return found


def _at(x: Tensor, positions: Tensor) -> Tensor:
    """x [B, T, H, V] at positions [B, n]: [B, n, H V], float64."""
    flat = x.flatten(2)
    return flat.gather(1, positions[..., None].expand(-1, -1, flat.shape[-1])).double()
