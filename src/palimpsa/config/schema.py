"""The schema of configs/: every key, its type and its unit. Hydra checks each composed config against it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

# Keys that change no number of a run: how it reports, what it is called, and `scale`, which the other groups have
# already taken their values from. Two runs that differ only here are the same run.
IRRELEVANT_KEYS = (
    *("results_dir", "run_dir", "logger", "model.label", "trainer.progress_bar", "trainer.checkpoint_every"),
    "trainer.gpus",
    *(f"scale.{key}" for key in ("models", "learning_rates", "seeds", "selection_seeds", "wide_head_k_dim")),
    *(f"scale.{key}" for key in ("requires_gpu", "checkpoint_every")),
)


@dataclass
class StageConfig:
    """One stage of an MQAR curriculum."""

    seq_len: int = MISSING  # tokens
    num_pairs: int = MISSING  # <= seq_len / 4
    max_steps: int = MISSING  # the cap, optimiser steps
    in_figure: bool = True  # False: a warm-up stage, not tested


@dataclass
class ScratchConfig:
    """Size of the scratch protocol: fixed training data, one length."""

    seq_len: int = MISSING  # tokens; num_pairs = seq_len / 4
    num_train_examples: int = MISSING
    num_epochs: int = MISSING


@dataclass
class ScaleConfig:
    """Sizes and budgets, nothing else: the same experiment at another cost."""

    name: str = MISSING
    requires_gpu: bool = MISSING
    d_model: int = MISSING
    num_layers: int = MISSING
    num_heads: int = MISSING
    head_k_dim: int = MISSING
    wide_head_k_dim: int = MISSING  # 2 head_k_dim: of the control with as large a state as Palimpsa's
    head_v_dim: int = MISSING
    vocab_size: int = MISSING
    tokens_per_step: int = MISSING
    warmup_steps: int = MISSING
    validation_every: int = MISSING  # optimiser steps
    num_validation: int = MISSING  # examples
    num_test: int = MISSING  # examples
    log_every: int = MISSING  # optimiser steps
    probe_every: int = MISSING  # optimiser steps
    num_probe: int = MISSING  # examples
    checkpoint_every: int = MISSING  # optimiser steps
    curriculum: list[StageConfig] = MISSING
    scratch: ScratchConfig = MISSING
    models: str = MISSING  # of the Figure 2 sweep, comma-separated
    learning_rates: str = MISSING  # of the Figure 2 sweep, comma-separated
    seeds: str = MISSING  # of the Figure 2 sweep, comma-separated
    selection_seeds: str = MISSING  # those of `seeds` that the learning rate is chosen on, comma-separated


@dataclass
class ModelConfig:
    """A language model: one residual stack around a mixer."""

    name: str = MISSING
    label: str = MISSING  # as figures and tables call it
    vocab_size: int = MISSING
    d_model: int = MISSING
    num_layers: int = MISSING
    norm: str = MISSING
    norm_eps: float = MISSING
    channel_mixer: str = MISSING
    channel_width: int | None = None
    init_std: float | None = None  # null: d_model^-1/2
    mixer: dict[str, Any] = MISSING  # _target_ and its arguments


@dataclass
class TaskConfig:
    """MQAR by either protocol: `stages`, or seq_len with num_train_examples and num_epochs."""

    kind: str = "mqar"
    name: str = MISSING
    directory: str = MISSING  # below results/runs
    vocab_size: int = MISSING
    power: float = MISSING  # a of the slots' law p(i) ~ i^(a-1)
    tokens_per_step: int = MISSING
    stop_accuracy: float = MISSING  # a stage ends at this validation accuracy, a fraction; above 1: never
    validation_every: int = MISSING  # optimiser steps
    num_validation: int = MISSING  # examples
    num_test: int = MISSING  # examples
    schedule: str = MISSING  # constant or cosine, after the warm-up
    stages: Any = None  # a list of StageConfig: see palimpsa.tasks.stages
    seq_len: int | None = None
    num_train_examples: int | None = None
    num_epochs: int | None = None


@dataclass
class OptimizerConfig:
    """AdamW."""

    lr: float = MISSING  # peak learning rate
    weight_decay: float = MISSING
    beta1: float = MISSING
    beta2: float = MISSING
    warmup_steps: int = MISSING
    gradient_clip: float = MISSING  # global L2 norm


@dataclass
class TrainerConfig:
    """Where a run computes and how often it reports."""

    name: str = MISSING
    accelerator: str = MISSING  # cpu or gpu
    precision: str = MISSING  # 32-true or bf16-mixed
    num_threads: int | None = None  # of one run on the CPU; null: torch's default
    gpus: list[int] | None = None  # indices of the GPUs that runs may use, as CUDA counts; null: all
    log_every: int = MISSING  # optimiser steps
    probe_every: int = MISSING  # optimiser steps
    num_probe: int = MISSING  # examples
    checkpoint_every: int = MISSING  # optimiser steps
    compile: bool = False  # blocks by torch.compile: faster on a GPU, other rounding
    cuda_graphs: bool = False  # steps and validations captured and replayed; on a GPU alone
    progress_bar: bool = True


@dataclass
class LoggerConfig:
    """Where curves go beside the run's own history.csv."""

    name: str = MISSING
    project: str | None = None
    entity: str | None = None
    mode: str | None = None  # offline, online or disabled (wandb)
    group: str | None = None


@dataclass
class TrainConfig:
    """configs/train.yaml."""

    seed: int = MISSING
    variant: str = ""  # added to the model's name in directories, tables and figures
    results_dir: str = MISSING
    run_dir: str = MISSING
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)


def register_schema() -> None:
    """Makes the schema known to Hydra as `train_schema`; configs/train.yaml builds on it."""
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)


def storable(value: Any) -> Any:
    """A plain config as JSON can hold it: inf and nan as words.

    >>> storable({"limit": [0, float("inf")]})
    {'limit': [0, 'inf']}
    """
    if isinstance(value, dict):
        return {key: storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [storable(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved config as plain containers, without Hydra's own part."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]) if "hydra" in cfg else cfg
    container = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
