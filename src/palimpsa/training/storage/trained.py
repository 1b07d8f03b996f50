"""A trained model's weights, from wherever they are kept: a run's checkpoint, or a folder of transformers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.config.schema import with_numbers
from palimpsa.runs.checkpoints import is_sharded
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.result import read_json_object
from palimpsa.runs.schema import FINISHED, Block, ResultError, shorten
from palimpsa.runs.stored_config import read_stored_config
from palimpsa.training.checkpoint import MODEL_CONFIG_KEY, WEIGHTS, read_checkpoint
from palimpsa.training.storage.sharded import CheckpointError

PREFIX = "model."  # of a weight's name, in a checkpoint and in a folder
# Of `model.hf.PalimpsaConfig`, whose import takes seconds.
OWN_MODEL_TYPE = "palimpsa"


@dataclass(frozen=True)
class Checkpoint:
    """Trained weights, and what is known of them.

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
    elif path.is_file() and (path.parent / "config.json").is_file() and path.suffix in (".safetensors", ".bin"):
        raise RunDirectoryError(f"{path}: got the weights of a model's folder alone, expected {path.parent}")
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
        model_config=with_numbers(content[MODEL_CONFIG_KEY]),
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


def is_folder(path: Path) -> bool:
    """Whether a path is a folder of transformers, which has config.json with a model_type; no run's has."""
    file = path / "config.json"
    return file.is_file() and "model_type" in read_json_object(file, "expected the config of a run or of a model")


def read_source(path: Path) -> Checkpoint:
    """What a run starts from: a finished run, a checkpoint, or a folder that scripts/convert.py has made.

    Raises:
        ConfigError, RunDirectoryError, ResultError: in one line, for what is none, is damaged, is of another
            architecture, or has not kept the weights that its run ended with.
    """
    if not path.exists():
        raise ConfigError(f"{path}: not there, expected a run's directory, a checkpoint, or a folder of convert.py's")
    if path.is_dir() and is_folder(path):
        return _read_folder(path)
    found = read_trained(path)
    if found.result is not None and path.is_dir() and not is_sharded(path):
        ended = found.result.get("metrics", {}).get("num_steps")
        if found.result.get("status") == FINISHED and ended is not None and ended != found.step:
            raise RunDirectoryError(
                f"{path}: its newest checkpoint is of step {found.step}, and the run ended at {ended}; expected the "
                "weights that it ended with, which trainer.keep_final=true has a run keep"
            )
    return found


def _read_folder(path: Path) -> Checkpoint:
    config = read_json_object(path / "config.json", "expected the config of a model", with_infinity=True)
    if config["model_type"] != OWN_MODEL_TYPE:
        raise ConfigError(
            f"{path}: got a model of type {config['model_type']!r}, expected {OWN_MODEL_TYPE!r}; scripts/convert.py "
            "makes one of a Mamba-2"
        )
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"{path}: got no model.safetensors in it, expected the weights of a model")
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as content:
                # No mapping, though it has keys (SIM118).
                weights |= {name.removeprefix(PREFIX): content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ConfigError(
                f"{file}: cannot be read ({error}), expected weights as transformers writes them"
            ) from error
    return Checkpoint(path, weights, config, 0)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """64 hexadecimal digits of names, shapes and values, whatever file they are in; half precision counts as fp32."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        value = weight.detach().cpu()
        value = value.float() if value.is_floating_point() else value
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
