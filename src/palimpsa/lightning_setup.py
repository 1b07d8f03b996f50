"""How Lightning saves checkpoints here, and what it keeps to itself."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, then moves it there: a kill in between leaves the previous one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        partial = f"{path}.partial"
        super().save_checkpoint(checkpoint, partial, storage_options)
        os.replace(partial, path)


def quiet_lightning() -> None:
    """Keeps Lightning from repeating for each run of a sweep what is meant so."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for meant in (
        "(.*dataloader is not resumable|Checkpoint directory)",  # a resume goes on where it was, and its loader counts
        ".*treespec, LeafSpec",  # Lightning's own use of torch
        "Triton is not supported",  # fla's reference code is what the CPU is meant to run
    ):
        warnings.filterwarnings("ignore", message=meant)
