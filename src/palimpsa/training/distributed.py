"""Several processes as one run: torchrun starts them, each takes its share of a step, the first writes the files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from palimpsa.config.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from palimpsa.model.language_model import LanguageModel
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


def check_ranks(
    task: Task[Any, Any],
    *,
    uses_graphs: bool,
    gpus: Sequence[int] | None = None,
    accumulate: int = 1,
    spike_sigmas: float | None = None,
) -> None:
    """Checks that a run's steps can be captured and shared as its config asks.

    Args:
        task: what the run trains on.
        uses_graphs: trainer.cuda_graphs.
        gpus: trainer.gpus.
        accumulate: trainer.accumulate.
        spike_sigmas: trainer.spike_sigmas.

    Raises:
        ConfigError: where a step's examples do not divide evenly between `num_ranks` processes of `accumulate` parts
            each, where processes are to choose GPUs, and where CUDA graphs are asked for with several of either, with
            a look at every step's loss, or of a task that has none.
    """
    if uses_graphs and not task.capturable:
        raise ConfigError("trainer.cuda_graphs: got true, expected false with a task whose batches need the host")
    if uses_graphs and (accumulate > 1 or spike_sigmas is not None):
        key, value = ("accumulate", accumulate) if accumulate > 1 else ("spike_sigmas", spike_sigmas)
        raise ConfigError(
            f"trainer.{key}: got {value} with trainer.cuda_graphs, expected {1 if accumulate > 1 else 'null'}: a graph "
            "is a whole step, which nobody looks at; trainer.cuda_graphs=false"
        )
    _check_shares(task, accumulate)
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


def _check_shares(task: Task[Any, Any], accumulate: int) -> None:
    """Raises ConfigError for a step whose examples do not divide evenly between processes and their parts of it."""
    for stage in task.stages:
        for size in task.step_sizes(stage):
            if size % num_ranks():
                raise ConfigError(
                    f"task: got a step of {size} examples ({stage.label}) for {num_ranks()} processes, expected a "
                    "multiple of their number; change task.tokens_per_step or torchrun's --nproc-per-node"
                )
            if size // num_ranks() % accumulate:
                raise ConfigError(
                    f"trainer.accumulate: got {accumulate}, expected a divisor of the {size // num_ranks()} examples "
                    f"that each of {num_ranks()} processes has of a step ({stage.label})"
                )


def trainer_options(accelerator: str, gpus: Sequence[int] | None, strategy: str) -> dict[str, Any]:
    """`devices`, `num_nodes`, `strategy` and the cluster environment of Lightning's trainer.

    Args:
        accelerator: cpu or gpu.
        gpus: indices that a run of one process may choose from; None for all.
        strategy: ddp or fsdp, of several processes.

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
    from palimpsa.training.storage.strategy import ShardedStrategy

    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return {
        "devices": local,
        "num_nodes": num_ranks() // local,
        "strategy": ShardedStrategy(num_ranks()) if strategy == "fsdp" else "ddp",
        "plugins": [TorchElasticEnvironment()],
    }


def shard_model(model: LanguageModel, mesh: DeviceMesh) -> None:
    """Spreads a model's weights over the processes of a mesh, a block at a time, in place.

    The embedding, which is also the matrix of the logits, stays with what is in no block.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # What is called beside `forward` needs the weights together too.
    for module, names in [(model, ("hidden", "memory")), *((block, ("memory",)) for block in model.blocks)]:
        for name in names:
            register_fsdp_forward_method(module, name)
