"""The command line of scripts/benchmark.py, and the loop that measures a benchmark's rows and draws its figures."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from palimpsa.benchmark.base import Benchmark, RowFailedError, WrongResultError
from palimpsa.benchmark.config import load
from palimpsa.benchmark.schema import (
    BenchmarkConfig,
    EvaluationSpeedConfig,
    FirstCallConfig,
    OperatorsConfig,
    PretrainingConfig,
)
from palimpsa.config.process import plain_console, print_failure, refuse_options
from palimpsa.runs.exit_codes import exit_code

USAGE = """usage: benchmark.py [KEY=VALUE ...], for instance

  benchmark.py                                          the operators, on the GPU if there is one
  benchmark.py cases=[table] operators=[palimpsa]       a part of them
  benchmark.py lengths=[512,1024] results_dir=/tmp/out  other lengths, another folder
  benchmark.py benchmark=training                       steps a second of training, each model and length
  benchmark.py benchmark=training models=[gla]          a part of them
  benchmark.py benchmark=pretraining                    tokens a second of language models
  benchmark.py benchmark=evaluation data_dir=DIR        seconds of zero-shot evaluation
  benchmark.py benchmark=first_call                     what compiling costs, and at which sizes again; on a GPU

The keys, with their defaults and units, are in configs/benchmark/, a file for each benchmark."""
# Of a table, where the output is a file: wide enough for a model and four lengths.
FILE_WIDTH = 140

RowT = TypeVar("RowT")


def benchmark_main(arguments: list[str]) -> int:
    """Runs the benchmark that a command line asks for and draws its figures.

    Returns:
        0; 1 where an operator is wrong or failed, a training run did, or a file cannot be written; 2 where the command
        line or the results folder is; 130 where it was interrupted. Rows that were measured stay.
    """
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    return exit_code(lambda: _run(arguments), interrupted="the same command goes on where it stopped")


def _run(arguments: list[str]) -> int:
    refuse_options(arguments)
    return run_benchmark(make_benchmark(load(arguments)))


def make_benchmark(config: BenchmarkConfig) -> Benchmark:
    """The benchmark of a config from `config.load`. Raises ConfigError."""
    # Here and not above: torch.
    if isinstance(config, OperatorsConfig):
        from palimpsa.benchmark.cases import OperatorsBenchmark

        return OperatorsBenchmark(config)
    if isinstance(config, FirstCallConfig):
        from palimpsa.benchmark.first_calls.rows import FirstCallBenchmark

        return FirstCallBenchmark(config)
    if isinstance(config, PretrainingConfig):
        from palimpsa.benchmark.pretraining.rows import PretrainingBenchmark

        return PretrainingBenchmark(config)
    if isinstance(config, EvaluationSpeedConfig):
        from palimpsa.benchmark.evaluation.rows import EvaluationBenchmark

        return EvaluationBenchmark(config)
    from palimpsa.benchmark.training_runs import TrainingBenchmark

    return TrainingBenchmark(config)


def run_benchmark(benchmark: Benchmark) -> int:
    """Measures the rows that are not in the CSV files yet, shows all of them, and draws the figures.

    Returns:
        0; 1 where a row failed, after all the others, or at once where a result is wrong.

    Raises:
        OSError: the results cannot be written.
    """
    console = plain_console(soft_wrap=True)
    for line in benchmark.headlines():
        console.print(line)
    missing = [row for row in benchmark.rows if benchmark.stored(row) is None]
    num_rows = len(benchmark.rows)
    if len(missing) < num_rows:
        console.print(f"{num_rows - len(missing)} of {num_rows} rows are there already; fresh=true starts over")
    try:
        failures = _measure(benchmark, missing, console)
    except WrongResultError as error:
        print_failure(f"error: {error}")
        return 1
    table = benchmark.table()
    if table is not None:
        (plain_console() if console.is_terminal else plain_console(width=FILE_WIDTH)).print(table)
    for path in benchmark.draw():
        console.print(str(path))
    if failures:
        print_failure(f"error: {len(failures)} of {num_rows} rows failed, and the same command tries them again:")
        for failure in failures:
            print_failure(f"  {failure}")
        return 1
    return 0


def _measure(benchmark: Benchmark[RowT], rows: list[RowT], console: Console) -> list[str]:
    """Stores each row as soon as it is measured; returns a line for each that failed."""
    failures = []
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        all_rows = progress.add_task("rows", total=len(rows))
        for place, row in enumerate(rows, start=1):
            steps = progress.add_task(str(row), total=benchmark.num_steps(row))
            started = time.perf_counter()
            try:
                cells = benchmark.measure(row, lambda step, bar=steps: progress.update(bar, completed=step))
            except RowFailedError as error:
                failures.append(str(error))
                console.print(f"[{place}/{len(rows)}] {error}")
                continue
            finally:
                progress.remove_task(steps)
                progress.advance(all_rows)
            kind, key = benchmark.address(row)
            benchmark.store.append(kind, key | cells | {"date": datetime.now(UTC).isoformat(timespec="seconds")})
            seconds = time.perf_counter() - started
            console.print(f"[{place}/{len(rows)}] {row}: {benchmark.summary(cells)}; took {seconds:.1f} s")
    return failures
