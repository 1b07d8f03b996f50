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
from palimpsa.runs.schema import FINISHED, Block
from palimpsa.runs.stored_config import read_stored_config
from palimpsa.tasks.build import build_task
from palimpsa.training.optimizer import stored_dtype
from palimpsa.training.storage.trained import read_source

# Tokens a context, and pairs in it.
Length = tuple[int, int]


class FinishedRun(NamedTuple):
    """A run that is finished. place: the columns of `lengths.csv` that say which it is."""

    directory: Path
    config: TrainConfig
    place: dict[str, Any]


def is_finished(directory: Path, task: str | None) -> bool:
    """Whether a run neither failed nor diverged, and is of this task; of None: of any.

    Raises:
        RunDirectoryError, ResultError: for a config.json or result.json that no run can have written.
    """
    result = read_json_object(directory / "result.json", "expected a run's result")
    own = run_of(read_stored_config(directory / "config.json"))["task"]
    return task in (None, own) and result.get("status") == FINISHED


def read_run(directory: Path) -> FinishedRun:
    """What a run was.

    Raises:
        ConfigError, RunDirectoryError: for one that is no associative recall, or whose config lacks a key.
        ResultError: for a result.json that no run can have written.
    """
    stored = read_stored_config(directory / "config.json")
    config = typed(stored)
    if not hasattr(config.task, "stages"):
        raise ConfigError(
            f"{directory}: got a run of task {config.task.name}, expected one of associative recall; --task NAME takes "
            "those of one task"
        )
    result = read_json_object(directory / "result.json", "expected a run's result")
    named = {name: run_of(stored)[name] for name in ("task", "scale", "model", "label", "lr", "seed")}
    hashed = Block(directory / "result.json", "", result).get("config_hash", "text")
    return FinishedRun(directory, config, {**named, "config_hash": hashed})


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


def lengths_that_fit(runs: Sequence[FinishedRun], lengths: Sequence[Length]) -> tuple[list[list[Length]], list[str]]:
    """Of each run the lengths that its task makes examples of, and a line for each other one that says why.

    Raises:
        ConfigError: for a length that no run's task makes examples of.
    """
    fitting: list[list[Length]] = [[] for _ in runs]
    lines = []
    for length in lengths:
        reasons = []
        for run, own in zip(runs, fitting, strict=True):
            try:
                build_task(stage_config(run, length).task, run.config.seed)
                own.append(length)
            except ConfigError as error:
                reasons.append(f"{length[0]}:{length[1]} of {run.directory}: {error}")
        if len(reasons) == len(runs):
            raise ConfigError(f"--lengths: got {reasons[0]}")
        lines += reasons
    return fitting, lines


@torch.no_grad()
def measure(run: FinishedRun, model: LanguageModel, length: Length) -> dict[str, float]:
    """The metrics of a task's test split at a length, by the precision of products that the run was trained with."""
    config = stage_config(run, length)
    task, device = build_task(config.task, config.seed), model.embedding.weight.device
    half = config.trainer.precision == "bf16-mixed"
    with torch.autocast(device.type, torch.bfloat16) if half else contextlib.nullcontext():
        return dict(task.evaluate(model, "test", task.stages[0], device))
