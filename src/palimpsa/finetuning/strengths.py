"""The continuum from a model without importances to the one that its weights say: measured at fixed weights."""

# B batch, T time, D model width

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from palimpsa.config.errors import ConfigError
from palimpsa.mixers.palimpsa import PalimpsaMixer
from palimpsa.mixers.plasticity import set_strength
from palimpsa.model.language_model import LanguageModel
from palimpsa.tasks.task import Task

# Of no task: how unsure a model is of what it recalls.
VARIANCE = "variance"
DEFAULT_STRENGTHS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


@torch.no_grad()
def mean_variance(model: LanguageModel, tokens: Tensor) -> float:
    """The mean of scale^2 q_t^2 (1 / I_t) over tokens [B, T], layers, heads and rows."""
    x, found = model.embedding(tokens), []
    for block in model.blocks:
        mixer: Any = block.mixer
        assert isinstance(mixer, PalimpsaMixer)
        normed: Any = block.mixer_norm
        found.append(mixer.variance(normed(x)).double().mean())
        x = block(x)
    return float(torch.stack(found).mean())


def measure_strengths(
    model: LanguageModel,
    task: Task[Any, Any],
    strengths: Sequence[float],
    *,
    num_contexts: int,
    forward_context: Callable[[], AbstractContextManager[Any]],
    report: Callable[[float, dict[str, float]], None],
) -> list[dict[str, Any]]:
    """What a task makes of a model at several strengths of its importances, with its weights as they are.

    Args:
        model: metaplastic, on its device; in the end at the strength that the weights were trained at.
        strengths: in [0, 1]: 0 is the model without importances, 1 the one that the weights say.
        num_contexts: validation contexts that the variance is the mean over.
        forward_context: of a forward pass, the precision of products.
        report: told of each strength that is done, with the numbers of the last stage.

    Returns:
        a row a strength, stage and metric: strength, at (the stage), metric, value. Stages are those that are tested,
        and of a task that tests none all, on its validation split.

    Raises:
        ConfigError: for a strength out of its range, or a model without importances.
    """
    device = model.embedding.weight.device
    tested = [stage for stage in task.stages if stage.is_tested]
    rows: list[dict[str, Any]] = []
    try:
        for strength in strengths:
            set_strength(model, strength)
            metrics: dict[str, float] = {}
            for stage in tested or task.stages:
                with torch.no_grad(), forward_context():
                    metrics = dict(task.evaluate(model, "test" if tested else "validation", stage, device))
                    contexts = task.contexts(stage, num_contexts, device)
                    metrics[VARIANCE] = mean_variance(model, contexts)
                rows += [
                    {"strength": strength, "at": stage.label, "metric": name, "value": value}
                    for name, value in metrics.items()
                ]
            report(strength, metrics)
        set_strength(model, 1.0)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    finally:
        task.release()
    return rows


def strength_rows(
    rows: Sequence[dict[str, Any]], *, name: str, label: str, task: str, provenance: dict[str, Any]
) -> list[dict[str, Any]]:
    """The rows of strength.csv of one model, each with where it came from."""
    shared = {
        **{"name": name, "label": label, "task": task},
        "device": provenance["device"],
        "git_revision": provenance["git_revision"],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return [{**shared, **row} for row in rows]
