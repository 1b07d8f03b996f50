"""Which learning rate is best of runs that are measured by a loss: the one with the lowest on validation data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palimpsa.runs.schema import FINISHED


@dataclass(frozen=True)
class RateLoss:
    """One learning rate of a model.

    loss: nats a token at the end of a run, the mean over `num_seeds` seeds, those that all rates of the model have, or
    its own where there are none such; infinite where one of these runs did not finish. num_finished, num_runs: of all
    its seeds.
    """

    lr: float
    loss: float
    num_seeds: int
    num_finished: int
    num_runs: int


def is_measured_by_loss(results: Iterable[Mapping[str, Any]]) -> bool:
    """Whether runs, as their result.json has them, have a validation loss to be compared by, and no accuracy."""
    stages = [stage for result in results for stage in result["stages"]]
    return any("validation_loss" in stage for stage in stages) and not any(
        "validation_accuracy" in stage for stage in stages
    )


def losses_by_rate(results: Iterable[Mapping[str, Any]]) -> dict[str, list[RateLoss]]:
    """The learning rates of every model, by its label and from the smallest: of results of one task and scale."""
    losses: dict[str, dict[float, dict[int, float]]] = {}
    for result in results:
        run, finished = result["run"], result["status"] == FINISHED
        loss = result["stages"][-1]["validation_loss"] if finished else math.inf
        losses.setdefault(run["label"], {}).setdefault(run["lr"], {})[run["seed"]] = loss
    found = {}
    for label, by_rate in sorted(losses.items()):
        common = set.intersection(*map(set, by_rate.values()))
        found[label] = []
        for lr, by_seed in sorted(by_rate.items()):
            used = [loss for seed, loss in by_seed.items() if not common or seed in common]
            num_finished = sum(map(math.isfinite, by_seed.values()))
            found[label].append(RateLoss(lr, sum(used) / len(used), len(used), num_finished, len(by_seed)))
    return found


def best_rate(rates: Sequence[RateLoss]) -> RateLoss | None:
    """The one with the lowest loss, of equal ones the smallest; None where none is a number."""
    best = min(rates, key=lambda rate: (rate.loss, rate.lr))
    return best if math.isfinite(best.loss) else None
