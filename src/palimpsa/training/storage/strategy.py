"""FSDP2 whose checkpoints are folders of shards: written beside their place, checked, then moved there."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import distributed, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from palimpsa.runs.files import write_atomic
from palimpsa.training.checkpoint import RUN_KEY, AtomicCheckpointIO
from palimpsa.training.storage.sharded import MANIFEST, META, METADATA, file_facts

T = TypeVar("T")


class ShardedStrategy(ModelParallelStrategy):
    """Shares weights, gradients and moments between processes, and reads files and folders of shards alike.

    Each process writes its part, to a file system that all of them share. A kill at any point leaves the checkpoints
    that were there.

    Args:
        num_ranks: processes.
    """

    def __init__(self, num_ranks: int) -> None:
        # Its other defaults would split matrices, not the data.
        super().__init__(data_parallel_size=num_ranks, tensor_parallel_size=1, save_distributed_checkpoint=True)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Writes a folder of shards beside `filepath`, the file that one process would write.

        Raises:
            OSError: on every process, where one of them cannot write.
        """
        files = cast(AtomicCheckpointIO, self.checkpoint_io)
        folder = files.directory.checkpoints
        _on_all(lambda: self._prepare(files) if self.is_global_zero else None)
        states = {"state_dict": checkpoint.pop("state_dict")}
        states |= {f"optimizer_{index}": state for index, state in enumerate(checkpoint.pop("optimizer_states"))}
        _on_all(lambda: _save_shards(states, folder.partial))
        # By who wrote them, while they are in its memory.
        own = f"__{self.global_rank}_*.distcp"
        shards = _on_all(lambda: {path.name: file_facts(path) for path in folder.partial.glob(own)})
        facts = {name: one for rank in shards for name, one in rank.items()}
        rest = {**checkpoint, RUN_KEY: files.run_hash}
        _on_all(lambda: self._publish(files, rest, facts) if self.is_global_zero else None)

    def _prepare(self, files: AtomicCheckpointIO) -> None:
        files.set_apart_damaged()
        folder = files.directory.checkpoints
        folder.remove_partial()
        folder.partial.mkdir(parents=True)

    def _publish(self, files: AtomicCheckpointIO, rest: dict[str, Any], shards: dict[str, Any]) -> None:
        """Completes what all have written, moves it to its place, names it, and removes the one before the last."""
        folder = files.directory.checkpoints
        # Not to the file: where a write fails, torch's archive would say that its end is missing.
        content = io.BytesIO()
        torch.save(rest, content)
        write_atomic(folder.partial / META, content.getbuffer())
        known = shards | {name: file_facts(folder.partial / name) for name in (METADATA, META)}
        write_atomic(folder.partial / MANIFEST, json.dumps({"num_ranks": self.world_size, "files": known}, indent=1))
        _sync_folder(folder.partial)
        place = folder.new_sharded(rest["global_step"])
        os.replace(folder.partial, place)
        _sync_folder(folder.path)
        write_atomic(folder.latest, f"{place.name}\n", partial=Path(f"{folder.latest}.partial"))
        folder.keep_newest(2)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Fills this process's part of the weights and moments; returns the rest of the checkpoint."""
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            return super().load_checkpoint(path, weights_only=True)
        content = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        assert self.model is not None
        set_model_state_dict(self.model, content.pop("state_dict"), options=options)
        for optimizer, state in zip(self.optimizers, content.pop("optimizer_states"), strict=True):
            # Not by Lightning, which takes the parameters' numbers for their order in the model: it is their groups'.
            named = _named(state, optimizer, self.model)
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=named, options=options)
        return content


def _named(state: dict[str, Any], optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """An optimiser's state by the parameters' names, from one by their numbers."""
    names_of = {parameter: name for name, parameter in model.named_parameters()}
    names = [names_of[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    name_of = dict(zip(numbers, names, strict=True))
    return {
        "state": {name_of[number]: moments for number, moments in state["state"].items()},
        "param_groups": [
            {**group, "params": [name_of[number] for number in group["params"]]} for group in state["param_groups"]
        ],
    }


def _save_shards(states: dict[str, Any], folder: Path) -> None:
    try:
        save(states, storage_writer=FileSystemWriter(folder, single_file_per_rank=True, sync_files=True))
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        raise OSError(getattr(first, "errno", None), f"{type(first).__name__}: {first}", str(folder)) from error


def _on_all(work: Callable[[], T]) -> list[T]:
    """Does something on every process; returns what it came to on each.

    Raises:
        OSError: on all of them, where one of them has raised it: none waits for another that is gone.
    """
    outcome: Any = None
    try:
        outcome = work()
    except OSError as error:
        outcome = error
    outcomes: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(outcomes, outcome)
    for one in outcomes:
        if isinstance(one, OSError):
            raise one
    return outcomes


def _sync_folder(folder: Path) -> None:
    """Has the disk hold the names in a folder, as it does the files' contents."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
