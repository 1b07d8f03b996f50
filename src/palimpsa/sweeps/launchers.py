"""Checks of hydra/launcher, before anything starts: is it installed, can it work here, does a job get what it needs?

And what a worker does when its launcher is gone. How a launcher works, Slurm's requeueing too, is set in
configs/hydra/launcher/.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import multiprocessing
import os
import re
import shutil
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.types import RunMode
from omegaconf import DictConfig

from palimpsa.config.compose import BASIC_LAUNCHER
from palimpsa.config.errors import ConfigError

# Hydra 1.3 holds our YAMLs against the plugins' dataclasses of the same names, which finds misspelt keys and wrong
# types, and says at every composition, in every worker too, that later versions will not.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema")

# By the package of a launcher's class: what it needs beside itself, and the extra that installs both.
PACKAGES = {
    "hydra_plugins.hydra_joblib_launcher": ("joblib", None),
    "hydra_plugins.hydra_submitit_launcher": ("submitit", "slurm"),
    "hydra_plugins.hydra_ray_launcher": ("ray", "ray"),
}
SLURM = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
RAY = "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"
JOBLIB = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
# Sums and products of numbers and of the runs at a time.
PRE_DISPATCH = r"(n_jobs|\d+(\.\d*)?)( *[-+*/] *(n_jobs|\d+(\.\d*)?))*"
# The process whose workers others are.
LAUNCHER_VARIABLE = "PALIMPSA_LAUNCHER_PROCESS"
# How often a worker checks that its sweep is still there.
WATCH_S = 1.0
# Any of these gives a job of Slurm's a GPU.
SLURM_GPU_KEYS = ("gres", "gpus_per_node", "gpus_per_task")
# What a cluster gives names to: sbatch knows at once whether they exist.
SLURM_NAMES = ("partition", "account", "qos", "constraint", "gres")
SLURM_MINIMA = {
    "timeout_min": 1,
    "cpus_per_task": 1,
    "array_parallelism": 1,
    "signal_delay_s": 0,
    "max_num_timeout": 0,
}


@contextlib.contextmanager
def worker_ends_with_sweep() -> Iterator[None]:
    """Around a run in a worker of joblib's: should the sweep be killed, the worker ends this run, and then itself.

    Otherwise it would wait for more for ever, and keep its memory and its GPU. At Ctrl-C it ends at once: to joblib
    that is one more result, for which it would get the next run.
    """
    global _num_active_runs
    launcher = os.environ.get(LAUNCHER_VARIABLE)
    if launcher is None or not multiprocessing.current_process().name.startswith("Loky"):
        yield
        return
    _watch_launcher(int(launcher))
    _num_active_runs += 1
    try:
        yield
    except KeyboardInterrupt:
        os._exit(130)
    finally:
        _num_active_runs -= 1


_num_active_runs = 0


@functools.cache
def _watch_launcher(launcher: int) -> None:
    """Starts, once, a thread that ends this process when its launcher is gone and no run is at work."""

    def watch() -> None:
        while os.getppid() == launcher or _num_active_runs:
            time.sleep(WATCH_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def check_launcher(cfg: DictConfig) -> None:
    """Checks the launcher of a config before the first run.

    Args:
        cfg: composed with Hydra's own part; hydra.mode is MULTIRUN for a sweep.

    Raises:
        ConfigError: where a package or program is missing, for a launcher without a sweep, and for jobs that could not
            do their work; it names hydra/launcher or the key below it.
    """
    launcher = cfg.hydra.launcher
    target = str(launcher.get("_target_"))
    if target == BASIC_LAUNCHER:
        return
    name = cfg.hydra.runtime.choices.get("hydra/launcher") or target
    _check_installed(name, target)
    if cfg.hydra.mode != RunMode.MULTIRUN:
        raise ConfigError(
            f"hydra/launcher: got {name} for a single run, which starts here and now; add -m to launch it"
        )
    if target == JOBLIB:
        _check_joblib(launcher)
    if target in (SLURM, RAY) and cfg.trainer.gpus is not None:
        raise ConfigError(
            f"trainer.gpus: got {list(cfg.trainer.gpus)}, expected null with hydra/launcher={name}, which gives every "
            "run its GPU"
        )
    if target == SLURM:
        _check_slurm(name, launcher, cfg.trainer)
    if target == RAY:
        _check_ray(cfg)


def _check_joblib(launcher: DictConfig) -> None:
    """What joblib itself would find when the first run starts."""
    dispatch = str(launcher.pre_dispatch)
    for key, is_right, expected in (
        ("n_jobs", launcher.n_jobs != 0, "runs at a time, or -1 for one a core"),
        ("batch_size", re.fullmatch(r"auto|0*[1-9]\d*", str(launcher.batch_size)), "1 or more runs, or auto"),
        ("pre_dispatch", dispatch == "all" or re.fullmatch(PRE_DISPATCH, dispatch), "all, a number, or say 2*n_jobs"),
        ("timeout", launcher.timeout is None or launcher.timeout > 0, "seconds above 0, or null for any"),
    ):
        if not is_right:
            raise ConfigError(f"hydra.launcher.{key}: got {launcher[key]}, expected {expected}")
    _check_dispatch(dispatch, launcher.n_jobs)
    import joblib

    # Which looks at the rest when it is made, a size of memory say.
    options = {str(name): value for name, value in launcher.items() if name != "_target_"}
    # As the plugin takes them.
    options |= {name: int(value) for name, value in options.items() if isinstance(value, str) and value.isdecimal()}
    try:
        joblib.Parallel(**options)
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"hydra.launcher: joblib refuses it: {' '.join(str(error).split())}") from error


def _check_dispatch(dispatch: str, num_jobs: int) -> None:
    """Raises ConfigError for a `pre_dispatch` of sums and products that comes to no run at all."""
    if dispatch == "all":
        return
    num_jobs = num_jobs if num_jobs > 0 else os.cpu_count() or 1
    try:
        # Numbers and signs alone: see PRE_DISPATCH.
        number = eval(dispatch.replace("n_jobs", str(num_jobs)), {"__builtins__": {}})
    except (ArithmeticError, SyntaxError):
        number = 0
    if number < 1:
        raise ConfigError(f"hydra.launcher.pre_dispatch: got {dispatch}, expected 1 or more runs")


def runs_on_other_machines(cfg: DictConfig) -> bool:
    """Whether the launcher of a config, composed with Hydra's own part, starts its jobs on other machines than this."""
    target = cfg.hydra.launcher.get("_target_")
    # Without an address, Ray joins a cluster that it finds.
    return target == SLURM or (target == RAY and cfg.hydra.launcher.ray.init.get("address") != "local")


