"""The command line of scripts/train.py: Hydra, with every mistake told at once, in one line, before a run starts."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from palimpsa.config.compose import CONFIG_DIR, Composer, check_writable, explain, parse_overrides
from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.config.schema import TrainConfig, register_schema, typed
from palimpsa.runs.files import LockHeldError
from palimpsa.runs.progress import SweepProgress
from palimpsa.sweeps.child_process import run_in_own_process
from palimpsa.sweeps.launchers import LAUNCHER_VARIABLE, check_launcher, leaving_with_the_sweep, runs_elsewhere
from palimpsa.sweeps.ledger import Job, Ledger
from palimpsa.sweeps.sweep import SWEEPER_NAME, Sweep, register_sweeper, under_way
from palimpsa.training.gpus import gpu_is_unusable
from palimpsa.training.preflight import check_run

CONFIG_NAME = "train"

register_schema()


def train_task(cfg: DictConfig) -> None:
    """What Hydra calls for each run, in a process of the launcher's."""
    with leaving_with_the_sweep():
        if gpu_is_unusable():
            run_in_own_process(cfg)
        else:
            # Here and not above: torch.
            from palimpsa.training.run import run

            run(typed(cfg))


def train_main() -> None:
    """Trains one run or a sweep.

    Exit codes: 0 where all runs are finished, 1 where one is not, 2 where the command line, a config or a directory is
    wrong, 130 where it was interrupted.
    """
    arguments = get_args_parser().parse_args()
    # Hydra then raises what it would print in words of its own.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    register_sweeper()
    start = hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=CONFIG_NAME)(train_task)
    try:
        if arguments.help or arguments.hydra_help or arguments.info or arguments.shell_completion:
            start()
            return
        if arguments.cfg and arguments.multirun:
            raise ConfigError("--cfg: got -m with it, expected one run, whose config it shows")
        _, sweep = preflight(arguments.overrides, arguments.multirun, arguments.config_dir)
        if sweep is None or arguments.cfg:
            start()
        else:
            _sweep(start, sweep)
    except (ConfigError, RunDirectoryError) as error:
        _tell(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        _tell("interrupted; the same command goes on where it stopped")
        sys.exit(130)


def _sweep(start: Callable[[], None], sweep: Sweep) -> None:
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
        for line in [*ledger.lines(), *sweep.news()]:
            _tell(line, style="default")
        if holder is not None:
            raise RunDirectoryError(
                f"results_dir: {sweep.directory} is swept by another process ({holder}), expected one sweep at a time; "
                "wait for it, or choose another results_dir"
            )
        if ledger.left():
            os.environ[LAUNCHER_VARIABLE] = str(os.getpid())
            num_jobs = len(ledger.left()) + sum(ledger.num_waiting.values())
            with (
                SweepProgress(num_jobs, sweep.directory / ".progress") as progress,
                under_way(sweep, progress.print_lines),
            ):
                start()
            sweep.learn(progress.failures)
            ledger = sweep.survey()
            ledger.print(console, f"{ledger.num_runs} runs below {sweep.directory}")
    _print_learning_rates(ledger, console)
    if num_diverged := sum(entry.diverged for entry in ledger.entries):
        _tell(f"{num_diverged} of {ledger.num_runs} runs diverged: they count as 0%, and are not tried again")
    if not ledger.complete:
        _tell_rest(sweep, ledger)
        sys.exit(1)


def _print_learning_rates(ledger: Ledger, console: Console) -> None:
    """The table of a sweep over learning rates; nothing for another one."""
    # Here and not above: pandas.
    from palimpsa.analysis.sweep_table import print_learning_rates

    print_learning_rates([entry.job.directory for entry in ledger.entries], console=console)


def _tell_rest(sweep: Sweep, ledger: Ledger) -> None:
    num_failed, num_running, num_missing = (len(ledger.of(status)) for status in ("failed", "running", "missing"))
    if num_failed:
        _tell(f"{num_failed} of {ledger.num_runs} runs failed:")
    for line in ledger.lines():
        _tell(f"  {line}")
    if num_running:
        _tell(f"{num_running} of {ledger.num_runs} runs are at work in other processes and were left alone")
    if num_missing:
        fault = sweep.fault
        reason = "" if fault is None else f" ({type(fault).__name__}: {' '.join(str(fault).split())})"
        _tell(f"{num_missing} of {ledger.num_runs} runs did not end{reason}")
    for line in sweep.undecided():
        _tell(line)
    _tell("the same command does what is left")


def _tell(line: str, style: str = "red") -> None:
    Console(stderr=True).print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def preflight(overrides: list[str], multirun: bool, config_dir: str | None = None) -> tuple[DictConfig, Sweep | None]:
    """Composes and checks what a command line asks for, before anything starts.

    Args:
        overrides: the command line without flags, sweeps included.
        multirun: whether -m was given.
        config_dir: a folder of more configs (--config-dir).

    Returns:
        the config of the first run, Hydra's part included, and the sweep, None for a single run.

    Raises:
        ConfigError: naming the key, with the nearest known one.
    """
    register_sweeper()
    if config_dir is not None and not Path(config_dir).is_dir():
        raise ConfigError(f"--config-dir: got {config_dir!r}, expected a folder of configs")
    if config_dir is not None:
        overrides = [*overrides, f"hydra.searchpath=[file://{Path(config_dir).resolve()}]"]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        try:
            return _preflight(overrides, multirun)
        except yaml.YAMLError as error:
            raise ConfigError(f"configs: got a file that is not YAML: {' '.join(str(error).split())}") from error
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(explain(error, overrides, CONFIG_NAME, TrainConfig)) from error
        except ValueError as error:
            # Hydra's own, of a group that is set to something else than a name.
            if "Config group override" not in str(error):
                raise
            raise ConfigError(f"{' '.join(overrides)}: {' '.join(str(error).split())}") from error


def _preflight(overrides: list[str], multirun: bool) -> tuple[DictConfig, Sweep | None]:
    first = _compose(_combinations(overrides)[0], multirun)
    if not multirun and first.hydra.mode != RunMode.MULTIRUN:
        sweeps = [override.input_line for override in parse_overrides(overrides) if override.is_sweep_override()]
        if sweeps:
            raise ConfigError(f"{sweeps[0]}: got several values, expected one; add -m to sweep over them")
        check_launcher(first)
        _check_run(first)
        return first, None
    if first.hydra.sweeper._target_ != SWEEPER_NAME:
        raise ConfigError(f"hydra/sweeper: got {first.hydra.runtime.choices['hydra/sweeper']!r}, expected phased")
    size = first.hydra.sweeper.max_batch_size
    if size is not None and not (isinstance(size, int) and size > 0):
        raise ConfigError(f"hydra.sweeper.max_batch_size: got {size!r}, expected > 0, or null for all at once")
    command_line = [*(f"{key}={value}" for key, value in (first.hydra.sweeper.params or {}).items()), *overrides]
    combinations = _combinations(command_line)
    if len(set(map(tuple, combinations))) < len(combinations):
        for override in parse_overrides(command_line):
            values = str(override.input_line)
            if override.is_sweep_override() and len({*_values(values)}) < len(_values(values)):
                raise ConfigError(f"{values}: a value of the sweep stands there twice")
    first = _compose(combinations[0], True)
    check_launcher(first)
    jobs = _jobs(combinations)
    seeds = first.hydra.sweeper.selection_seeds
    if seeds is not None:
        seeds = _selection_seeds(seeds, jobs)
    return first, Sweep(Path(first.hydra.sweep.dir), jobs, seeds)


def _values(override: str) -> list[str]:
    """What one override of a sweep alone makes of a run's command line, value by value."""
    return [text for (text,) in BasicSweeper.split_arguments(parse_overrides([override]), None)[0]]


def _combinations(overrides: list[str]) -> list[list[str]]:
    """The overrides of each run that Hydra's basic sweeper makes of a command line."""
    parsed = parse_overrides(overrides)
    for override in parsed:
        if override.is_sweep_override() and override.is_hydra_override():
            key, values = override.get_key_element(), override.get_value_string()
            raise ConfigError(f"{key}: got {values}, expected one value of Hydra's own keys; in quotes: \"'{values}'\"")
    combinations = BasicSweeper.split_arguments(parsed, None)[0]
    if not combinations:
        raise ConfigError(f"{' '.join(overrides)}: the sweep has no run; does a glob(...) match none of its group?")
    return combinations


def _jobs(combinations: list[list[str]]) -> list[Job]:
    """The runs of a sweep, checked: each of its values in one run, and all directories."""
    composer = Composer(CONFIG_NAME)
    jobs: dict[Path, Job] = {}
    seen: set[str] = set()
    for combination in combinations:
        cfg, config = composer.compose(combination)
        if not seen.issuperset(combination):
            seen.update(combination)
            _check_run(cfg)
        # Hydra's own keys are those of the whole sweep.
        own = tuple(text for text in combination if not text.lstrip("+~").startswith(("hydra.", "hydra/")))
        job = Job(own, config)
        other = jobs.setdefault(job.directory, job)
        if other is not job:
            different = [text for text in own if text not in other.overrides] or own
            raise ConfigError(
                f"{', '.join(different)}: this run and another of the sweep would share the directory {job.directory}; "
                "a sweep varies model, task, scale, variant, optimizer.lr and seed"
            )
    places = {job.config["results_dir"] for job in jobs.values()}
    if len(places) > 1:
        raise ConfigError(
            f"results_dir: got {', '.join(sorted(places))}, expected one for the whole sweep; a comma in a path needs "
            "quotes: \"results_dir='a,b'\""
        )
    return list(jobs.values())


def _selection_seeds(value: Any, jobs: Sequence[Job]) -> frozenset[int]:
    """The seeds of the first phase, written as those of the sweep are."""
    key = "hydra.sweeper.selection_seeds"
    text = ",".join(map(str, value)) if isinstance(value, ListConfig) else str(value)
    keys = {override.partition("=")[0].lstrip("+") for override in jobs[0].overrides}
    for swept in ("optimizer.lr", "seed"):
        if swept not in keys:
            raise ConfigError(f"{key}: got {text}, expected null where {swept} is not swept; two phases need both")
    (override,) = parse_overrides([f"seed={text}"])
    chosen = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    seeds = {job.seed for job in jobs}
    known = frozenset(seed for seed in chosen if isinstance(seed, int) and seed in seeds)
    if not chosen or len(known) < len(chosen):
        expected = ",".join(map(str, sorted(seeds)))
        raise ConfigError(f"{key}: got {text}, expected some of the values of seed ({expected}), or null for one phase")
    return known


def _compose(overrides: list[str], multirun: bool) -> DictConfig:
    cfg = compose(CONFIG_NAME, overrides, return_hydra_config=True)
    if multirun:
        cfg.hydra.mode = RunMode.MULTIRUN
    return cfg


def _check_run(cfg: DictConfig) -> None:
    check_run(typed(cfg), elsewhere=runs_elsewhere(cfg))
    check_writable(cfg.results_dir, Path(cfg.run_dir))
