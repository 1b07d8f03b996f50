"""What happens around the training steps: the curriculum, the run's history, the memory probe."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from torch import Tensor

from palimpsa.data.mqar import MQARBatch, mqar_batch
from palimpsa.data.stages import Stage
from palimpsa.mixers import MemoryTrace
from palimpsa.model import LanguageModel
from palimpsa.progress import JobProgress
from palimpsa.recall import Recall, evaluate_recall
from palimpsa.run_directory import atomic_write


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
        atomic_write(path, frame.to_csv(index=False))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [{"step": step, **row} for step, row in self.rows.items()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = {int(row["step"]): {k: v for k, v in row.items() if k != "step"} for row in state_dict["rows"]}


class Curriculum(L.Callback):
    """Walks through the stages: hands out batches, validates, ends a stage at its accuracy or its cap, tests it once.

    Args:
        stages: in order; weights are carried over.
        seed: the run's seed.
        stop_accuracy: validation accuracy, a fraction, that ends a stage.
        validation_every: optimiser steps between validations, counted within a stage.
        num_validation, num_test: examples.
        log_every: optimiser steps between rows of the history, counted within a stage.
        history: where curves go.
        progress: told of every logged step.
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
        self.stage_index = 0
        self.stage_step = 0
        self.plateau_exit_step: int | None = None
        self.finished_stages: list[dict[str, Any]] = []
        self._loss_sum: Tensor | float = 0.0
        self._loss_count = 0
        self._paused_s = 0.0
        self._last_log = time.perf_counter()

    @property
    def stage(self) -> Stage:
        return self.stages[self.stage_index]

    @property
    def done(self) -> bool:
        return len(self.finished_stages) == len(self.stages)

    def next_batch(self, device: torch.device) -> MQARBatch:
        """The training batch of the current stage and step."""
        return self.stage.train_batch(self.seed, self.stage_step, device)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_log = time.perf_counter()
        if self.done:
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.stage_step += 1
        # Added on the device: reading the loss at every step would make the host wait for it.
        self._loss_sum = self._loss_sum + outputs["loss"].detach()
        self._loss_count += 1
        if self.stage_step % self.log_every == 0:
            self._log_training(trainer)
        at_cap = self.stage_step >= self.stage.max_steps
        if at_cap or self.stage_step % self.validation_every == 0:
            started = time.perf_counter()
            self._validate(trainer, pl_module, at_cap)
            self._paused_s += time.perf_counter() - started

    def _log_training(self, trainer: L.Trainer) -> None:
        loss = float(self._loss_sum) / self._loss_count
        now = time.perf_counter()
        tokens = self._loss_count * self.stage.batch_size * self.stage.spec.seq_len
        metrics = {
            "stage": self.stage_index,
            "loss": loss,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "tokens_per_s": tokens / max(now - self._last_log - self._paused_s, 1e-9),
        }
        self._loss_sum, self._loss_count, self._paused_s, self._last_log = 0.0, 0, 0.0, now
        if self.plateau_exit_step is None and loss < 0.5 * self.stage.spec.plateau_loss:
            self.plateau_exit_step = self.stage_step
        self.history.record(trainer, metrics)
        self.progress.update(trainer.global_step, f"L {self.stage.spec.seq_len}, loss {loss:.2f}")

    def pause(self, seconds: float) -> None:
        """Takes time that was not spent training out of the throughput."""
        self._paused_s += seconds

    def _evaluate(self, trainer: L.Trainer, pl_module: L.LightningModule, split: str, num_examples: int) -> Recall:
        with trainer.precision_plugin.forward_context():
            return evaluate_recall(
                _network(pl_module),
                self.stage.spec,
                seed=self.seed,
                split=split,
                stage=self.stage_index,
                num_examples=num_examples,
                batch_size=self.stage.batch_size,
                device=pl_module.device,
            )

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
        self._loss_sum, self._loss_count = 0.0, 0
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


class MemoryProbe(L.Callback):
    """Logs the memory window N_t and the metaplasticity ratio on a few validation contexts.

    N_t = 1 / (1 - alpha_t), tokens, averaged over the context; the ratio is (I_max - I_min) / I_min of the importance
    that a context leaves behind. Both per layer and head, averaged over contexts, and as means over all heads.

    Args:
        curriculum: says which contexts the current stage has.
        every: optimiser steps.
        num_examples: contexts.
        history: where the numbers go.
    """

    def __init__(self, curriculum: Curriculum, *, every: int, num_examples: int, history: History) -> None:
        self.curriculum = curriculum
        self.every = every
        self.num_examples = num_examples
        self.history = history
        self.seconds = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0:
            self._probe(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every == 0 and not self.curriculum.done:
            self._probe(trainer, pl_module)

    def _probe(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        started = time.perf_counter()
        stage = self.curriculum.stage
        batch = mqar_batch(
            stage.spec,
            seed=self.curriculum.seed,
            split="validation",
            stage=stage.index,
            step=0,
            batch_size=self.num_examples,
            device=pl_module.device,
        )
        with trainer.precision_plugin.forward_context():
            traces = _network(pl_module).memory(batch.inputs)
        self.history.record(trainer, {"stage": stage.index, **memory_metrics(traces)})
        elapsed = time.perf_counter() - started
        self.seconds += elapsed
        self.curriculum.pause(elapsed)


def _network(pl_module: L.LightningModule) -> LanguageModel:
    assert isinstance(pl_module.model, LanguageModel)
    return pl_module.model


def memory_metrics(traces: list[MemoryTrace]) -> dict[str, float]:
    """One number a layer and head, and the mean over all, of window and metaplasticity ratio (where there is one)."""
    measured = {"window": torch.stack([trace.window.mean(dim=0) for trace in traces])}
    importances = [trace.importance for trace in traces if trace.importance is not None]
    if importances:
        measured["metaplasticity"] = torch.stack([metaplasticity_ratio(i).mean(dim=0) for i in importances])
    metrics = {}
    for name, per_head in measured.items():
        # One transfer a quantity, not one a head.
        rows = per_head.tolist()
        metrics[f"{name}_mean"] = sum(map(sum, rows)) / sum(map(len, rows))
        for layer, row in enumerate(rows):
            for head, value in enumerate(row):
                metrics[f"{name}/layer{layer}/head{head}"] = value
    return metrics


def metaplasticity_ratio(importance: Tensor) -> Tensor:
    """(I_max - I_min) / I_min over the entries of each head: importance [B, H, K, V] -> [B, H]."""
    low, high = importance.flatten(2).aminmax(dim=2)
    return (high - low) / low
