"""Everything that can be told of a run before it starts: its config, its logger, its model, its task, its device."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from palimpsa.config.checks import check_config
from palimpsa.config.errors import ConfigError
from palimpsa.config.keys import MAX_COUNT
from palimpsa.config.schema import TrainConfig

if TYPE_CHECKING:
    from palimpsa.tasks.task import Task


def check_run(config: TrainConfig, *, elsewhere: bool = False) -> Task[Any, Any]:
    """Checks a config before any work; returns the task that it asks for.

    Args:
        config: configs/train.yaml, composed, as `typed` makes it.
        elsewhere: the run starts on another machine, which checks its device itself then.

    Raises:
        ConfigError: in one line, naming the key, the value that came and what was expected.
    """
    # Here and not above: torch.
    from palimpsa.model.build import check_model
    from palimpsa.tasks.build import build_task
    from palimpsa.training.distributed import check_ranks
    from palimpsa.training.gpus import check_device
    from palimpsa.training.loggers import check_logger

    check_config(config)
    check_logger(config)
    check_model(asdict(config.model))
    _check_parameters(config)
    task = build_task(config.task, config.seed)
    if config.task.schedule == "cosine_by_epoch" and task.steps_per_epoch is None:
        raise ConfigError(
            f"task.schedule: got cosine_by_epoch with task={config.task.name}, which has no epochs, expected constant "
            "or cosine"
        )
    if task.max_steps > MAX_COUNT:
        raise ConfigError(f"task: got {task.max_steps} optimiser steps in all, expected at most {MAX_COUNT}")
    check_ranks(
        task,
        uses_graphs=config.trainer.cuda_graphs,
        gpus=config.trainer.gpus,
        accumulate=config.trainer.accumulate,
        spike_sigmas=config.trainer.spike_sigmas,
    )
    check_device(config, elsewhere=elsewhere)
    return task


def _check_parameters(config: TrainConfig) -> None:
    """Raises ConfigError for parameters that `optimizer` names and there are not, and for a start that does not fit."""
    own, start = config.optimizer, config.start
    from palimpsa.training.optimizer import NEW_KEYS, check_forgetting_decay, check_new_rates, freeze

    names = ("freeze", "forgetting_decay", *NEW_KEYS)
    if start.weights is None and all(getattr(own, name) is None for name in names):
        return
    import torch

    from palimpsa.model.build import build_model
    from palimpsa.training.storage.start import check_start

    # Shapes without memory.
    with torch.device("meta"):
        model = build_model(config.model, None)
    check_new_rates(model, own)
    check_forgetting_decay(model, own)
    if own.freeze is not None:
        freeze(model, own.freeze)
    check_start(model, start)