def _check_installed(name: str, target: str) -> None:
    package = ".".join(target.split(".")[:2])
    needed, extra = PACKAGES.get(package, (None, None))
    if all(map(_is_installed, filter(None, (package, needed)))):
        return
    missing = package.removeprefix("hydra_plugins.").replace("_", "-")
    advice = f'pip install -e ".[{extra}]"' if extra else f"pip install {missing}"
    raise ConfigError(f"hydra/launcher: got {name}, which needs a package that is not installed; {advice}")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        # Of the parent package.
        return False


def _check_ray(cfg: DictConfig) -> None:
    num_gpus = cfg.hydra.launcher.ray.remote.get("num_gpus")
    if cfg.trainer.accelerator == "gpu" and not num_gpus:
        raise ConfigError(
            f"hydra.launcher.ray.remote.num_gpus: got {num_gpus}, expected > 0 with trainer={cfg.trainer.name}: 1 "
            "gives a run a GPU, 0.5 packs two runs on each"
        )
    if runs_on_other_machines(cfg) and not Path(cfg.results_dir).is_absolute():
        raise ConfigError(
            f"results_dir: got {cfg.results_dir}, expected an absolute path on a Ray cluster, whose processes work "
            "in a directory of their own"
        )


def _check_slurm(name: str, launcher: Any, trainer: Any) -> None:
    missing = [program for program in ("sbatch", "srun") if shutil.which(program) is None]
    if missing:
        raise ConfigError(
            f"hydra/launcher: got {name}, which submits jobs to Slurm, and this machine has no "
            f"{' and no '.join(missing)} on its PATH; launch from a machine of the cluster, or with "
            "hydra/launcher=joblib on this one"
        )
    for key, least in SLURM_MINIMA.items():
        if launcher[key] is not None and launcher[key] < least:
            raise ConfigError(f"hydra.launcher.{key}: got {launcher[key]}, expected >= {least}")
    if launcher.signal_delay_s >= 60 * launcher.timeout_min:
        raise ConfigError(
            f"hydra.launcher.signal_delay_s: got {launcher.signal_delay_s}, expected less than the "
            f"{launcher.timeout_min} minutes of hydra.launcher.timeout_min"
        )
    for key in ("nodes", "tasks_per_node"):
        if launcher[key] != 1:
            raise ConfigError(f"hydra.launcher.{key}: got {launcher[key]}, expected 1: a run is one process")
    more = [str(key) for key in launcher.additional_parameters or ()]
    given = any(launcher[key] for key in SLURM_GPU_KEYS) or any("gres" in key or "gpus" in key for key in more)
    if trainer.accelerator == "gpu" and not given:
        raise ConfigError(
            f"hydra.launcher.gres: got null, expected a GPU for every job with trainer={trainer.name}; "
            "add hydra.launcher.gres=gpu:1"
        )
    _ask_slurm(name, launcher)


def _ask_slurm(name: str, launcher: Any) -> None:
    """Has sbatch check the names of a job's options; submits nothing."""
    options = [f"{key}={launcher[key]}" for key in SLURM_NAMES if launcher[key] is not None]
    command = ["sbatch", "--test-only", "--wrap=true", *(f"--{option}" for option in options)]
    try:
        asked = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=60)
    except subprocess.TimeoutExpired as error:
        raise ConfigError("hydra/launcher: Slurm did not answer sbatch --test-only within 60 s") from error
    reasons = asked.stderr.splitlines()
    # Any other refusal may be of the moment, such as a node that is down: the job would wait for it.
    final = ("invalid", "unable to", "could not establish", "fatal")
    refusal = next((reason for reason in reasons if any(word in reason.lower() for word in final)), None)
    if asked.returncode != 0 and refusal is not None:
        got = f"hydra.launcher: got {', '.join(options)}" if options else f"hydra/launcher: got {name}"
        raise ConfigError(f"{got}, and Slurm says: {refusal.strip()}")
