"""A trained model's weights as a trainer's checkpoint: read, as training itself reads them, and written."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palimpsa.runs.files import write_atomic
from palimpsa.training.checkpoint import CHECKSUM_KEY, MODEL_CONFIG_KEY, checksum
from palimpsa.training.storage.trained import PREFIX, Checkpoint, read_trained

__all__ = ["PREFIX", "Checkpoint", "read_trained", "write_weights"]


def write_weights(path: Path, weights: Mapping[str, Tensor], model_config: Mapping[str, Any], step: int) -> Path:
    """Writes a file of weights that `read_trained` reads: whole or not at all. Raises OSError."""
    content = {
        "state_dict": {f"{PREFIX}{name}": weight for name, weight in weights.items()},
        MODEL_CONFIG_KEY: dict(model_config),
        "global_step": step,
    }
    made = io.BytesIO()
    torch.save({**content, CHECKSUM_KEY: checksum(content)}, made)
    return write_atomic(path, made.getbuffer())
