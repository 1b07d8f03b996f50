"""What a command line asks for, checked before anything starts: one run, or a sweep with its jobs and its phases."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig

from palimpsa.config.checks import check_writable
from palimpsa.config.compose import (
    Composer,
    composition,
    expand_sweep,
    hydra_context,
    parse_overrides,
)
from palimpsa.config.errors import ConfigError
from palimpsa.config.schema import TrainConfig, plain, typed
from palimpsa.runs.directory import RunDirectory
from palimpsa.sweeps.hydra_keys import check_hydra_keys, check_hydra_overrides
from palimpsa.sweeps.launch import HydraLaunch
from palimpsa.sweeps.launchers import check_launcher, runs_on_other_machines
from palimpsa.sweeps.ledger import Job
from palimpsa.sweeps.sweep import Sweep
from palimpsa.tasks.data_digests import with_data_digests
from palimpsa.training.distributed import is_distributed
from palimpsa.training.preflight import check_run

CONFIG_NAME = "train"


def plan_command_line(
    overrides: Sequence[str],
    multirun: bool,
    config_dir: str | None = None,
    config_name: str = CONFIG_NAME,
) -> Sweep | TrainConfig:
    """Composes and checks what a command line asks for. Writes nothing.

    Args:
        overrides: the command line without flags, values of a sweep included.
        multirun: whether -m was given; without it hydra.mode says whether it is a sweep.
        config_dir: a folder of more configs (--config-dir).
        config_name: the primary config, of configs/ or of that folder (--config-name).

    Returns:
        the sweep, or the config of a single run.

    Raises:
        ConfigError: naming the key, with the nearest known one.
    """
    with composition(overrides, config_dir):
        check_hydra_overrides(overrides)
        first = _compose_with_hydra(config_name, _combinations(overrides)[0])
        if first.hydra.mode == RunMode.RUN and multirun:
            raise ConfigError("hydra.mode: got RUN with --multirun, expected one of them")
        if multirun or first.hydra.mode == RunMode.MULTIRUN:
            return _plan_sweep(first, overrides)
        for override in parse_overrides(overrides):
            if override.is_sweep_override():
                raise ConfigError(f"{override.input_line}: got several values, expected one; add -m to sweep over them")
        first.hydra.mode = RunMode.RUN
        check_launcher(first)
        config = _with_start(with_data_digests(typed(first)))
        _check_run(config, elsewhere=runs_on_other_machines(first))
        return config


def _plan_sweep(first: DictConfig, overrides: Sequence[str]) -> Sweep:
    """The sweep of a command line and of the `params` of its config, which the command line overrides."""
    if is_distributed():
        raise ConfigError("--multirun: got a sweep under torchrun, expected one run, whose processes share its steps")
    sweeper = first.hydra.sweeper
    size = sweeper.max_batch_size
    if size is not None and not (isinstance(size, int) and size > 0):
        raise ConfigError(f"hydra.sweeper.max_batch_size: got {size!r}, expected > 0, or null for all at once")
    overrides = [*(f"{key}={values}" for key, values in (sweeper.params or {}).items()), *overrides]
    combinations = _combinations(overrides)
    if len(set(map(tuple, combinations))) < len(combinations):
        _name_repeated_values(overrides)
    return _sweep_of(combinations, first.hydra.job.config_name)


def plan_runs(combinations: Sequence[Sequence[str]], config_name: str = CONFIG_NAME) -> Sweep:
    """A sweep of runs whose command lines are given one by one, as `plan_command_line` has those that it makes.

    Args:
        combinations: one value a key each; hydra/launcher and its keys, of the first, are the sweep's.

    Raises:
        ConfigError: see `plan_command_line`.
    """
    with composition(combinations[0]):
        for overrides in combinations:
            check_hydra_overrides(overrides)
        return _sweep_of(combinations, config_name)


def _sweep_of(combinations: Sequence[Sequence[str]], config_name: str) -> Sweep:
    first = _compose_with_hydra(config_name, combinations[0])
    first.hydra.mode = RunMode.MULTIRUN
    check_launcher(first)
    jobs = _make_jobs(combinations, config_name, elsewhere=runs_on_other_machines(first))
    seeds = first.hydra.sweeper.selection_seeds
    directory = Path(jobs[0].config["results_dir"]) / "runs"
    launch = HydraLaunch(first, hydra_context(), directory)
    return Sweep(directory, jobs, None if seeds is None else _selection_seeds(seeds, jobs), launch)


def _combinations(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of each run, at least one."""
    for override in parse_overrides(overrides):
        if override.is_sweep_override() and override.key_or_group in ("experiment", "sweep"):
            raise ConfigError(f"{override.input_line}: got several values, expected one; a command is one sweep")
        if override.is_sweep_override() and override.is_hydra_override():
            key, values = override.get_key_element(), override.get_value_string()
            raise ConfigError(f"{key}: got {values}, expected one value of Hydra's own keys; in quotes: \"'{values}'\"")
    combinations = expand_sweep(overrides)
    if not combinations:
        raise ConfigError(f"{' '.join(overrides)}: the sweep has no run; does a glob(...) match none of its group?")
    return combinations


