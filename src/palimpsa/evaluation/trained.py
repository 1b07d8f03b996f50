"""A trained model from the directory of its run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsa.config.errors import RunDirectoryError
from palimpsa.config.schema import ModelConfig
from palimpsa.model.build import build_model
from palimpsa.model.language_model import LanguageModel
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.result import read_json_object
from palimpsa.training.checkpoint import MODEL_CONFIG_KEY, CheckpointError, read_checkpoint


@dataclass(frozen=True)
class TrainedModel:
    """config: of the run, as plain containers; model: on the CPU, in evaluation mode; step: how long it has trained."""

    config: dict[str, Any]
    model: LanguageModel
    step: int


def load_trained(folder: Path | str) -> TrainedModel:
    """The model that a run's last checkpoint holds.

    Raises:
        RunDirectoryError: where there is no run, or no checkpoint that can be read.
    """
    directory = RunDirectory(folder)
    if not directory.config_file.exists():
        raise RunDirectoryError(f"{directory.path}: got no config.json in it, expected a run's directory")
    config = read_json_object(directory.config_file, "expected a run's config")
    path = next(iter(directory.checkpoints.newest_first()), directory.checkpoint_file)
    try:
        content = read_checkpoint(path, [])
    except FileNotFoundError as error:
        raise RunDirectoryError(f"{path}: not there, expected the last checkpoint of a run") from error
    except (CheckpointError, OSError) as error:
        raise RunDirectoryError(f"{path}: cannot be read ({error}), expected a run's checkpoint") from error
    model = build_model(ModelConfig(**content.get(MODEL_CONFIG_KEY, config["model"])), seed=None)
    weights = {name.removeprefix("model."): weight for name, weight in content["state_dict"].items()}
    model.load_state_dict(weights)
    return TrainedModel(config, model.eval(), content["global_step"])
