"""Several processes as one run: torchrun starts them, each takes its share of a step, the first writes the files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from palimpsa.config.errors import ConfigError

if TYPE_CHECKING:
    from palimpsa.tasks.task import Task


def is_distributed() -> bool:
    """Whether torchrun started this process; Slurm's variables do not count: there a run is one process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def num_ranks() -> int:
    """Processes of this run."""
    return int(os.environ["WORLD_SIZE"]) if is_distributed() else 1


def is_first_rank() -> bool:
    """Whether this process is the one that writes the run's files and tells its progress."""
    return not is_distributed() or int(os.environ["RANK"]) == 0


def check_ranks(task: Task[Any, Any], *, uses_graphs: bool, gpus: Sequence[int] | None = None) -> None:
    """Checks that a run's steps can be captured and shared as its config asks.

    Args:
        task: what the run trains on.
        uses_graphs: trainer.cuda_graphs.
        gpus: trainer.gpus.

    Raises:
        ConfigError: where a step's examples do not divide evenly between `num_ranks` processes, where they are to
            choose GPUs, and where CUDA graphs are asked for with several of them, or of a task that has none.
    """
    if uses_graphs and not task.capturable:
        raise ConfigError("trainer.cuda_graphs: got true, expected false with a task whose batches need the host")
    if num_ranks() == 1:
        return
    if gpus is not None:
        raise ConfigError(
            f"trainer.gpus: got {list(gpus)} with {num_ranks()} processes, expected null; CUDA_VISIBLE_DEVICES says "
            "which GPUs torchrun's processes take"
        )
    if uses_graphs:
        raise ConfigError(
            f"trainer.cuda_graphs: got true with {num_ranks()} processes, expected false: a graph is one GPU's"
        )
    for stage in task.stages:
        for size in task.step_sizes(stage):
            if size % num_ranks():
                raise ConfigError(
                    f"task: got a step of {size} examples ({stage.label}) for {num_ranks()} processes, expected a "
                    "multiple of their number; change task.tokens_per_step or torchrun's --nproc-per-node"
                )


def trainer_options(accelerator: str, gpus: Sequence[int] | None) -> dict[str, Any]:
    """`devices`, `num_nodes`, `strategy` and the cluster environment of Lightning's trainer.

    Args:
        accelerator: cpu or gpu.
        gpus: indices that a run of one process may choose from; None for all.

    Raises:
        ConfigError: see `gpus.lease_gpu`.
    """
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    from palimpsa.training.gpus import lease_gpu

    if not is_distributed():
        devices: Any = [lease_gpu(list(gpus) if gpus is not None else None)] if accelerator == "gpu" else 1
        # One process a run, whatever launched it: Slurm's own environment would have it be a rank of many.
        return {"devices": devices, "plugins": [LightningEnvironment()]}
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return {
        "devices": local,
        "num_nodes": num_ranks() // local,
        "strategy": "ddp",
        "plugins": [TorchElasticEnvironment()],
    }
