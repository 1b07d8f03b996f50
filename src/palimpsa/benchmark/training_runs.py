"""The training benchmark: a run for each model and length, each timed in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.table import Table
from rich.text import Text

from palimpsa.benchmark.base import Benchmark
from palimpsa.benchmark.isolated import measure_in_own_process
from palimpsa.benchmark.schema import TrainingConfig
from palimpsa.benchmark.store import TRAINING_TABLES, Cells
from palimpsa.benchmark.training_config import TrainingRun, plan_runs

KIND = "steps"


class TrainingBenchmark(Benchmark[TrainingRun]):
    """Steps a second of the training loop, with all that comes between its steps.

    Args:
        config: from `config.load`.

    Raises:
        ConfigError: it asks for a run that cannot be; or see `Benchmark`.
    """

    tables = TRAINING_TABLES
    packages = ("python", "torch", "triton", "lightning", "flash-linear-attention")
    summary_formats: ClassVar = {
        "ms_per_step": "{:.4g} ms a step",
        "loop_ms_per_step": "{:.4g} without validation and probe",
        "steps_per_s": "{:.4g} steps/s",
        "tokens_per_s": "{:.4g} tokens/s",
        "busy_share": "GPU busy {:.0%}",
        "peak_memory_mib": "{:.4g} MiB",
        "first_step_s": "first step after {:.3g} s",
        "warmup_s": "warm-up {:.3g} s in all",
        "note": "note: {}",
    }

    def __init__(self, config: TrainingConfig) -> None:
        runs = plan_runs(config)
        self.config = config
        trainer = runs[0].cfg.trainer
        if trainer.num_threads is not None:
            # The device's name has the number of threads: the runs' and not this process's.
            torch.set_num_threads(trainer.num_threads)
        settings = {name: getattr(config, name) for name in ("scale", "lr", "seed", "num_warmup_steps", "num_steps")}
        settings |= {
            "trainer": config.trainer,
            "precision": trainer.precision,
            "overrides": " ".join(f"{key}={value}" for key, value in config.overrides.items()),
        }
        super().__init__(
            runs,
            accelerator=trainer.accelerator,
            settings=settings,
            results_dir=config.results_dir,
            fresh=config.fresh,
        )

    def headlines(self) -> list[str]:
        """The device; and what a run measures: its steps, and what of the rest of the loop falls among them."""
        origin, windows, cfg = self.store.origin, self.rows[0].windows, self.rows[0].cfg
        intervals = {
            "probes": cfg.trainer.probe_every,
            "validations": cfg.task.validation_every,
            "checkpoints": cfg.trainer.checkpoint_every,
        }
        counts = {name: windows.num_due(every, late=name == "checkpoints") for name, every in intervals.items()}
        among = "; ".join(f"{name} every {every} steps: {counts[name]}" for name, every in intervals.items())
        return [
            f"benchmark: training at scale {self.config.scale}, {origin['device']}; {origin['versions']}",
            f"a run: {windows.num_warmup} steps of warm-up, then {windows.num_steps} measured with all that comes "
            f"between them (logs every {cfg.trainer.log_every} steps; {among})",
        ]

    def address(self, row: TrainingRun) -> tuple[str, dict[str, Any]]:
        return KIND, {"model": row.model, "seq_len": row.seq_len}

    def num_steps(self, row: TrainingRun) -> int:
        return row.num_steps

    def measure(self, row: TrainingRun, on_step: Callable[[int], None]) -> dict[str, Any]:
        return {"label": row.cfg.model.label} | measure_in_own_process(row, on_step)

    def table(self) -> Table | None:
        """A row a model, a column a length."""
        rows = self._measured()
        if not rows:
            return None
        on_gpu = any(row["busy_share"] for row in rows)
        units = "ms a step · steps/s · GPU busy" if on_gpu else "ms a step · steps/s"
        table = Table(title=Text(f"Training at scale {self.config.scale}: {units}"), title_justify="left")
        table.add_column("model", no_wrap=True)
        lengths = sorted({int(row["seq_len"]) for row in rows})
        for length in lengths:
            table.add_column(f"L {length}", justify="right")
        for model in dict.fromkeys(row["model"] for row in rows):
            by_length = {int(row["seq_len"]): row for row in rows if row["model"] == model}
            label = next(iter(by_length.values()))["label"]
            table.add_row(Text(label), *(_entry(by_length.get(length), on_gpu) for length in lengths))
        return table

    def draw(self) -> list[Path]:
        from palimpsa.analysis.build import build_training_benchmark

        return build_training_benchmark(self.folder, self.device_slug) if self._measured() else []

    def _measured(self) -> list[Cells]:
        return [cells for run in self.rows if (cells := self.stored(run)) is not None]


def _entry(row: Cells | None, on_gpu: bool) -> str:
    if row is None:
        return "-"
    words = [f"{_three_digits(row['ms_per_step'])} ms", f"{_three_digits(row['steps_per_s'])}/s"]
    if on_gpu:
        words.append(f"{float(row['busy_share']):.0%}" if row["busy_share"] else "?")
    return " · ".join(words)


def _three_digits(cell: str) -> str:
    return f"{float(f'{float(cell):.3g}'):,g}"
