"""The command line of scripts/train.py: Hydra, with every mistake told at once, in one line, before a run starts."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from palimpsa.checks import check_config
from palimpsa.config import register_schema
from palimpsa.errors import ConfigError, RunDirectoryError, nearest
from palimpsa.progress import SweepProgress

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"
CONFIG_NAME = "train"

register_schema()


def train_task(cfg: DictConfig) -> None:
    """What Hydra calls for each run, in a process of the launcher's."""
    from palimpsa.training import run

    run(cfg)


def train_main() -> None:
    """Trains one run or a sweep; exit code 0, 1 where a run failed, 2 where the command line or a config is wrong."""
    arguments = get_args_parser().parse_args()
    console = Console(stderr=True)
    # Hydra then raises what it would print in words of its own.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    start = hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=CONFIG_NAME)(train_task)
    if arguments.help or arguments.hydra_help or arguments.cfg or arguments.info or arguments.shell_completion:
        start()
        return
    try:
        cfg, num_jobs = preflight(arguments.overrides, arguments.multirun)
        if num_jobs is None:
            start()
            return
    except (ConfigError, RunDirectoryError) as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)

    console.print(f"{num_jobs} runs below {cfg.hydra.sweep.dir}; finished ones are skipped", highlight=False)
    with SweepProgress(num_jobs) as progress:
        try:
            # One bar for the sweep instead of one a run.
            sys.argv.append("trainer.progress_bar=false")
            start()
        except Exception:
            # A failed run comes back as its exception, after all others have ended; any other exception is a fault.
            if not progress.wait_for_failures():
                raise
    if progress.failures:
        console.print(f"{len(progress.failures)} of {num_jobs} runs failed:", style="red")
        for failure in progress.failures:
            console.print(f"  {failure}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def preflight(overrides: list[str], multirun: bool) -> tuple[DictConfig, int | None]:
    """Composes and checks what a command line asks for, before anything starts.

    Args:
        overrides: the command line without flags, sweeps included.
        multirun: whether -m was given.

    Returns:
        the config of the first run, Hydra's part included, and the number of runs, None for a single run.

    Raises:
        ConfigError: naming the key, with the nearest known one.
    """
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        try:
            return _preflight(overrides, multirun)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_explain(error, overrides)) from error


def _preflight(overrides: list[str], multirun: bool) -> tuple[DictConfig, int | None]:
    first = _compose(_jobs(overrides)[0], multirun)
    if not multirun and first.hydra.mode != RunMode.MULTIRUN:
        sweeps = [o.input_line for o in OverridesParser.create().parse_overrides(overrides) if o.is_sweep_override()]
        if sweeps:
            raise ConfigError(f"{sweeps[0]}: got several values, expected one; add -m to sweep over them")
        _check_run(first)
        return first, None
    parameters = [f"{key}={value}" for key, value in (first.hydra.sweeper.params or {}).items()]
    jobs = _jobs(parameters + overrides)
    # Every value of every swept key once, rather than every combination.
    seen: set[str] = set()
    for job in jobs:
        if not seen.issuperset(job):
            seen.update(job)
            _check_run(_compose(job, True))
    return _compose(jobs[0], True), len(jobs)


def _jobs(overrides: list[str]) -> list[list[str]]:
    """The overrides of each run that Hydra's basic sweeper makes of a command line."""
    return BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), None)[0]


def _compose(overrides: list[str], multirun: bool) -> DictConfig:
    cfg = compose(CONFIG_NAME, overrides, return_hydra_config=True)
    if multirun:
        cfg.hydra.mode = RunMode.MULTIRUN
    return cfg


def _check_run(cfg: DictConfig) -> None:
    check_config(cfg)
    needs_gpu = cfg.scale.requires_gpu or cfg.trainer.accelerator == "gpu"
    if needs_gpu:
        import torch

        asked_by = f"scale={cfg.scale.name}" if cfg.scale.requires_gpu else f"trainer={cfg.trainer.name}"
        if not torch.cuda.is_available():
            raise ConfigError(
                f"{asked_by}: needs an NVIDIA GPU that PyTorch can use (one H200 is what it is sized for), and this "
                "machine has none; scale=laptop with trainer=cpu runs anywhere"
            )
        if cfg.trainer.accelerator != "gpu":
            raise ConfigError(
                f"trainer: got {cfg.trainer.name}, expected a GPU trainer with {asked_by}; add trainer=gpu"
            )
    _check_writable(Path(cfg.results_dir))


def _check_writable(results_dir: Path) -> None:
    try:
        results_dir.mkdir(parents=True, exist_ok=True)
        probe = results_dir / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"results_dir: got {str(results_dir)!r}, expected a directory that can be written ({error.strerror})"
        ) from error


def _explain(error: Exception, overrides: list[str]) -> str:
    """One line about a composition error: the key, what is wrong with it, and the nearest known key or option."""
    # Hydra wraps the error that names the key; the innermost one is the most exact.
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    messages = [str(link) for link in chain]
    text = "\n".join(messages)

    option = re.search(r"Could not find '([\w/]+)/([\w.-]+)'", text)
    if option:
        group, name = option.groups()
        choices = sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))
        return f"{group}: got {name!r}, expected one of {', '.join(choices)}{nearest(name, choices)}"

    keys = [getattr(link, "full_key", None) for link in reversed(chain)]
    full_key = next((str(key) for key in keys if key), None)
    reason = " ".join(messages[-1].splitlines()[0].split())
    if full_key is None:
        return f"{' '.join(overrides)}: {reason}"
    *parents, key = full_key.split(".")
    siblings = _known_keys(parents)
    if key in siblings or not siblings:
        return f"{full_key}: {reason}"
    return f"{full_key}: unknown key, expected one of {', '.join(siblings)}{nearest(key, siblings)}"


def _known_keys(parents: list[str]) -> list[str]:
    """The keys below a path of the default config."""
    node = OmegaConf.to_container(compose(CONFIG_NAME), resolve=False)
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    return [str(key) for key in node] if isinstance(node, dict) else []
