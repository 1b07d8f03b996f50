"""The benchmark of pretraining: a language model a row, each trained in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.table import Table
from rich.text import Text

from palimpsa.benchmark.base import Benchmark
from palimpsa.benchmark.isolated import measure_in_own_process
from palimpsa.benchmark.pretraining.plan import PretrainingRun, plan_pretraining
from palimpsa.benchmark.schema import PretrainingConfig
from palimpsa.benchmark.store import PRETRAINING_TABLES, Cells
from palimpsa.tasks.data_digests import split_folder
from palimpsa.text.manifest import read_manifest

KIND = "pretraining"


class PretrainingBenchmark(Benchmark[PretrainingRun]):
    """Tokens a second, share of the peak and memory of pretraining, with all that comes between its steps.

    Args:
        config: from `config.load`.

    Raises:
        ConfigError: it asks for a run that cannot be; or see `Benchmark`.
    """

    tables = PRETRAINING_TABLES
    packages = ("python", "torch", "triton", "lightning", "flash-linear-attention")
    summary_formats: ClassVar = {
        "tokens_per_s": "{:,.0f} tokens/s",
        "mfu": "{:.1%} of the peak",
        "data_wait": "{:.1%} waiting for data",
        "peak_memory_gib": "{:.4g} GiB",
        "loss": "loss {:.4g}",
        "first_row_s": "first row after {:.3g} s",
    }

    def __init__(self, config: PretrainingConfig) -> None:
        runs = plan_pretraining(config)
        self.config = config
        trainer = runs[0].cfg.trainer
        if trainer.num_threads is not None:
            # The device's name has the number of threads: the runs' and not this process's.
            torch.set_num_threads(trainer.num_threads)
        names = ("trainer", "lr", "seed", "num_warmup_steps", "num_steps", "log_every")
        tokens = "random" if config.data is None else read_manifest(split_folder(config.data, "train")).digest
        settings = {name: getattr(config, name) for name in names} | {
            "precision": trainer.precision,
            "tokens": tokens,
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
        origin, config = self.store.origin, self.config
        return [
            f"benchmark: pretraining on {config.data or 'random tokens'}, contexts of {config.context}, "
            f"{origin['device']}; {origin['versions']}",
            f"a run: {config.num_warmup_steps} steps of warm-up, then {config.num_steps} measured with all that comes "
            f"between them but validation; a row of the curves every {config.log_every}",
        ]

    def address(self, row: PretrainingRun) -> tuple[str, dict[str, Any]]:
        task, trainer = row.cfg.task, row.cfg.trainer
        return KIND, {
            "model": row.model,
            "context": task.context,
            "tokens_per_step": task.tokens_per_step,
            "accumulate": trainer.accumulate,
            "checkpoint_blocks": int(trainer.checkpoint_blocks),
        }

    def num_steps(self, row: PretrainingRun) -> int:
        return row.num_steps

    def measure(self, row: PretrainingRun, on_step: Callable[[int], None]) -> dict[str, Any]:
        return {"label": row.cfg.model.label} | measure_in_own_process(row, on_step)

    def table(self) -> Table | None:
        """A row a model."""
        rows = [cells for run in self.rows if (cells := self.stored(run)) is not None]
        if not rows:
            return None
        table = Table(title=Text("Pretraining"), title_justify="left")
        table.add_column("model", no_wrap=True)
        for name in ("tokens a step", "tokens/s", "of the peak", "GiB"):
            table.add_column(name, justify="right")
        for row in rows:
            table.add_row(Text(row["label"]), *_entries(row))
        return table

    def draw(self) -> list[Path]:
        return []


def _entries(row: Cells) -> list[str]:
    share = f"{float(row['mfu']):.1%}" if row["mfu"] else "-"
    memory = f"{float(row['peak_memory_gib']):.1f}" if row["peak_memory_gib"] else "-"
    return [f"{int(row['tokens_per_step']):,}", f"{float(row['tokens_per_s']):,.0f}", share, memory]
