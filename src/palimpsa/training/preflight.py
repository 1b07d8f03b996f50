"""Everything that can be told of a run before it starts: its config, its model, its task, its device."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from palimpsa.config.checks import check_config
from palimpsa.config.schema import typed


def check_run(cfg: Any, *, elsewhere: bool = False) -> None:
    """Checks a composed config before any work.

    Args:
        cfg: configs/train.yaml, composed.
        elsewhere: the run starts on another machine, which checks its device itself then.

    Raises:
        ConfigError: in one line, naming the key, the value that came and what was expected.
    """
    # Here and not above: torch.
    from palimpsa.model.build import check_model
    from palimpsa.tasks.stages import stages_from_config
    from palimpsa.training.gpus import check_device

    check_config(cfg)
    config = typed(cfg)
    check_model(asdict(config.model))
    stages_from_config(config.task)
    check_device(cfg, elsewhere=elsewhere)
