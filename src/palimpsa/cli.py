"""The command line of scripts/train.py: Hydra, with every mistake told at once, in one line, before a run starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from palimpsa.checks import check_config, check_device
from palimpsa.composition import CONFIG_DIR, check_writable, explain
from palimpsa.config import TrainConfig, register_schema
from palimpsa.errors import ConfigError, RunDirectoryError
from palimpsa.progress import SweepProgress

CONFIG_NAME = "train"

register_schema()


def train_task(cfg: DictConfig) -> None:
    """What Hydra calls for each run, in a process of the launcher's."""
    from palimpsa.training import run

    run(cfg)


def train_main() -> None:
    """Trains one run or a sweep.

    Exit codes: 0, 1 where a run failed, 2 where the command line or a config is wrong, 130 where it was interrupted.
    """
    arguments = get_args_parser().parse_args()
    # Hydra then raises what it would print in words of its own.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    start = hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=CONFIG_NAME)(train_task)
    try:
        if arguments.help or arguments.hydra_help or arguments.info or arguments.shell_completion:
            start()
            return
        cfg, num_jobs = preflight(arguments.overrides, arguments.multirun, arguments.config_dir)
        if num_jobs is None or arguments.cfg:
            start()
        else:
            _sweep(start, num_jobs, cfg.hydra.sweep.dir)
    except (ConfigError, RunDirectoryError) as error:
        _tell(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        _tell("interrupted; the same command goes on where it stopped")
        sys.exit(130)


def _sweep(start: Callable[[], None], num_jobs: int, directory: str) -> None:
    _tell(f"{num_jobs} runs below {directory}; finished ones are skipped", style="default")
    fault: Exception | None = None
    with SweepProgress(num_jobs) as progress:
        try:
            start()
        except Exception as error:
            # A failed run comes back as its exception after the others have ended; it has reported itself.
            fault = error
    if fault is not None and progress.num_ended == 0:
        raise fault
    if progress.failures:
        _tell(f"{len(progress.failures)} of {num_jobs} runs failed:")
        for failure in progress.failures:
            _tell(f"  {failure}")
    lost = num_jobs - progress.num_ended
    if lost:
        reason = "" if fault is None else f" ({type(fault).__name__}: {str(fault).strip().splitlines()[0]})"
        _tell(f"{lost} of {num_jobs} runs did not end{reason}; the same command goes on with them")
    if progress.failures or lost:
        sys.exit(1)


def _tell(line: str, style: str = "red") -> None:
    Console(stderr=True).print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def preflight(overrides: list[str], multirun: bool, config_dir: str | None = None) -> tuple[DictConfig, int | None]:
    """Composes and checks what a command line asks for, before anything starts.

    Args:
        overrides: the command line without flags, sweeps included.
        multirun: whether -m was given.
        config_dir: a folder of more configs (--config-dir).

    Returns:
        the config of the first run, Hydra's part included, and the number of runs, None for a single run.

    Raises:
        ConfigError: naming the key, with the nearest known one.
    """
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


def _preflight(overrides: list[str], multirun: bool) -> tuple[DictConfig, int | None]:
    first = _compose(_jobs(overrides)[0], multirun)
    if not multirun and first.hydra.mode != RunMode.MULTIRUN:
        sweeps = [override.input_line for override in _parse(overrides) if override.is_sweep_override()]
        if sweeps:
            raise ConfigError(f"{sweeps[0]}: got several values, expected one; add -m to sweep over them")
        _check_run(first)
        return first, None
    parameters = [f"{key}={value}" for key, value in (first.hydra.sweeper.params or {}).items()]
    jobs = _jobs(parameters + overrides)
    if len(set(map(tuple, jobs))) < len(jobs):
        raise ConfigError(f"{' '.join(parameters + overrides)}: a value of the sweep stands there twice")
    first = _compose(jobs[0], True)
    directories: dict[str, list[str]] = {}
    # Every value of every swept key once, the others at their first value, rather than every combination.
    seen: set[str] = set()
    for job in jobs:
        if seen.issuperset(job):
            continue
        new = [override for override in job if override not in seen]
        seen.update(job)
        cfg = _compose(job, True)
        _check_run(cfg)
        if cfg.run_dir in directories:
            raise ConfigError(
                f"{', '.join(new)}: this run and another of the sweep would share the directory {cfg.run_dir}; "
                "a sweep varies model, task, scale, variant, optimizer.lr and seed"
            )
        directories[cfg.run_dir] = job
    return first, len(jobs)


def _parse(overrides: list[str]) -> list[Override]:
    # The loader lets the parser expand glob(*).
    return OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(overrides)


def _jobs(overrides: list[str]) -> list[list[str]]:
    """The overrides of each run that Hydra's basic sweeper makes of a command line."""
    jobs = BasicSweeper.split_arguments(_parse(overrides), None)[0]
    if not jobs:
        raise ConfigError(f"{' '.join(overrides)}: the sweep has no run; does a glob(...) match none of its group?")
    return jobs


def _compose(overrides: list[str], multirun: bool) -> DictConfig:
    cfg = compose(CONFIG_NAME, overrides, return_hydra_config=True)
    if multirun:
        cfg.hydra.mode = RunMode.MULTIRUN
    return cfg


def _check_run(cfg: DictConfig) -> None:
    check_config(cfg)
    check_device(cfg)
    check_writable(cfg.results_dir, Path(cfg.run_dir))
