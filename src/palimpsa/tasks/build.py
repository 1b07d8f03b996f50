"""From a `task` config to the task. A new kind is a class and a line here, and its keys in `config.schema`."""

from __future__ import annotations

from typing import Any

from palimpsa.config.errors import ConfigError, nearest
from palimpsa.tasks.commonsense import CommonsenseTask
from palimpsa.tasks.mqar import MQARTask
from palimpsa.tasks.task import Task

TASKS = {"mqar": MQARTask, "commonsense": CommonsenseTask}
# The file of configs/task that has a kind's keys, for a task whose name is that of no file.
FILES = {"mqar": "mqar_curriculum", "commonsense": "commonsense"}


def build_task(config: Any, seed: int) -> Task[Any, Any]:
    """The task of the `task` group of configs/train.yaml.

    Args:
        config: the group.
        seed: of the run's data, >= 0.

    Raises:
        ConfigError: for a kind that there is not, and what the task itself refuses.
    """
    if config.kind not in TASKS:
        raise ConfigError(
            f"task.kind: got {config.kind!r}, expected one of {', '.join(TASKS)}{nearest(str(config.kind), TASKS)}"
        )
    return TASKS[config.kind](config, seed)
