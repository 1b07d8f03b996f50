"""One training run, timed from within: a callback with two windows of steps. Runs in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch

from palimpsa.benchmark.gpu_load import IncompleteProfileError, Interval, gpu_busy_ns
from palimpsa.benchmark.training_config import Windows
from palimpsa.config.schema import typed
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.progress import JobProgress
from palimpsa.tasks.build import build_task
from palimpsa.training.curriculum import Curriculum
from palimpsa.training.memory_probe import MemoryProbe
from palimpsa.training.run import TrainingRun


def measure_steps(cfg: Any, windows: Windows, folder: Path, progress: JobProgress) -> dict[str, Any]:
    """Trains until the windows are over.

    Args:
        cfg: configs/train.yaml, composed and checked, with one stage.
        windows: when to time; a GPU's second window follows the first.
        folder: the run's directory, for checkpoints.
        progress: told of every logged step, as in a sweep.

    Returns:
        the cells of the row that the run measures: see `analysis.collect.benchmark_columns`.
    """
    config = typed(cfg)
    task = build_task(config.task, config.seed)
    timer = StepTimer(windows, profile=cfg.trainer.accelerator == "gpu")
    timer.start()
    TrainingRun(config, task, RunDirectory(folder), progress.update).fit([timer])
    (stage,) = task.stages
    return timer.cells(stage.tokens_per_step) | {
        "batch_size": stage.batch_size,
        "num_probes": windows.num_due(cfg.trainer.probe_every),
        "num_validations": windows.num_due(cfg.task.validation_every),
        # Lightning writes them after all other callbacks, this timer too.
        "num_checkpoints": windows.num_due(cfg.trainer.checkpoint_every, late=True),
    }


class StepTimer(L.Callback):
    """Times a window of steps with everything in it, and what of it validation and the probe take.

    Waits for the device at the ends of windows alone: in between the host runs ahead as it does in any run. The pauses
    of a GPU are therefore told by its own events, which do not count the steps that the host was ahead by.

    Args:
        windows: when to time.
        profile: profile a second window on the GPU.
    """

    def __init__(self, windows: Windows, *, profile: bool) -> None:
        self.windows = windows
        self.profile = profile
        self.first_step_s = 0.0
        self.warmup_s = 0.0
        self.window_s = 0.0
        self.profiled_s = 0.0
        self.pauses_s = 0.0
        self.peak_memory_mib: float | None = None
        self.intervals: list[Interval] = []
        self._begun = 0.0
        self._marks: list[Any] = []
        self._marking = False
        self._profiler: torch.profiler.profile | None = None

    def start(self) -> None:
        """Starts the clock of the first step."""
        self._begun = time.perf_counter()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Puts a mark before and after each callback that pauses training."""
        marked: list[L.Callback] = []
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            every = None
            if isinstance(callback, MemoryProbe):
                every = callback.every
            elif isinstance(callback, Curriculum):
                every = callback.validation_every
            if every is None:
                marked.append(callback)
            else:
                marked += [_Mark(every, self._mark), callback, _Mark(every, self._mark)]
        trainer.callbacks = marked  # pyright: ignore[reportAttributeAccessIssue]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, windows, device = trainer.global_step, self.windows, pl_module.device
        if step == 1:
            self.first_step_s = _now(device) - self._begun
        if step == windows.num_warmup:
            begun = _now(device)
            self.warmup_s, self._begun = begun - self._begun, begun
            self._marking = True
        elif step == windows.end:
            self.window_s = _now(device) - self._begun
            self._marking = False
            self._end_window(device)
            if self.profile:
                self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
                self._profiler.start()
                self._begun = _now(device)
            else:
                trainer.should_stop = True
        elif step == windows.profiled_end:
            self.profiled_s = _now(device) - self._begun
            assert self._profiler is not None
            self._profiler.stop()
            self.intervals = _intervals(self._profiler)
            trainer.should_stop = True

    def _mark(self, device: torch.device) -> None:
        if not self._marking:
            return
        if device.type == "cuda":
            mark = torch.cuda.Event(enable_timing=True)
            mark.record(torch.cuda.current_stream(device))
        else:
            mark = time.perf_counter()
        self._marks.append(mark)

    def _end_window(self, device: torch.device) -> None:
        for begin, end in zip(self._marks[::2], self._marks[1::2], strict=True):
            self.pauses_s += begin.elapsed_time(end) / 1e3 if device.type == "cuda" else end - begin
        if device.type == "cuda":
            self.peak_memory_mib = torch.cuda.max_memory_allocated(device) / 2**20

    def cells(self, tokens_per_step: int) -> dict[str, Any]:
        """What was measured.

        Raises:
            RuntimeError: the run ended before its windows did.
        """
        if not self.window_s or (self.profile and not self.profiled_s):
            raise RuntimeError("the run ended before its measured steps did")
        num_steps = self.windows.num_steps
        cells: dict[str, Any] = {
            "tokens_per_step": tokens_per_step,
            "ms_per_step": 1e3 * self.window_s / num_steps,
            "steps_per_s": num_steps / self.window_s,
            "tokens_per_s": tokens_per_step * num_steps / self.window_s,
            "loop_ms_per_step": 1e3 * (self.window_s - self.pauses_s) / num_steps,
            "first_step_s": self.first_step_s,
            "warmup_s": self.warmup_s,
            "peak_memory_mib": self.peak_memory_mib,
        }
        if self.profile:
            cells["profiled_ms_per_step"] = 1e3 * self.profiled_s / num_steps
            try:
                busy = gpu_busy_ns(self.intervals, round(1e9 * self.profiled_s))
            except IncompleteProfileError as error:
                cells["note"] = str(error)
            else:
                cells["busy_ms_per_step"] = busy / 1e6 / num_steps
                cells["busy_share"] = busy / 1e9 / self.window_s
        return cells


class _Mark(L.Callback):
    """Calls `mark` at the end of every `every`-th step, in its place among the callbacks."""

    def __init__(self, every: int, mark: Callable[[torch.device], None]) -> None:
        self.every = every
        self.mark = mark

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every == 0:
            self.mark(pl_module.device)


def _now(device: torch.device) -> float:
    """The host's clock in s, once the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _intervals(profiler: torch.profiler.profile) -> list[Interval]:
    """Every kernel, copy and fill on the GPU that a profiler saw."""
    # Not profiler.events(): they are half a million, and it takes a minute to make objects of them.
    results = profiler.profiler and profiler.profiler.kineto_results
    assert results is not None
    return [
        (event.start_ns(), event.end_ns())
        for event in results.events()
        if event.device_type().name == "CUDA" and not event.is_user_annotation()
    ]
