"""What happens around the training steps: the curriculum and the run's history."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from torch import Tensor

from palimpsa.model.language_model import LanguageModel
from palimpsa.runs.files import write_atomic
from palimpsa.runs.progress import JobProgress
from palimpsa.tasks.recall import Recall, RecallMeter
from palimpsa.tasks.stages import Stage


class History(L.Callback):
    """The run's curves. Rows travel in the checkpoint, so that a resumed run's curves have neither gaps nor repeats."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, float]] = {}

    def record(self, trainer: L.Trainer, metrics: dict[str, float]) -> None:
        """Adds metrics to the row of the current optimiser step, and hands them to the trainer's loggers."""
        self.rows.setdefault(trainer.global_step, {}).update(metrics)
        # Not through self.log: that costs about a millisecond a call.
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)

    def write(self, path: Path) -> None:
        """Writes the curves as CSV, one row a step, one column a metric."""
        frame = pd.DataFrame([{"step": step, **row} for step, row in sorted(self.rows.items())])
        if "loss" not in frame:
            # A run that diverged before its first row of training.
            frame["loss"] = math.nan
        write_atomic(path, frame.to_csv(index=False))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [{"step": step, **row} for step, row in self.rows.items()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = {int(row["step"]): {k: v for k, v in row.items() if k != "step"} for row in state_dict["rows"]}


class Curriculum(L.Callback):
    """Walks through the stages: validates, ends each at its accuracy or its cap, and tests it once.

    Args:
        stages: in order; weights are carried over.
        seed: the run's seed.
        stop_accuracy: validation accuracy, a fraction, that ends a stage.
        validation_every: optimiser steps between validations, counted within a stage.
        num_validation, num_test: examples.
        log_every: optimiser steps between rows of the history, counted within a stage; each validation adds one.
        history: where curves go.
        progress: told of every logged step.
        use_graphs: evaluate by CUDA graphs.
    """

    def __init__(
        self,
        stages: list[Stage],
        *,
        seed: int,
        stop_accuracy: float,
        validation_every: int,
        num_validation: int,
        num_test: int,
        log_every: int,
        history: History,
        progress: JobProgress,
        use_graphs: bool = False,
    ) -> None:
        self.stages = stages
        self.seed = seed
        self.stop_accuracy = stop_accuracy
        self.validation_every = validation_every
        self.num_validation = num_validation
        self.num_test = num_test
        self.log_every = log_every
        self.history = history
        self.progress = progress
        self.use_graphs = use_graphs
        self.stage_index = 0
        self.stage_step = 0
        self.plateau_exit_step: int | None = None
        self.finished_stages: list[dict[str, Any]] = []
        self._loss_sum: Tensor | float = 0.0
        self._loss_count = 0
        self._num_tokens = 0
        self._paused_s = 0.0
        self._last_log = time.perf_counter()
        # Of the stage and split that were last evaluated: it holds what was captured.
        self._meter: RecallMeter | None = None
        self._meter_address: tuple[int, str] | None = None

    @property
    def stage(self) -> Stage:
        return self.stages[self.stage_index]

    @property
    def done(self) -> bool:
        return len(self.finished_stages) == len(self.stages)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restart_clock()
        if self.done:
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.stage_step += 1
        # Added on the device: reading the loss at every step would make the host wait for it.
        self._loss_sum = self._loss_sum + outputs["loss"].detach()
        self._loss_count += 1
        self._num_tokens += self.stage.batch_size * self.stage.spec.seq_len
        at_cap = self.stage_step >= self.stage.max_steps
        validates = at_cap or self.stage_step % self.validation_every == 0
        # Also before a validation, which may end the stage: no step's loss is dropped.
        if validates or self.stage_step % self.log_every == 0:
            self._log_training(trainer)
        if validates:
            started = time.perf_counter()
            self._validate(trainer, pl_module, at_cap)
            self._paused_s += time.perf_counter() - started

    def _log_training(self, trainer: L.Trainer) -> None:
        loss = float(self._loss_sum) / self._loss_count
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {trainer.global_step}: a lower optimizer.lr may help")
        elapsed = time.perf_counter() - self._last_log - self._paused_s
        metrics = {
            "stage": self.stage_index,
            "loss": loss,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "tokens_per_s": self._num_tokens / max(elapsed, 1e-9),
        }
        self._loss_sum, self._loss_count = 0.0, 0
        self._restart_clock()
        if self.plateau_exit_step is None and loss < 0.5 * self.stage.spec.plateau_loss:
            self.plateau_exit_step = self.stage_step
        self.history.record(trainer, metrics)
        self.progress.update(trainer.global_step, f"L {self.stage.spec.seq_len}, loss {loss:.2f}")

    def _restart_clock(self) -> None:
        self._num_tokens, self._paused_s, self._last_log = 0, 0.0, time.perf_counter()

    def pause(self, seconds: float) -> None:
        """Takes time that was not spent training out of the throughput."""
        self._paused_s += seconds

    def _evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule, split: str, num_examples: int) -> Recall:
        address = (self.stage_index, split)
        if self._meter is None or self._meter_address != address:
            self._meter_address, self._meter = (
                address,
                RecallMeter(
                    network(pl_module),
                    self.stage.spec,
                    seed=self.seed,
                    split=split,
                    stage=self.stage_index,
                    batch_size=self.stage.batch_size,
                    device=pl_module.device,
                    use_graph=self.use_graphs,
                ),
            )
        with trainer.precision_plugin.forward_context():
            return self._meter(num_examples)

    def release(self) -> None:
        """Lets go of what was captured to evaluate."""
        self._meter = None

    def _validate(self, trainer: L.Trainer, pl_module: L.LightningModule, at_cap: bool) -> None:
        validation = self._evaluate(trainer, pl_module, "validation", self.num_validation)
        self.history.record(
            trainer,
            {
                "stage": self.stage_index,
                "validation_accuracy": validation.accuracy,
                "validation_loss": validation.loss,
                **{
                    f"validation_accuracy/age{i}": accuracy
                    for i, accuracy in enumerate(validation.accuracy_by_age)
                    if accuracy is not None
                },
            },
        )
        reached = validation.accuracy >= self.stop_accuracy
        if reached or at_cap:
            self._end_stage(trainer, pl_module, validation, "accuracy" if reached else "cap")

    def _end_stage(self, trainer: L.Trainer, pl_module: L.LightningModule, validation: Recall, ended_by: str) -> None:
        # The only place that touches the test split.
        test = self._evaluate(trainer, pl_module, "test", self.num_test) if self.stage.in_figure else None
        self.finished_stages.append(
            {
                "stage": self.stage_index,
                "seq_len": self.stage.spec.seq_len,
                "num_pairs": self.stage.spec.num_pairs,
                "steps": self.stage_step,
                "ended_by": ended_by,
                "plateau_exit_step": self.plateau_exit_step,
                "validation_accuracy": validation.accuracy,
                "test_accuracy": test and test.accuracy,
                "test_accuracy_by_age": test and test.accuracy_by_age,
                "test_loss": test and test.loss,
            }
        )
        if test is not None:
            self.history.record(trainer, {f"test_accuracy/L{self.stage.spec.seq_len}": test.accuracy})
        self.stage_step, self.plateau_exit_step = 0, None
        if self.done:
            trainer.should_stop = True
        else:
            self.stage_index += 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "stage_index": self.stage_index,
            "stage_step": self.stage_step,
            "plateau_exit_step": self.plateau_exit_step,
            "finished_stages": self.finished_stages,
            "loss_sum": torch.as_tensor(self._loss_sum).cpu(),
            "loss_count": self._loss_count,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stage_index = state_dict["stage_index"]
        self.stage_step = state_dict["stage_step"]
        self.plateau_exit_step = state_dict["plateau_exit_step"]
        self.finished_stages = state_dict["finished_stages"]
        self._loss_count = state_dict["loss_count"]
        self._loss_sum = state_dict["loss_sum"] if self._loss_count else 0.0


def network(pl_module: L.LightningModule) -> LanguageModel:
    """The language model inside a Lightning module."""
    assert isinstance(pl_module.model, LanguageModel)
    return pl_module.model
