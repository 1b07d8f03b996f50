"""The command line of scripts/train.py: one run or a sweep by Hydra, what is printed, and the exit code."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

import hydra
from omegaconf import DictConfig
from rich.console import Console

from palimpsa.config.compose import CONFIG_DIR, read_arguments
from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.config.schema import register_schema, typed
from palimpsa.runs.files import LockHeldError
from palimpsa.runs.progress import SweepProgress
from palimpsa.runs.schema import DIVERGED, FAILED
from palimpsa.sweeps.child_process import run_in_child_process
from palimpsa.sweeps.hydra_plugin import current_sweep, register_sweeper
from palimpsa.sweeps.launchers import LAUNCHER_VARIABLE, worker_ends_with_sweep
from palimpsa.sweeps.ledger import MISSING, RUNNING, Ledger
from palimpsa.sweeps.plan import CONFIG_NAME, plan_command_line
from palimpsa.sweeps.sweep import Sweep
from palimpsa.training.gpus import gpu_is_unusable

# A launcher's worker knows of this module alone, and composes the config of its run itself.
register_schema()


def train_task(cfg: DictConfig) -> None:
    """What Hydra calls for each run, in a process of the launcher's."""
    config = typed(cfg)
    with worker_ends_with_sweep():
        if gpu_is_unusable():
            run_in_child_process(config)
        else:
            # Here and not above: torch.
            from palimpsa.training.run import run

            run(config)


def train_main() -> None:
    """Trains one run or a sweep.

    Exit codes: 0 where all runs are finished, 1 where one is not, 2 where the command line, a config or a directory is
    wrong, 130 where it was interrupted.
    """
    arguments = read_arguments()
    # Hydra then raises what it would print in words of its own.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register_sweeper()
    start_hydra = hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=CONFIG_NAME)(train_task)
    try:
        if arguments.help or arguments.hydra_help or arguments.info or arguments.shell_completion:
            start_hydra()
            return
        if arguments.cfg and arguments.multirun:
            raise ConfigError("--cfg: got -m with it, expected one run, whose config it shows")
        sweep = plan_command_line(arguments.overrides, arguments.multirun, arguments.config_dir)
        if sweep is None or arguments.cfg:
            start_hydra()
        else:
            _run_sweep(sweep, start_hydra)
    except (ConfigError, RunDirectoryError) as error:
        _print_to_stderr(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        _print_to_stderr("interrupted; the same command goes on where it stopped")
        sys.exit(130)


def _run_sweep(sweep: Sweep, start_hydra: Callable[[], None]) -> None:
    """Shows the ledger, launches what is left, shows it again; ends with 1 where a run did not end."""
    console = Console()
    with contextlib.ExitStack() as stack:
        holder = None
        try:
            stack.enter_context(sweep.locked())
        except LockHeldError as error:
            holder = error.holder
        ledger = sweep.survey()
        ledger.print(console, f"{ledger.num_runs} runs below {sweep.directory}")
        for line in [*ledger.detail_lines(), *sweep.new_choices()]:
            _print_to_stderr(line, style="default")
        if holder is not None:
            raise RunDirectoryError(
                f"results_dir: {sweep.directory} is swept by another process ({holder}), expected one sweep at a time; "
                "wait for it, or choose another results_dir"
            )
        if jobs := ledger.jobs_to_launch():
            os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
            num_jobs = len(jobs) + sum(ledger.num_waiting.values())
            with (
                SweepProgress(num_jobs, sweep.directory / ".progress") as progress,
                current_sweep(sweep, progress.print_lines),
            ):
                start_hydra()
            sweep.record_failures(progress.failures)
            ledger = sweep.survey()
            ledger.print(console, f"{ledger.num_runs} runs below {sweep.directory}")
    _print_learning_rates(ledger, console)
    if num_diverged := len(ledger.with_status(DIVERGED)):
        _print_to_stderr(
            f"{num_diverged} of {ledger.num_runs} runs diverged: they count as 0%, and are not tried again"
        )
    if not ledger.complete:
        _print_unfinished(sweep, ledger)
        sys.exit(1)


def _print_learning_rates(ledger: Ledger, console: Console) -> None:
    """The table of a sweep over learning rates; nothing for another one."""
    # Here and not above: pandas.
    from palimpsa.analysis.sweep_table import print_learning_rates

    print_learning_rates([entry.job.directory for entry in ledger.entries], console=console)


def _print_unfinished(sweep: Sweep, ledger: Ledger) -> None:
    num_failed, num_running, num_missing = (len(ledger.with_status(kind)) for kind in (FAILED, RUNNING, MISSING))
    if num_failed:
        _print_to_stderr(f"{num_failed} of {ledger.num_runs} runs failed:")
    for line in ledger.detail_lines():
        _print_to_stderr(f"  {line}")
    if num_running:
        _print_to_stderr(f"{num_running} of {ledger.num_runs} runs are at work in other processes and were left alone")
    if num_missing:
        error = sweep.launcher_error
        reason = "" if error is None else f" ({type(error).__name__}: {' '.join(str(error).split())})"
        _print_to_stderr(f"{num_missing} of {ledger.num_runs} runs did not end{reason}")
    for line in sweep.undecided_models():
        _print_to_stderr(line)
    _print_to_stderr("the same command does what is left")


def _print_to_stderr(line: str, style: str = "red") -> None:
    Console(stderr=True).print(line, style=style, markup=False, highlight=False, soft_wrap=True)
