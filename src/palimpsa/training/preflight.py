"""Everything that can be told of a run before it starts: its config, its model, its task, its device."""

from __future__ import annotations

from dataclasses import asdict

from palimpsa.config.checks import check_config
from palimpsa.config.schema import TrainConfig


def check_run(config: TrainConfig, *, elsewhere: bool = False) -> None:
    """Checks a config before any work.

    Args:
        config: configs/train.yaml, composed, as `typed` makes it.
        elsewhere: the run starts on another machine, which checks its device itself then.

    Raises:
        ConfigError: in one line, naming the key, the value that came and what was expected.
    """
    # Here and not above: torch.
    from palimpsa.model.build import check_model
    from palimpsa.tasks.build import build_task
    from palimpsa.training.gpus import check_device

    check_config(config)
    check_model(asdict(config.model))
    build_task(config.task, config.seed)
    check_device(config, elsewhere=elsewhere)
