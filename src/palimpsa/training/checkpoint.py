"""How Lightning saves checkpoints here, and what it keeps to itself."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from palimpsa.runs.files import write_atomic


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, then moves it there: a kill in between leaves the previous one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        content = io.BytesIO()
        # Not to the file: where a write fails, torch's archive would say that its end is missing. And not by
        # Lightning, which writes it to /tmp first: two disks can be full then.
        torch.save(checkpoint, content)
        write_atomic(Path(path), content.getbuffer(), partial=Path(f"{path}.partial"))


def quiet_lightning() -> None:
    """Keeps Lightning from repeating for each run of a sweep what is meant so."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for meant in (
        "(.*dataloader is not resumable|Checkpoint directory)",  # a resume goes on where it was, and its loader counts
        "The `srun` command is available",  # a run is one process, however many Slurm could start
        ".*treespec, LeafSpec",  # Lightning's own use of torch
        "Triton is not supported",  # fla's reference code is what the CPU is meant to run
    ):
        warnings.filterwarnings("ignore", message=meant)
