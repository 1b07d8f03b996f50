"""The runs that configs/benchmark/pretraining.yaml asks for, and every mistake told before one of them starts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from palimpsa.benchmark.checks import check_choice, check_positive, check_several
from palimpsa.benchmark.schema import PretrainingConfig
from palimpsa.benchmark.training_config import check_overrides, compose_run, options, settle_device
from palimpsa.config.checks import check_config
from palimpsa.config.errors import ConfigError
from palimpsa.config.schema import typed
from palimpsa.runs.progress import JobProgress

# What the benchmark sets itself: key of configs/train.yaml -> key of the benchmark, or what it does instead.
OWN_KEYS = {
    "scale": "set scale",
    "trainer": "set trainer",
    "model": "set models",
    "optimizer.lr": "set lr",
    "seed": "set seed",
    "task": "its runs are of task commonsense",
    "task.data": "set data",
    "task.context": "set context",
    "task.tokens_per_step": "set tokens_per_step",
    "task.num_steps": "set num_steps",
    "task.num_tokens": "set num_steps",
    "trainer.accumulate": "set accumulate",
    "trainer.checkpoint_blocks": "set checkpoint_blocks",
    "trainer.log_every": "set log_every",
    "trainer.spike_sigmas": "the first steps of random tokens are no measure of a spike",
    "hydra": "it composes without Hydra's own part",
    "logger": "its runs log to history.csv",
    "results_dir": "its runs go to a temporary directory",
    "run_dir": "its runs go to a temporary directory",
}
MODELS_ON_CPU = ["lm/palimpsa_d_tiny", "lm/palimpsa_d_nometa_tiny"]
MODELS_ON_GPU = [
    *("lm/palimpsa_d_44m", "lm/palimpsa_d_nometa_44m", "lm/palimpsa_d_170m", "lm/palimpsa_d_nometa_170m"),
    "lm/palimpsa_d_760m",
]


@dataclass(frozen=True)
class PretrainingRun:
    """One row to be: a language model at one size of a step.

    num_warmup_steps, num_measured_steps: optimiser steps. is_random: of random tokens, which the run makes itself.
    cfg: configs/train.yaml, composed.
    """

    model: str
    num_warmup_steps: int
    num_measured_steps: int
    is_random: bool
    cfg: DictConfig

    def __str__(self) -> str:
        parts = f" in {self.cfg.trainer.accumulate}" if self.cfg.trainer.accumulate > 1 else ""
        again = ", blocks computed again" if self.cfg.trainer.checkpoint_blocks else ""
        return f"{self.model} {self.cfg.task.tokens_per_step:,} tokens a step{parts}{again}"

    @property
    def on_cpu(self) -> bool:
        return self.cfg.trainer.accelerator == "cpu"

    @property
    def num_steps(self) -> int:
        return self.num_warmup_steps + self.num_measured_steps

    def measure(self, folder: Path, progress: JobProgress) -> dict[str, Any]:
        """See `isolated.MeasuredRun`."""
        # Here and not above: torch and lightning.
        from palimpsa.benchmark.pretraining.training import measure_pretraining

        windows = (self.num_warmup_steps, self.num_measured_steps)
        return measure_pretraining(typed(self.cfg), *windows, folder, progress, is_random=self.is_random)


def plan_pretraining(config: PretrainingConfig) -> list[PretrainingRun]:
    """Settles in `config` what it leaves to `auto` and null, and composes and checks the config of every run.

    Raises:
        ConfigError: in one line, naming the key, what came and what was expected.
    """
    settle_device(config)
    known = options("model/lm")
    if config.models is None:
        config.models = MODELS_ON_CPU if config.trainer == "cpu" else MODELS_ON_GPU
    check_several("models", config.models)
    for model in config.models:
        check_choice("models", model, known)
    for key in ("accumulate", "num_warmup_steps", "num_steps", "log_every", "lr"):
        check_positive(key, getattr(config, key))
    if config.num_warmup_steps % config.log_every or config.num_steps % config.log_every:
        raise ConfigError(
            f"log_every: got {config.log_every}, expected a divisor of num_warmup_steps = {config.num_warmup_steps} "
            f"and num_steps = {config.num_steps}"
        )
    check_overrides(config, OWN_KEYS)
    runs = []
    for model in config.models:
        cfg = compose_run(_own_overrides(config, model), config.overrides)
        run = PretrainingRun(model, config.num_warmup_steps, config.num_steps, config.data is None, cfg)
        if run.is_random:
            cfg.task.vocab_size = cfg.model.vocab_size
        _check(run)
        runs.append(run)
    task = runs[0].cfg.task
    config.context, config.tokens_per_step = task.context, task.tokens_per_step
    return runs


def _own_overrides(config: PretrainingConfig, model: str) -> list[str]:
    end = config.num_warmup_steps + config.num_steps
    sizes = {"context": config.context, "tokens_per_step": config.tokens_per_step, "data": config.data}
    return [
        *("task=commonsense", f"scale={config.scale}", f"trainer={config.trainer}", f"model={model}", "logger=csv"),
        *(f"optimizer.lr={config.lr}", f"seed={config.seed}", "trainer.progress_bar=false"),
        *(f"trainer.accumulate={config.accumulate}", f"trainer.checkpoint_blocks={config.checkpoint_blocks}"),
        *(f"trainer.log_every={config.log_every}", "trainer.spike_sigmas=1e9"),
        *(f"task.{key}='{value}'" if key == "data" else f"task.{key}={value}" for key, value in sizes.items() if value),
        # Stopped one step before its end, where it would validate and write its weights down.
        *(f"task.num_steps={end + 1}", "task.num_tokens=null", f"task.validation_every={end + 1}"),
        f"trainer.checkpoint_every={end + 1}",
    ]


def _check(run: PretrainingRun) -> None:
    from palimpsa.model.build import check_model
    from palimpsa.training.gpus import check_device
    from palimpsa.training.preflight import check_run

    config: Any = typed(run.cfg)
    if not run.is_random:
        check_run(config)
        return
    # What a run that has its data is checked for, but for what is asked of these.
    check_config(config)
    check_model(asdict(config.model))
    check_device(config)
    task, accumulate = config.task, config.trainer.accumulate
    row_tokens = task.context * task.contexts_per_row
    if task.tokens_per_step % (row_tokens * accumulate):
        raise ConfigError(
            f"tokens_per_step: got {task.tokens_per_step}, expected a multiple of {row_tokens * accumulate}: "
            f"accumulate = {accumulate} parts of rows of {row_tokens} tokens"
        )
