"""Calibration of one trained model: at each load a row a score, and the bins of its reliability diagram."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from palimpsa.analysis.calibration.rows import RUN
from palimpsa.config.errors import ConfigError
from palimpsa.config.keys import convert
from palimpsa.config.schema import TASK_SCHEMAS
from palimpsa.evaluation.calibration.detection import auroc, spearman
from palimpsa.evaluation.calibration.queries import (
    CONFIDENCE,
    AnsweredQueries,
    answer_queries,
    check_has_variance,
)
from palimpsa.evaluation.calibration.reliability import calibration_error, reliability
from palimpsa.evaluation.calibration.schema import CalibrationConfig
from palimpsa.evaluation.trained import TrainedModel, load_trained
from palimpsa.runs.identity import config_hash
from palimpsa.runs.result import run_of
from palimpsa.tasks.build import TASKS, build_task
from palimpsa.tasks.task import Stage, Task

Rows = list[dict[str, Any]]
# Why a directory is none to be measured is told under this name.
ARGUMENT = "CHECKPOINT"


@dataclass(frozen=True)
class Subject:
    """A trained model with what it is asked.

    run: what calibration.csv calls it: `rows.RUN`, label, config_hash and steps. stages: the loads.
    """

    trained: TrainedModel
    task: Task[Any, Any]
    stages: list[Stage]
    run: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.run['label']} lr {self.run['lr']:g} seed {self.run['seed']}"

    @property
    def loads(self) -> list[tuple[int, int]]:
        """The length and the pairs of each stage."""
        first = torch.arange(1)
        batches = [self.task.make_batch(stage, "test", first) for stage in self.stages]
        return [(stage.context, batch.labels.shape[1]) for stage, batch in zip(self.stages, batches, strict=True)]

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells its rows from those of others."""
        return tuple(self.run[name] for name in RUN)


def read_subject(checkpoint: Path, settings: CalibrationConfig) -> Subject:
    """The model of a run's directory, or of a checkpoint in one.

    Raises:
        ConfigError: for a path that is not there, a task that asks no queries, a model whose memory has no variance, or
            a load that its task cannot have.
        RunDirectoryError: for a directory that is no run's, and a checkpoint that is missing or cannot be read.
    """
    folder, file = checkpoint, None
    if checkpoint.parent.name == "checkpoints" and checkpoint.exists():
        folder, file = checkpoint.parent.parent, checkpoint
    if not folder.is_dir():
        raise ConfigError(f"{ARGUMENT}: got {str(checkpoint)!r}, expected the directory of a run")
    trained = load_trained(folder, file)
    config = trained.config
    task = _task(checkpoint, config, settings.loads)
    check_has_variance(trained.model, f"{ARGUMENT} {checkpoint}", config["model"]["label"])
    run = {**run_of(config), "config_hash": config_hash(config), "steps": trained.step}
    return Subject(trained, task, [stage for stage in task.stages if stage.is_tested], run)


def _task(checkpoint: Path, config: dict[str, Any], loads: Any) -> Task[Any, Any]:
    values = dict(config["task"])
    # Runs of the first kind of task came before the key.
    kind = values.setdefault("kind", next(iter(TASK_SCHEMAS)))
    if kind not in TASKS or not TASKS[kind].asks_queries:
        known = ", ".join(name for name, one in TASKS.items() if one.asks_queries)
        raise ConfigError(
            f"{ARGUMENT}: got {str(checkpoint)!r}, trained on {values['name']}, whose answers cannot be counted one by "
            f"one, expected a run of {known}"
        )
    if loads is not None:
        values |= dict.fromkeys(("seq_len", "num_train_examples", "num_epochs"))
        values["stages"] = [{"seq_len": length, "num_pairs": pairs, "max_steps": 1} for length, pairs in loads]
    typed = convert(TASK_SCHEMAS[kind], values, "task.")
    if loads is not None:
        # No step is taken here, which a long sequence might not fit into.
        typed = dataclasses.replace(typed, tokens_per_step=max(length for length, _ in loads))
    try:
        return build_task(typed, config["seed"])
    except ConfigError as error:
        raise ConfigError(f"calibration.loads: {error}" if loads is not None else f"{checkpoint}: {error}") from error


def measure(
    subject: Subject,
    settings: CalibrationConfig,
    device: torch.device,
    made_by: dict[str, Any],
    advance: Callable[[int], None],
    report: Callable[[str], None],
) -> tuple[Rows, Rows]:
    """The rows of a model in calibration.csv and in reliability.csv.

    Args:
        device: where it is asked.
        made_by: the `provenance` of this process.
        advance: told of sequences that are done.
        report: told a line a load.
    """
    model = subject.trained.model.to(device)
    rows: Rows = []
    bins: Rows = []
    shared = {
        **subject.run,
        **{name: getattr(settings, name) for name in ("num_examples", "num_bins")},
        **{name: made_by[name] for name in ("device", "git_revision")},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    for stage, (length, pairs) in zip(subject.stages, subject.loads, strict=True):
        found = answer_queries(
            model,
            subject.task,
            stage,
            num_examples=settings.num_examples,
            batch_size=settings.batch_size,
            advance=advance,
        )
        load = {"seq_len": length, "num_pairs": pairs}
        measured = _score_rows(found, settings.num_bins)
        rows += [{**shared, **load, **row} for row, _ in measured]
        bins += [
            {**{name: subject.run[name] for name in RUN}, **load, **_of_score(row), **one}
            for row, own in measured
            for one in own
        ]
        report(f"{subject.name}, {stage.label}, {pairs} pairs: {_line(found, measured)}")
    # Its memory is another model's.
    model.to("cpu")
    return rows, bins


def _score_rows(found: AnsweredQueries, num_bins: int) -> list[tuple[dict[str, Any], Rows]]:
    """Of each score its row, and its bins."""
    measured = []
    for signal, scores in found.scores.items():
        own = reliability(scores, found.is_wrong, num_bins)
        estimate = auroc(scores, found.is_wrong, found.sequences)
        row = {
            **{"signal": signal.name, "layer": signal.layer},
            **{"num_queries": len(scores), "accuracy": found.accuracy, "loss": found.loss},
            **{"auroc": estimate.value, "auroc_low": estimate.low, "auroc_high": estimate.high},
            "spearman": spearman(scores, found.losses),
            # The others are no probabilities.
            "calibration_error": calibration_error(own) if signal.name == CONFIDENCE else math.nan,
        }
        bins = [
            {
                **{"bin": one.index, "score": one.score, "count": one.count, "num_wrong": one.num_wrong},
                **{"low": one.low, "high": one.high},
            }
            for one in own
        ]
        measured.append((row, bins))
    return measured


def _of_score(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("signal", "layer")}


def _line(found: AnsweredQueries, measured: list[tuple[dict[str, Any], Rows]]) -> str:
    if found.accuracy in (0, 1):
        return f"accuracy {found.accuracy:.1%}; no AUROC, since no answer is {'wrong' if found.accuracy else 'right'}"
    shown = [row for row, _ in measured if row["layer"] in ("", "sum")]
    scores = ", ".join(f"{row['signal']} {row['auroc']:.3f}" for row in shown)
    return f"accuracy {found.accuracy:.1%}; AUROC {scores}"
