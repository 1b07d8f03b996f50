"""A trained model's weights, from wherever a run keeps them, with what is known of the run."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palimpsa.config.errors import RunDirectoryError
from palimpsa.runs.checkpoints import is_sharded
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.files import write_atomic
from palimpsa.runs.result import read_json_object
from palimpsa.runs.schema import Block, ResultError, shorten
from palimpsa.runs.stored_config import read_stored_config
from palimpsa.training.checkpoint import CHECKSUM_KEY, MODEL_CONFIG_KEY, WEIGHTS, checksum, read_checkpoint
from palimpsa.training.storage.sharded import CheckpointError

PREFIX = "model."  # of a weight's name, in a checkpoint and in a folder


@dataclass(frozen=True)
class Checkpoint:
    """What is exported.

    Args:
        path: the file, or the folder of shards.
        weights: by their names in `LanguageModel`, on the CPU.
        model_config: the `model` group of the run's config, as plain containers.
        step: optimiser steps trained.
        config: of the run; None where the checkpoint lies outside of a run's directory.
        result: of the run, once it is finished, or None.
    """

    path: Path
    weights: dict[str, Tensor]
    model_config: dict[str, Any]
    step: int
    config: dict[str, Any] | None = None
    result: dict[str, Any] | None = None


def read_trained(path: Path) -> Checkpoint:
    """A checkpoint: a file, a folder of shards, or the directory of a run, whose newest one counts.

    Raises:
        RunDirectoryError: for what is none, or is damaged, or lies in a run whose config.json lacks a key.
        ResultError: for a result.json that no run can have written.
    """
    directory = RunDirectory(path)
    if path.is_dir() and not is_sharded(path):
        newest = directory.checkpoints.newest_first()
        if not newest:
            raise RunDirectoryError(
                f"{path}: got no checkpoint in it, expected a checkpoint, or a run's directory with checkpoints/"
            )
        path = newest[0]
    elif path.absolute().parent.name == "checkpoints":
        directory = RunDirectory(path.absolute().parent.parent)
    try:
        content = read_checkpoint(path, [], needed=WEIGHTS)
    except FileNotFoundError as error:
        raise RunDirectoryError(f"{path}: not there, expected a checkpoint or a run's directory") from error
    except (CheckpointError, OSError) as error:
        raise RunDirectoryError(f"{path}: cannot be read ({error}), expected a trainer's checkpoint") from error
    config = read_stored_config(directory.config_file) if directory.config_file.exists() else None
    result = _stored_result(directory.result_file) if directory.result_file.exists() else None
    return Checkpoint(
        path=path,
        weights={name.removeprefix(PREFIX): weight for name, weight in content["state_dict"].items()},
        model_config=content[MODEL_CONFIG_KEY],
        step=content["global_step"],
        config=config,
        result=result,
    )


def _stored_result(path: Path) -> dict[str, Any]:
    """Of a run, however it ended: what a card tells of it. Raises ResultError, naming the file and the key."""
    result = read_json_object(path, "expected a run's result")
    top = Block(path, "", result)
    top.get("config_hash", "text", optional=True)
    stages = top.get("stages", "list", optional=True) or []
    for place, stage in enumerate(stages):
        if not isinstance(stage, dict):
            raise ResultError(f"{path}: stages[{place}] is {shorten(stage)}, expected an object")
        for key in ("validation_loss", "validation_perplexity_per_byte"):
            Block(path, f"stages[{place}].", stage).get(key, "number", optional=True)
    if "provenance" in result:
        made_by = top.block("provenance")
        for key in ("git_revision", "device"):
            made_by.get(key, "string", optional=True)
        made_by.get("versions", "object", optional=True)
    return result


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
