"""The training benchmark from its first row to its figure: benchmark=training."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from palimpsa.benchmark.apart import RunFailedError, measure_apart
from palimpsa.benchmark.schema import TrainingConfig
from palimpsa.benchmark.store import TRAINING_TABLES, Row, Store, slug
from palimpsa.benchmark.training_config import TrainingRun, plan

PACKAGES = ("python", "torch", "triton", "lightning", "flash-linear-attention")
KIND = "steps"
# Wide enough for a model and four lengths where the output is a file.
PLAIN_WIDTH = 140


def run_training(config: TrainingConfig) -> int:
    """Measures what a config asks for, each run in a process of its own, and draws the figure.

    Returns:
        0; 1 where a run failed, after all the others.

    Raises:
        ConfigError: before a run starts; or where the results cannot be written.
    """
    runs = plan(config)
    origin = _origin(config, runs[0])
    device_slug = "cpu" if runs[0].cfg.trainer.accelerator == "cpu" else slug(origin["device"])
    store = Store(TRAINING_TABLES, Path(config.results_dir), device_slug, origin, fresh=config.fresh)
    console = Console(soft_wrap=True, markup=False, highlight=False)
    console.print(f"benchmark: training at scale {config.scale}, {origin['device']}; {origin['versions']}")
    console.print(_windows_told(runs[0]))
    todo = [run for run in runs if _find(store, run) is None]
    if len(todo) < len(runs):
        console.print(f"{len(runs) - len(todo)} of {len(runs)} rows are there already; fresh=true starts over")
    failures = _measure(todo, store, console)
    rows = [row for run in runs if (row := _find(store, run)) is not None]
    if rows:
        _print_table(rows, config)
        from palimpsa.analysis.build import build_training_benchmark

        for path in build_training_benchmark(Path(config.results_dir), device_slug):
            console.print(str(path))
    if failures:
        _tell(f"error: {len(failures)} of {len(runs)} runs failed, and the same command tries them again:")
        for failure in failures:
            _tell(f"  {failure}")
        return 1
    return 0


def _measure(todo: list[TrainingRun], store: Store, console: Console) -> list[str]:
    """Adds a row for each run as soon as it is there; returns a line for each that failed."""
    failures = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        whole = progress.add_task("runs", total=len(todo))
        for place, run in enumerate(todo, start=1):
            bar = progress.add_task(f"{run}, steps", total=_num_steps(run))
            begun = time.perf_counter()
            try:
                cells = measure_apart(run, lambda step, bar=bar: progress.update(bar, completed=step))
            except RunFailedError as error:
                failures.append(f"{run}: {error}")
                console.print(f"[{place}/{len(todo)}] {failures[-1]}")
                continue
            finally:
                progress.remove_task(bar)
                progress.advance(whole)
            key = {"model": run.model, "label": run.cfg.model.label, "seq_len": run.seq_len}
            store.append(KIND, key | cells | {"date": datetime.now(UTC).isoformat(timespec="seconds")})
            took = time.perf_counter() - begun
            console.print(f"[{place}/{len(todo)}] {run}: {_summary(cells)}; took {took:.1f} s")
    return failures


def _num_steps(run: TrainingRun) -> int:
    return run.windows.end if run.cfg.trainer.accelerator == "cpu" else run.windows.profiled_end


def _find(store: Store, run: TrainingRun) -> Row | None:
    return store.find(KIND, model=run.model, seq_len=run.seq_len)


def _origin(config: TrainingConfig, run: TrainingRun) -> dict[str, Any]:
    from palimpsa.runs.provenance import provenance

    trainer = run.cfg.trainer
    if trainer.num_threads is not None:
        import torch

        # What is told of the device tells of the run's threads, not of this process's.
        torch.set_num_threads(trainer.num_threads)
    found = provenance(trainer.accelerator)
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in PACKAGES)
    settings = {name: getattr(config, name) for name in ("scale", "lr", "seed", "num_warmup_steps", "num_steps")}
    return {name: found[name] for name in ("device", "git_revision", "git_dirty", "command")} | {
        "versions": versions,
        "trainer": config.trainer,
        "precision": trainer.precision,
        "overrides": " ".join(f"{key}={value}" for key, value in config.overrides.items()),
        **settings,
    }


def _windows_told(run: TrainingRun) -> str:
    """What a run measures: the steps, and what of the rest of the loop falls among them."""
    trainer, windows = run.cfg.trainer, run.windows
    every = {
        "probes": trainer.probe_every,
        "validations": run.cfg.task.validation_every,
        "checkpoints": trainer.checkpoint_every,
    }
    counts = {name: windows.num_due(steps, late=name == "checkpoints") for name, steps in every.items()}
    told = "; ".join(f"{name} every {steps} steps: {counts[name]}" for name, steps in every.items())
    return (
        f"a run: {windows.num_warmup} steps of warm-up, then {windows.num_steps} measured with all that comes between "
        f"them (logs every {trainer.log_every} steps; {told})"
    )


def _summary(cells: dict[str, Any]) -> str:
    units = {
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
    return ", ".join(form.format(cells[name]) for name, form in units.items() if cells.get(name) is not None)


def _print_table(rows: list[Row], config: TrainingConfig) -> None:
    """A row a model, a column a length."""
    on_gpu = any(row["busy_share"] for row in rows)
    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    what = "ms a step · steps/s · GPU busy" if on_gpu else "ms a step · steps/s"
    table = Table(title=f"Training at scale {config.scale}: {what}", title_justify="left")
    table.add_column("model", no_wrap=True)
    lengths = sorted({int(row["seq_len"]) for row in rows})
    for length in lengths:
        table.add_column(f"L {length}", justify="right")
    for model in dict.fromkeys(row["model"] for row in rows):
        own = {int(row["seq_len"]): row for row in rows if row["model"] == model}
        label = next(iter(own.values()))["label"]
        table.add_row(label, *(_cell(own.get(length), on_gpu) for length in lengths))
    console.print(table)


def _cell(row: Row | None, on_gpu: bool) -> str:
    if row is None:
        return "-"
    words = [f"{_short(row['ms_per_step'])} ms", f"{_short(row['steps_per_s'])}/s"]
    if on_gpu:
        words.append(f"{float(row['busy_share']):.0%}" if row["busy_share"] else "?")
    return " · ".join(words)


def _short(cell: str) -> str:
    return f"{float(f'{float(cell):.3g}'):,g}"


def _tell(line: str) -> None:
    Console(stderr=True).print(line, style="red", markup=False, highlight=False, soft_wrap=True)
