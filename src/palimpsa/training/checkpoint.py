"""How Lightning saves checkpoints here, and what it keeps to itself."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, then moves it there: a kill in between leaves the previous one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        partial = f"{path}.partial"
        try:
            # Not by Lightning, which writes the file to /tmp first: two disks can be full then.
            os.makedirs(os.path.dirname(partial), exist_ok=True)
            content = io.BytesIO()
            torch.save(checkpoint, content)
            with open(partial, "wb") as file:
                # At once: where a write fails, torch's archive would say that its end is missing.
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            # A full disk would have no room for the news either.
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise


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
