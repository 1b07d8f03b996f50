"""A trained model from the directory of its run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.config.keys import convert
from palimpsa.config.schema import ModelConfig, with_numbers
from palimpsa.model.build import build_model
from palimpsa.model.language_model import LanguageModel
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.stored_config import read_stored_config
from palimpsa.training.checkpoint import MODEL_CONFIG_KEY, CheckpointError, read_checkpoint


@dataclass(frozen=True)
class TrainedModel:
    """config: of the run, as plain containers; model: on the CPU, in evaluation mode; step: how long it has trained;
    checkpoint: the file or folder that it was read from."""

    config: dict[str, Any]
    model: LanguageModel
    step: int
    checkpoint: Path


def newest_checkpoint(folder: Path | str) -> Path:
    """The file or folder of a run's last checkpoint, which need not be there."""
    directory = RunDirectory(folder)
    return next(iter(directory.checkpoints.newest_first()), directory.checkpoint_file)


def load_trained(folder: Path | str, checkpoint: Path | None = None) -> TrainedModel:
    """The model that a run's checkpoint holds.

    Args:
        checkpoint: of the run; None: the newest.

    Raises:
        RunDirectoryError: where there is no run, its config lacks a key, or there is no checkpoint that can be read.
    """
    directory = RunDirectory(folder)
    if not directory.config_file.exists():
        raise RunDirectoryError(f"{directory.path}: got no config.json in it, expected a run's directory")
    config = read_stored_config(directory.config_file)
    path = newest_checkpoint(folder) if checkpoint is None else checkpoint
    try:
        content = read_checkpoint(path, [])
    except FileNotFoundError as error:
        raise RunDirectoryError(f"{path}: not there, expected the last checkpoint of a run") from error
    except (CheckpointError, OSError) as error:
        raise RunDirectoryError(f"{path}: cannot be read ({error}), expected a run's checkpoint") from error
    try:
        stored = with_numbers(content.get(MODEL_CONFIG_KEY, config["model"]))
        model_config = convert(ModelConfig, stored, "model_config.")
    except ConfigError as error:
        raise RunDirectoryError(f"{path}: {error}") from error
    model = build_model(model_config, seed=None)
    weights = {name.removeprefix("model."): weight for name, weight in content["state_dict"].items()}
    model.load_state_dict(weights)
    return TrainedModel(config, model.eval(), content["global_step"], path)
