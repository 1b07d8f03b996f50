"""One run of pretraining, measured by the rows of its own curves. Runs in a process of its own."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import lightning as L

from palimpsa.benchmark.pretraining.random_text import write_random_text
from palimpsa.config.schema import TrainConfig
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.progress import JobProgress
from palimpsa.tasks.build import build_task
from palimpsa.training.run import TrainingRun

# Longer runs see random text again.
NUM_RANDOM_STEPS = 100
# The cells that are medians over rows of the curves, by the rows' own names.
MEDIANS = ("tokens_per_s", "mfu", "data_wait", "gradient_norm")


def measure_pretraining(
    config: TrainConfig, num_warmup_steps: int, num_steps: int, folder: Path, progress: JobProgress, *, is_random: bool
) -> dict[str, Any]:
    """Trains until the measured steps are over.

    Args:
        config: configs/train.yaml, composed and checked.
        num_warmup_steps, num_steps: optimiser steps before those that are measured, and those; multiples of
            `trainer.log_every`.
        folder: the run's directory.
        progress: told of every row.
        is_random: make the tokens, of all words of the task's vocabulary; its `data` is left aside.

    Returns:
        the cells of the row that the run measures: see `analysis.collect.benchmark_columns`.

    Raises:
        RuntimeError: the run ended early, or its loss has not fallen: it was no training that was measured.
    """
    task_config: Any = config.task
    end = num_warmup_steps + num_steps
    if is_random:
        task_config.data = str(folder / "text")
        write_random_text(
            Path(task_config.data),
            vocab_size=task_config.vocab_size,
            num_tokens=min(end + 1, NUM_RANDOM_STEPS) * task_config.tokens_per_step,
            num_validation=task_config.context,
            seed=config.seed,
        )
    training = TrainingRun(config, build_task(task_config, config.seed), RunDirectory(folder), progress.update)
    clock = _Clock(config.trainer.log_every, end)
    clock.start()
    summary = training.fit([clock])
    return {"num_parameters": summary["num_parameters"], "first_row_s": clock.first_row_s} | row_cells(
        training.history.rows, num_warmup_steps, end
    )


def row_cells(rows: dict[int, dict[str, float]], num_warmup_steps: int, end: int) -> dict[str, Any]:
    """What a run's curves say of its cost.

    Args:
        rows: of `History`, by step.
        num_warmup_steps, end: rows of steps after the one, up to the other are measured.

    Raises:
        RuntimeError: there are none, or the loss has not fallen.
    """
    trained = {step: row for step, row in sorted(rows.items()) if "loss" in row}
    measured = [row for step, row in trained.items() if num_warmup_steps < step <= end]
    if not measured or end not in trained:
        raise RuntimeError("the run ended before its measured steps did")
    first, last = next(iter(trained.values()))["loss"], measured[-1]["loss"]
    if len(trained) > 1 and not last < first:
        raise RuntimeError(f"the loss went from {first:.4g} to {last:.4g}, expected a fall; a lower lr may help")
    medians = {
        name: statistics.median(row[name] for row in measured) if name in measured[0] else None for name in MEDIANS
    }
    memory = [row["peak_memory_gib"] for row in trained.values() if "peak_memory_gib" in row]
    return {**medians, "peak_memory_gib": max(memory, default=None), "first_loss": first, "loss": last}


class _Clock(L.Callback):
    """Times what comes before the first row of the curves, and ends the run.

    Args:
        log_every: optimiser steps of a row.
        end: the optimiser steps to take.
    """

    def __init__(self, log_every: int, end: int) -> None:
        self.log_every = log_every
        self.end = end
        self.first_row_s: float | None = None
        self._begun = 0.0

    def start(self) -> None:
        """Starts the clock."""
        self._begun = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # The row itself waits for the device, before this is called.
        if self.first_row_s is None and trainer.global_step == self.log_every:
            self.first_row_s = time.perf_counter() - self._begun
        if trainer.global_step == self.end:
            trainer.should_stop = True
