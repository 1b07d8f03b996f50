"""The recall of a finished run at lengths of anyone's choice, without any training."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.config.schema import StageConfig, TrainConfig, typed
from palimpsa.mixers.parameters import store_in
from palimpsa.model.build import build_model
from palimpsa.model.language_model import LanguageModel
from palimpsa.runs.result import read_json_object, run_of
from palimpsa.runs.stored_config import read_stored_config
from palimpsa.tasks.build import build_task
from palimpsa.training.optimizer import stored_dtype
from palimpsa.training.storage.trained import read_source

# Tokens a context, and pairs in it.
Length = tuple[int, int]


class FinishedRun(NamedTuple):
    """A run whose final weights are kept. place: the columns of `lengths.csv` that say which it is."""

    directory: Path
    config: TrainConfig
    place: dict[str, Any]


def read_run(directory: Path) -> FinishedRun:
    """What a run was.

    Raises:
        ConfigError, RunDirectoryError: for one of another task, or whose config lacks a key.
    """
    stored = read_stored_config(directory / "config.json")
    config = typed(stored)
    if not hasattr(config.task, "stages"):
        raise ConfigError(f"{directory}: got a run of task {config.task.name}, expected one of associative recall")
    result = read_json_object(directory / "result.json", "expected a run's result")
    named = {name: run_of(stored)[name] for name in ("task", "scale", "model", "label", "lr", "seed")}
    return FinishedRun(directory, config, {**named, "config_hash": result["config_hash"]})


def load_weights(run: FinishedRun, device: torch.device) -> LanguageModel:
    """The model that a run ended with, in the dtype that it was trained in.

    Raises:
        ConfigError, RunDirectoryError: see `read_source`; a run keeps its final weights with trainer.keep_final=true.
    """
    source = read_source(run.directory)
    model = build_model(run.config.model, None)
    try:
        model.load_state_dict(source.weights)
    except RuntimeError as error:
        raise RunDirectoryError(f"{run.directory}: its weights are not those of its config: {error}") from error
    store_in(model, stored_dtype(run.config.optimizer))
    return model.to(device).eval()


def stage_config(run: FinishedRun, length: Length) -> TrainConfig:
    """The config of a run whose only stage has this length and so many pairs."""
    stage = StageConfig(seq_len=length[0], num_pairs=length[1], max_steps=1)
    task: Any = run.config.task
    own = dataclasses.replace(task, stages=[stage], seq_len=None, num_train_examples=None, num_epochs=None)
    return dataclasses.replace(run.config, task=own)


def check_lengths(run: FinishedRun, lengths: Sequence[Length]) -> None:
    """Raises ConfigError for a length that the run's task does not make examples of."""
    for length in lengths:
        build_task(stage_config(run, length).task, run.config.seed)


@torch.no_grad()
def measure(run: FinishedRun, model: LanguageModel, length: Length) -> dict[str, float]:
    """The metrics of a task's test split at a length, by the precision of products that the run was trained with."""
    config = stage_config(run, length)
    task, device = build_task(config.task, config.seed), model.embedding.weight.device
    half = config.trainer.precision == "bf16-mixed"
    with torch.autocast(device.type, torch.bfloat16) if half else contextlib.nullcontext():
        return dict(task.evaluate(model, "test", task.stages[0], device))
