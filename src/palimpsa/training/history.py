"""The curves of a run: what was measured at which step, and the log of the training steps themselves."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from torch import Tensor

from palimpsa.runs.files import write_atomic
from palimpsa.tasks.task import Stage
from palimpsa.training.optimizer import learning_rates
from palimpsa.training.watch.throughput import StepCosts

# Seconds between two files of a run that goes on, and the share of its time that they may take.
WRITE_EVERY_S, MOST_OF_THE_TIME = 3.0, 0.01


class History(L.Callback):
    """The run's curves. Rows travel in the checkpoint, so that a resumed run's curves have neither gaps nor repeats.

    Args:
        growing: the file that the curves of a run that goes on are written to every few seconds, for who looks on.

    Attributes:
        rows: metrics by step. newest: the last value of each metric.
    """

    def __init__(self, growing: Path | None = None) -> None:
        self.rows: dict[int, dict[str, float]] = {}
        self.newest: dict[str, float] = {}
        self._growing = growing
        self._next_write_at = 0.0

    def record(self, trainer: L.Trainer, metrics: dict[str, float]) -> None:
        """Adds metrics to the row of the current optimiser step, and hands them to the trainer's loggers."""
        self.rows.setdefault(trainer.global_step, {}).update(metrics)
        self.newest.update(metrics)
        # Not through self.log: that costs about a millisecond a call.
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        if self._growing is not None and trainer.is_global_zero:
            self._write_growing(self._growing)

    def _write_growing(self, path: Path) -> None:
        started = time.monotonic()
        if started < self._next_write_at:
            return
        # A full disk is told where the run is recorded.
        with contextlib.suppress(OSError):
            self.write(path)
        ended = time.monotonic()
        self._next_write_at = ended + max(WRITE_EVERY_S, (ended - started) / MOST_OF_THE_TIME)

    def write(self, path: Path) -> dict[str, Any]:
        """Writes the curves as CSV, one row a step, one column a metric; returns what a result says of the file."""
        frame = pd.DataFrame([{"step": step, **row} for step, row in sorted(self.rows.items())])
        # Of a run that ended before its first row, or before its first one of training.
        for name in [one for one in ("step", "stage", "loss") if one not in frame]:
            frame[name] = math.nan
        content = frame.to_csv(index=False, lineterminator="\n").encode()
        write_atomic(path, content)
        return {"history_rows": len(frame), "history_sha256": hashlib.sha256(content).hexdigest()}

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [{"step": step, **row} for step, row in self.rows.items()]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = {int(row["step"]): {k: v for k, v in row.items() if k != "step"} for row in state_dict["rows"]}
        self.newest = {name: value for _, row in sorted(self.rows.items()) for name, value in row.items()}


class StepLog:
    """Mean loss and throughput of the training steps since the last row.

    Args:
        history: where rows go.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self._loss_sum: Tensor | float = 0.0
        self._num_losses = 0
        self._num_tokens = 0
        self._paused_s = 0.0
        self._last_row_at = time.perf_counter()
        # Where the task wants rows to say what steps cost.
        self.costs: StepCosts | None = None

    def add(self, loss: Tensor, num_tokens: int) -> None:
        """Takes a step's loss, a scalar on any device, and the tokens of all processes that it is over."""
        # Added on the device: reading the loss at every step would make the host wait for it.
        self._loss_sum = self._loss_sum + loss.detach()
        self._num_losses += 1
        self._num_tokens += num_tokens

    def pause(self, seconds: float) -> None:
        """Takes time that was not spent training out of the throughput."""
        self._paused_s += seconds

    def restart_clock(self) -> None:
        """Begins to measure the throughput anew."""
        self._num_tokens, self._paused_s, self._last_row_at = 0, 0.0, time.perf_counter()

    def write_row(self, trainer: L.Trainer, stage: Stage) -> float:
        """Adds a row; returns its loss, nats, the mean over the steps and over all processes.

        Raises:
            FloatingPointError: for a loss that is no number.
        """
        # Every process writes its rows at the same steps, and so meets the others here.
        loss = float(trainer.strategy.reduce(torch.as_tensor(self._loss_sum), reduce_op="mean")) / self._num_losses
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} at step {trainer.global_step}: a lower optimizer.lr may help")
        elapsed = time.perf_counter() - self._last_row_at - self._paused_s
        metrics = {
            "stage": stage.index,
            "loss": loss,
            **learning_rates(trainer.optimizers[0]),
            "tokens_per_s": self._num_tokens / max(elapsed, 1e-9),
        }
        if self.costs is not None:
            metrics |= self.costs.take(metrics["tokens_per_s"], elapsed)
        self._loss_sum, self._num_losses = 0.0, 0
        self.restart_clock()
        self.history.record(trainer, metrics)
        return loss

    def state_dict(self) -> dict[str, Any]:
        loss_sum = torch.as_tensor(self._loss_sum)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # Every process saves: what one of them resumes with must be the mean over all, whoever it was.
            loss_sum = loss_sum.clone()
            torch.distributed.all_reduce(loss_sum)
            loss_sum /= torch.distributed.get_world_size()
        return {"loss_sum": loss_sum.cpu(), "loss_count": self._num_losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._num_losses = state_dict["loss_count"]
        self._loss_sum = state_dict["loss_sum"] if self._num_losses else 0.0
