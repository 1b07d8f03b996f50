"""The command line of scripts/train.py: one run or a sweep, what is printed, and the exit code."""

from __future__ import annotations

import errno
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from palimpsa.config.compose import CONFIG_DIR, composition, read_arguments
from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.config.process import plain_console
from palimpsa.config.schema import TrainConfig, plain
from palimpsa.runs.files import LockHeldError
from palimpsa.runs.progress import SweepProgress
from palimpsa.runs.result import status_of
from palimpsa.runs.schema import DIVERGED, FAILED, ResultError
from palimpsa.sweeps.estimate import describe_time
from palimpsa.sweeps.launch import train
from palimpsa.sweeps.launchers import LAUNCHER_VARIABLE
from palimpsa.sweeps.ledger import MISSING, RUNNING, Ledger
from palimpsa.sweeps.plan import CONFIG_NAME, plan_command_line
from palimpsa.sweeps.sweep import Launch, Sweep
from palimpsa.training.loggers import run_name

DISK_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
# What a command shows instead of running.
SHOWN = ("help", "hydra_help", "info", "shell_completion", "cfg")
# Of these, one at a time.
COMMANDS = ("cfg", "info", "shell_completion", "run", "multirun")


def train_main(then: Callable[[Sequence[dict[str, Any]], int], int] | None = None) -> None:
    """Trains one run or a sweep.

    Exit codes: 0 where all runs are finished, 1 where one is not or a file cannot be written, 2 where the command line,
    a config or a directory is wrong, 130 where it was interrupted.

    Args:
        then: called with the plain configs of the runs and the exit code, once they have ended; returns another one.
    """
    # Hydra then raises what it would print in words of its own.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        code = _carry_out(read_arguments(), then)
    except (ConfigError, RunDirectoryError) as error:
        _print_to_stderr(f"error: {error}")
        # The directory is right, and its disk is not.
        code = 1 if getattr(error.__cause__, "errno", None) in DISK_FAILURES else 2
    except (ResultError, OSError) as error:
        _print_to_stderr(f"error: {error}")
        code = 1
    except KeyboardInterrupt as error:
        _print_to_stderr(f"{str(error) or 'interrupted'}; the same command goes on where it stopped")
        code = 130
    if code:
        sys.exit(code)


def _carry_out(arguments: Namespace, then: Callable[[Sequence[dict[str, Any]], int], int] | None) -> int:
    _check_flags(arguments)
    name = arguments.config_name or CONFIG_NAME
    overrides = [*arguments.overrides, *(["hydra.mode=RUN"] if arguments.run else [])]
    shown = [flag for flag in SHOWN if getattr(arguments, flag)]
    if shown and not arguments.cfg:
        _show(shown[0], name, arguments)
        return 0
    plan = plan_command_line(overrides, arguments.multirun, arguments.config_dir, name)
    if shown:
        _show("cfg", name, arguments)
        return 0
    if isinstance(plan, Sweep):
        configs, code = [job.config for job in plan.jobs], run_sweep(plan, plan.launch)
    else:
        configs, code = [plain(plan)], _run_alone(plan)
    return then(configs, code) if then is not None else code


def _check_flags(arguments: Namespace) -> None:
    """Refuses the flags of Hydra's that would change a run without the checks, and those that say nothing together."""
    for flag, advice in (
        ("config_path", "configs/ with what --config-dir adds to it"),
        ("experimental_rerun", "the command of the run again, which goes on where it stopped"),
    ):
        if (value := getattr(arguments, flag)) is not None:
            raise ConfigError(f"--{flag.replace('_', '-')}: got {value!r}, expected none: {advice}")
    if arguments.cfg and arguments.multirun:
        raise ConfigError("--cfg: got -m with it, expected one run, whose config it shows")
    given = [f"--{flag.replace('_', '-')}" for flag in COMMANDS if getattr(arguments, flag)]
    if len(given) > 1:
        raise ConfigError(f"{given[0]}: got {' and '.join(given[1:])} with it, expected one of them")
    if arguments.package is not None and not arguments.cfg:
        raise ConfigError(f"--package: got {arguments.package!r}, expected --cfg with it")
    if arguments.resolve and not (arguments.cfg or arguments.help):
        raise ConfigError("--resolve: got no --cfg with it, expected --cfg, whose interpolations it resolves")


def _show(flag: str, config_name: str, arguments: Namespace) -> None:
    """Has Hydra print what a flag asks for."""
    # Its own reading of the command line wants the overrides side by side.
    flags = [word for word in sys.argv[1:] if word not in arguments.overrides]
    sys.argv[1:] = [*arguments.overrides, *flags]
    try:
        hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)(lambda config: None)()
    except (HydraException, OmegaConfBaseException) as error:
        # What there is to choose from is known within it.
        with composition(arguments.overrides, arguments.config_dir):
            raise error
    except ValueError as error:
        raise ConfigError(f"--{flag.replace('_', '-')}: {' '.join(str(error).split())}") from error


def _run_alone(config: TrainConfig) -> int:
    """One run, in this process; of an error that is no mistake of the program's a line."""
    try:
        train(config)
    except (FloatingPointError, OSError) as error:
        told = " ".join(str(error).split())
        _print_to_stderr(f"{run_name(config)}: {status_of(error)}, {type(error).__name__}: {told}")
        return 1
    return 0


def run_sweep(sweep: Sweep, launch: Launch) -> int:
    """Shows the ledger, launches what is left, shows it again; returns 1 where a run did not end."""
    console = plain_console()
    ledger = sweep.survey()
    ledger.print(console, f"{ledger.num_runs} runs below {sweep.directory}")
    for line in [*ledger.detail_lines(), *sweep.new_choices()]:
        _print_to_stderr(line, style="default")
    # What has ended is shown without a lock: it may lie where nobody can write any more.
    if ledger.jobs_to_launch():
        if line := describe_time(ledger.jobs_to_launch(), sum(ledger.num_waiting.values())):
            console.print(line, soft_wrap=True)
        try:
            with sweep.locked():
                ledger = _launch_missing(sweep, launch, ledger)
        except LockHeldError as error:
            raise RunDirectoryError(
                f"results_dir: {sweep.directory} is swept by another process ({error.holder}), expected one sweep at a "
                "time; wait for it, or choose another results_dir"
            ) from error
        ledger.print(console, f"{ledger.num_runs} runs below {sweep.directory}")
    _print_learning_rates(ledger, console)
    if num_diverged := len(ledger.with_status(DIVERGED)):
        _print_to_stderr(
            f"{num_diverged} of {ledger.num_runs} runs diverged: they count as 0%, and are not tried again"
        )
    if not ledger.complete:
        _print_unfinished(sweep, ledger)
        return 1
    return 0


def _launch_missing(sweep: Sweep, launch: Launch, ledger: Ledger) -> Ledger:
    os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
    num_jobs = len(ledger.jobs_to_launch()) + sum(ledger.num_waiting.values())
    with SweepProgress(num_jobs, sweep.directory / ".progress") as progress:
        sweep.run(launch, progress.print_lines)
    sweep.record_failures(progress.failures)
    return sweep.survey()


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
    plain_console(stderr=True).print(line, style=style, soft_wrap=True)