def _name_repeated_values(overrides: Sequence[str]) -> None:
    for override in parse_overrides(overrides):
        values = [value for (value,) in expand_sweep([str(override.input_line)])]
        if len(set(values)) < len(values):
            raise ConfigError(f"{override.input_line}: a value of the sweep stands there twice")


def _make_jobs(combinations: Sequence[Sequence[str]], config_name: str, *, elsewhere: bool) -> list[Job]:
    """The runs of a sweep, checked: each of its values in one run, and all directories."""
    composer = Composer(config_name, check_hydra_keys)
    jobs: dict[Path, Job] = {}
    checked: set[str] = set()
    for combination in combinations:
        config = _with_start(with_data_digests(typed(composer.compose(combination))))
        # A thousand finished runs need no look at their models, nor torch; whether they have ended is for the ledger.
        if not checked.issuperset(combination) and not RunDirectory(config.run_dir).seems_finished():
            checked.update(combination)
            _check_run(config, elsewhere=elsewhere)
        # Hydra's own keys are those of the whole sweep.
        own = tuple(text for text in combination if not text.lstrip("+~").startswith(("hydra.", "hydra/")))
        job = Job(own, plain(config))
        other = jobs.setdefault(job.directory, job)
        if other is not job:
            different = [text for text in own if text not in other.overrides] or own
            raise ConfigError(
                f"{', '.join(different)}: this run and another of the sweep would share the directory {job.directory}; "
                "a sweep varies model, task, scale, variant, optimizer.lr and seed"
            )
    results_dirs = {job.config["results_dir"] for job in jobs.values()}
    if len(results_dirs) > 1:
        raise ConfigError(
            f"results_dir: got {', '.join(sorted(results_dirs))}, expected one for the whole sweep; a comma in a path "
            "needs quotes: \"results_dir='a,b'\""
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


def _with_start(config: TrainConfig) -> TrainConfig:
    if config.start.weights is None and config.start.digest is None:
        return config
    # Here and not above: torch.
    from palimpsa.training.storage.start import with_start_digest

    return with_start_digest(config)


def _compose_with_hydra(config_name: str, overrides: Sequence[str]) -> DictConfig:
    cfg = compose(config_name, list(overrides), return_hydra_config=True)
    check_hydra_keys(cfg)
    return cfg


def _check_run(config: TrainConfig, *, elsewhere: bool) -> None:
    check_run(config, elsewhere=elsewhere)
    # One that has ended may lie where nobody can write any more.
    if not os.path.exists(RunDirectory(config.run_dir).result_file):
        check_writable(config.results_dir, Path(config.run_dir))
