"""The runs that configs/benchmark/training.yaml asks for, every mistake told in one line before one of them starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from palimpsa.analysis.style import model_order
from palimpsa.benchmark.checks import as_list, check_choice, check_positive, check_several
from palimpsa.benchmark.schema import PretrainingConfig, TrainingConfig
from palimpsa.config.errors import ConfigError
from palimpsa.config.explain import explain
from palimpsa.config.schema import CONFIG_DIR, StageConfig, register_schema, typed
from palimpsa.runs.identity import flatten
from palimpsa.runs.progress import JobProgress
from palimpsa.training.preflight import check_run

# What the benchmark sets itself: key of configs/train.yaml -> key of the benchmark, or what it does instead.
OWN_KEYS = {
    "scale": "set scale",
    "trainer": "set trainer",
    "model": "set models",
    "optimizer.lr": "set lr",
    "seed": "set seed",
    "task": "its runs are of one stage of the curriculum",
    "task.stop_accuracy": "no stage ends before its window does",
    "hydra": "it composes without Hydra's own part",
    "logger": "its runs log to history.csv",
    "results_dir": "its runs go to a temporary directory",
    "run_dir": "its runs go to a temporary directory",
}
WHOLE_GROUPS = ("logger", "hydra")


@dataclass(frozen=True)
class Windows:
    """When a run is timed, in optimiser steps: from the end of step `num_warmup` to that of step `end`."""

    num_warmup: int
    num_steps: int

    @property
    def end(self) -> int:
        return self.num_warmup + self.num_steps

    @property
    def profiled_end(self) -> int:
        """On a GPU a second window of the same length follows, under the profiler."""
        return self.end + self.num_steps

    def num_due(self, every: int, *, late: bool = False) -> int:
        """How often something is done in the window that is done at the end of every `every`-th step.

        Args:
            late: done after the clock is read at the end of that step.
        """
        return (self.end - late) // every - (self.num_warmup - late) // every


@dataclass(frozen=True)
class TrainingRun:
    """One row to be: a model at one length.

    cfg: configs/train.yaml, composed, with a single stage that outlasts the windows.
    """

    model: str
    seq_len: int
    windows: Windows
    cfg: DictConfig

    def __str__(self) -> str:
        return f"{self.model} L {self.seq_len}"

    @property
    def on_cpu(self) -> bool:
        return self.cfg.trainer.accelerator == "cpu"

    @property
    def num_steps(self) -> int:
        return self.windows.end if self.on_cpu else self.windows.profiled_end

    def measure(self, folder: Path, progress: JobProgress) -> dict[str, Any]:
        """See `isolated.MeasuredRun`."""
        # Here and not above: torch and lightning.
        from palimpsa.benchmark.steps import measure_steps

        return measure_steps(self.cfg, self.windows, folder, progress)


def plan_runs(config: TrainingConfig) -> list[TrainingRun]:
    """Settles in `config` what it leaves to `auto` and null, and composes and checks the config of every run.

    Raises:
        ConfigError: in one line, naming the key, what came and what was expected.
    """
    _settle_names(config)
    assert config.models is not None
    check_overrides(config, OWN_KEYS)
    composed = {model: compose_run(_own_overrides(config, model), config.overrides) for model in config.models}
    for cfg in composed.values():
        check_run(typed(cfg))
    first = composed[config.models[0]]
    stages = _stages(config, first)
    windows = _windows(config, first)
    runs = []
    for model, cfg in composed.items():
        for stage in stages:
            # The trainer is stopped before: at a stage's cap it would validate and test.
            own = cfg.copy()
            own.task.stages = [asdict(replace(stage, max_steps=windows.profiled_end + 1))]
            runs.append(TrainingRun(model, stage.seq_len, windows, own))
    return runs


def _settle_names(config: TrainingConfig) -> None:
    settle_device(config)
    models = options("model")
    config.models = model_order(models) if config.models is None else config.models
    check_several("models", config.models)
    for model in config.models:
        check_choice("models", model, models)
    for key in ("num_warmup_steps", "num_steps"):
        value = getattr(config, key)
        if value is not None and value < 1:
            raise ConfigError(f"{key}: got {value}, expected >= 1, or null")
    check_positive("lr", config.lr)


def settle_device(config: TrainingConfig | PretrainingConfig) -> None:
    """Settles `scale` and `trainer`. Raises ConfigError, for the seed too."""
    for key in ("scale", "trainer"):
        check_choice(key, getattr(config, key), ["auto", *options(key)])
    if config.seed < 0:
        raise ConfigError(f"seed: got {config.seed}, expected >= 0")
    if "auto" in (config.scale, config.trainer):
        import torch

        available = torch.cuda.is_available()
        if config.trainer == "auto":
            config.trainer = "gpu" if available else "cpu"
        if config.scale == "auto":
            config.scale = "h200" if available and config.trainer != "cpu" else "laptop"


def options(group: str) -> list[str]:
    """The configs of a group as a command line has them: `lm/NAME` of model/lm, whose group is model."""
    inner = group.partition("/")[2]
    return sorted(f"{inner}/{path.stem}" if inner else path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


def check_overrides(config: TrainingConfig | PretrainingConfig, own_keys: Mapping[str, str]) -> None:
    """Settles `overrides` as values by key.

    Args:
        own_keys: that the benchmark sets itself, and what to do instead.

    Raises:
        ConfigError: for what are no keys and values, or one of these keys.
    """
    if not isinstance(config.overrides, dict | None):
        raise ConfigError(f"overrides: got {config.overrides!r}, expected keys and values: overrides={{KEY:VALUE}}")
    config.overrides = flatten(config.overrides or {})
    for key in config.overrides:
        for own, instead in own_keys.items():
            if key == own or (own in WHOLE_GROUPS and key.startswith(f"{own}.")):
                raise ConfigError(f"overrides: got {key}, expected a key that the benchmark does not set ({instead})")


def _own_overrides(config: TrainingConfig, model: str) -> list[str]:
    """Of one model, as a sweep would run it: without a progress bar of its own."""
    return [
        *(f"scale={config.scale}", f"trainer={config.trainer}", f"model={model}", "logger=csv"),
        *(f"optimizer.lr={config.lr}", f"seed={config.seed}", "trainer.progress_bar=false"),
        "task.stop_accuracy=2",
    ]


def compose_run(own: Sequence[str], overrides: Mapping[str, Any]) -> DictConfig:
    """The config of scripts/train.py.

    Args:
        own: the benchmark's overrides, which are right.
        overrides: values by key, which came with the command line.

    Raises:
        ConfigError: in one line.
    """
    register_schema()
    key = ""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        try:
            cfg = compose("train", list(own))
            for key, value in overrides.items():
                OmegaConf.update(cfg, key, value)
            # So that an interpolation that fails does so here.
            OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        except yaml.YAMLError as error:
            raise ConfigError(f"configs: got a file that is not YAML: {' '.join(str(error).split())}") from error
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(f"overrides: {explain(error, [key])}") from error
    return cfg


def _stages(config: TrainingConfig, cfg: DictConfig) -> list[StageConfig]:
    """The stage of each length, `lengths` settled; of two with the same one that is in the figure."""
    task: Any = typed(cfg).task
    curriculum: list[StageConfig] = task.stages
    by_length = {stage.seq_len: stage for stage in sorted(curriculum, key=lambda stage: stage.in_figure)}
    known = sorted(by_length)
    if config.lengths is None:
        config.lengths = [length for length in known if by_length[length].in_figure]
    check_several("lengths", config.lengths)
    for length in config.lengths:
        if length not in known:
            raise ConfigError(
                f"lengths: got {length}, expected lengths of the curriculum of scale={config.scale}: {as_list(known)}"
            )
    return [by_length[length] for length in config.lengths]


def _windows(config: TrainingConfig, cfg: DictConfig) -> Windows:
    """The probe runs once before the first step, and costs least: it asks for no steps of its own."""
    cadences = (cfg.trainer.log_every, cfg.task.validation_every)
    windows = Windows(
        config.num_warmup_steps or max(cadences),
        config.num_steps or math.lcm(*cadences, cfg.trainer.checkpoint_every),
    )
    config.num_warmup_steps, config.num_steps = windows.num_warmup, windows.num_steps
    return windows
