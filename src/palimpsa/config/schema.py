"""The schema of configs/: every key, its type and its `KeyRule`. Hydra checks each composed config against it."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palimpsa.config.keys import MISSING, convert, key
from palimpsa.config.optimizer_schema import OptimizerConfig, RecipeConfig, StartConfig

if TYPE_CHECKING:
    from hydra.core.config_store import ConfigStore
    from omegaconf import DictConfig

CONFIG_DIR = Path(__file__).resolve().parents[3] / "configs"
# torch's generators take 64 bits, and numpy's tools 32.
MAX_SEED = 2**32 - 1
# More than any model or machine has: a mistyped size is told before it fills the memory.
MAX_WIDTH = 2**20
MAX_LAYERS = 10_000
MAX_THREADS = 4_096

# What a mixer does where its config does not say: the defaults of the constructors' arguments.
MIXER_DEFAULTS = {
    "conv_width": 4,
    "conv_bias": True,
    "conv_init_std": None,
    "forgetting": "small",
    "gate_rank": 16,
    "importance_prior": 1.0,
    "initial_plasticity": None,
    "key_expansion": 1,
    "metaplastic": True,
    "norm_eps": 1e-6,
    "num_groups": None,
    "num_norm_groups": None,
    "num_precisions": None,
    "plasticity": "vector",
    "projection_bias": False,
    "rope_base": 10_000.0,
    "step_size_limit": None,
    "strength": 1.0,
    "up_init": "normal",
}


@dataclass
class ScaleConfig:
    """Sizes of models and cadences of reports: the same experiment at another cost. A task's budget is the task's."""

    name: str = key(names_files=True)
    # The other groups have taken their values from these.
    requires_gpu: bool = key(changes_numbers=False)
    d_model: int = key(changes_numbers=False)
    num_layers: int = key(changes_numbers=False)
    num_heads: int = key(changes_numbers=False)
    head_k_dim: int = key(changes_numbers=False)
    head_v_dim: int = key(changes_numbers=False)
    log_every: int = key(unit="optimiser steps", changes_numbers=False)
    probe_every: int = key(unit="optimiser steps", changes_numbers=False)
    num_probe: int = key(unit="examples", changes_numbers=False)
    checkpoint_every: int = key(unit="optimiser steps", changes_numbers=False)


@dataclass
class ModelConfig:
    """A language model: one residual stack around a mixer."""

    name: str = key(names_files=True)
    label: str = key(changes_numbers=False)  # as figures and tables call it
    vocab_size: int = key(minimum=1)
    d_model: int = key(minimum=1, maximum=MAX_WIDTH)
    num_layers: int = key(minimum=1, maximum=MAX_LAYERS)
    norm: str = MISSING
    final_norm: str | None = key(None)  # after the last block; null: as before each
    norm_eps: float = key(above=0)
    channel_mixer: str = MISSING
    channel_width: int | None = key(None, minimum=1)
    init_std: float | None = key(None, above=0)  # null: d_model^-1/2
    tie_word_embeddings: bool = key(True)  # False: logits by a matrix of their own
    mixer: dict[str, Any] = key(neutral_entries=MIXER_DEFAULTS)  # _target_ and its arguments


@dataclass
class SweepAxes:
    """What a figure's sweep varies, comma-separated."""

    models: str = MISSING
    learning_rates: str = MISSING
    seeds: str = MISSING
    selection_seeds: str = MISSING  # those of `seeds` that the learning rate is chosen on


@dataclass
class TaskConfig:
    """What every task has."""

    kind: str = key("mqar")  # of TASK_SCHEMAS; neutral for all of them: runs of the first kind came before the key
    name: str = key(names_files=True)
    directory: str = key(swept=True, names_files=True)  # below results/runs
    vocab_size: int = key(minimum=1)
    tokens_per_step: int = key(above=0, unit="tokens")
    # optimizer.warmup_steps takes its value from here.
    warmup_steps: int = key(minimum=0, unit="optimiser steps", changes_numbers=False)
    validation_every: int = key(above=0, unit="optimiser steps")
    # Of the learning rate, after the warm-up; by epoch: the same all through each.
    schedule: str = key(choices=("constant", "cosine", "cosine_by_epoch"))
    final_lr_share: float = key(0.0, minimum=0, maximum=1)  # of the peak, where a cosine ends
    # The trainer's keys of these names take their values from here.
    spike_sigmas: float | None = key(None, above=0, changes_numbers=False)
    cuda_graphs: bool = key(True, changes_numbers=False)
    sweep: SweepAxes = key(factory=SweepAxes, changes_numbers=False)


@dataclass
class StageConfig:
    """One stage of an MQAR curriculum."""

    seq_len: int = key(minimum=1, unit="tokens")
    num_pairs: int = key(minimum=1)  # <= seq_len / 4
    max_steps: int = key(minimum=1, unit="optimiser steps")  # the cap
    in_figure: bool = key(True)  # False: a warm-up stage, not tested


@dataclass
class MQARConfig(TaskConfig):
    """MQAR by either protocol: `stages`, or seq_len with num_train_examples and num_epochs."""

    power: float = key(above=0)  # a of the slots' law p(i) ~ i^(a-1)
    stop_accuracy: float = key(above=0)  # a stage ends at this validation accuracy, a fraction; above 1: never
    num_validation: int = key(above=0, unit="examples")
    num_test: int = key(above=0, unit="examples")
    # A list of StageConfig, checked by `typed`: Hydra would name a mistake in one of its items by a path of its own.
    stages: Any = key(None, items=StageConfig)
    seq_len: int | None = key(None, minimum=1, unit="tokens", swept=True)
    num_train_examples: int | None = key(None, minimum=1)
    num_epochs: int | None = key(None, minimum=1)
    # Interference: exponent of Zipf's law by which a pair is queried, with replacement; null: each pair once.
    zipf: float | None = key(None, minimum=0)
    overwrite_share: float = key(0.0, minimum=0, maximum=1)  # of the pairs, written again with another value
    distractor_share: float = key(0.0, minimum=0, below=1)  # of the pairs, never queried


@dataclass
class CommonsenseConfig(TaskConfig):
    """Next tokens of prepared text; docs/pretraining.md says what a batch is."""

    # A folder with train/ and validation/, as scripts/prepare_text.py writes it. What is in it counts, not where it is.
    data: str = key(changes_numbers=False)
    # 64 hexadecimal digits each of what is in it; null: read from its manifests before the run.
    tokenizer_digest: str | None = key(None)
    train_digest: str | None = key(None)
    validation_digest: str | None = key(None)
    # What of the shards is compared with their manifest first: sizes, or all bytes, which takes a second a gigabyte.
    verify: str = key(choices=("sizes", "hashes"), changes_numbers=False)
    context: int = key(minimum=2, unit="tokens")
    documents: str = key("reset", choices=("reset", "run_on", "reset_every_context"))
    contexts_per_row: int = key(1, minimum=1)  # consecutive ones that the order of an epoch leaves together
    num_steps: int | None = key(None, minimum=1, unit="optimiser steps")  # or num_tokens
    num_tokens: int | None = key(None, minimum=1, unit="tokens")  # rounded up to whole steps
    validation_tokens: int = key(minimum=2, unit="tokens")  # at most: the first ones of the split


TASK_SCHEMAS: dict[str, type] = {"mqar": MQARConfig, "commonsense": CommonsenseConfig}


@dataclass
class TrainerConfig:
    """Where a run computes and how often it reports."""

    name: str = MISSING
    # Lightning also takes less explicit names for these.
    accelerator: str = key(choices=("cpu", "gpu"))
    precision: str = key(choices=("32-true", "bf16-mixed"))
    num_threads: int | None = key(None, above=0, maximum=MAX_THREADS)  # of one run on the CPU; null: torch's default
    # Indices of the GPUs that runs may use, as CUDA counts; null: all.
    gpus: list[int] | None = key(None, changes_numbers=False)
    log_every: int = key(above=0, unit="optimiser steps")
    probe_every: int = key(above=0, unit="optimiser steps")
    num_probe: int = key(above=0, unit="examples")
    checkpoint_every: int = key(above=0, unit="optimiser steps", changes_numbers=False)
    keep_final: bool = key(False, changes_numbers=False)  # a checkpoint after the last step of any task
    # Of several processes: each has all weights (ddp) or its part of them, of their gradients and moments (fsdp).
    strategy: str = key("ddp", choices=("ddp", "fsdp"), changes_numbers=False)
    # Parts of a step that are computed one after the other, whose gradients are added: as much memory less for each.
    accumulate: int = key(1, minimum=1)
    # A loss above the last 100 steps' mean by so many of their standard deviations stops the run before its step, as
    # one that is no number does. null: nobody looks at every step.
    spike_sigmas: float | None = key(None, above=0, changes_numbers=False)
    compile: bool = key(False)  # blocks by torch.compile: faster on a GPU, other rounding
    # Steps and validations captured and replayed, to the same bits; on one GPU alone.
    cuda_graphs: bool = key(False, changes_numbers=False)
    # Blocks computed again in the backward pass instead of kept, to the same bits: less memory, a third more time.
    checkpoint_blocks: bool = key(False, changes_numbers=False)
    progress_bar: bool = key(True, changes_numbers=False)


@dataclass
class LoggerConfig:
    """Where curves go beside the run's own history.csv."""

    name: str = key(choices=("wandb", "csv"))
    project: str | None = key(None)
    entity: str | None = key(None)
    mode: str | None = key(None, choices=("offline", "online", "disabled", None))  # of wandb
    group: str | None = key(None)
    artifacts: bool = key(False)  # of wandb: a run's last checkpoint and tables, a results folder's figures


@dataclass
class TrainConfig:
    """configs/train.yaml."""

    seed: int = key(minimum=0, maximum=MAX_SEED, swept=True)
    variant: str = key("", swept=True)  # added to the model's name in directories, tables and figures
    results_dir: str = key(changes_numbers=False)
    run_dir: str = key(changes_numbers=False)
    scale: ScaleConfig = key(factory=ScaleConfig)
    model: ModelConfig = key(factory=ModelConfig, swept=True)
    task: TaskConfig = key(factory=TaskConfig, kinds=TASK_SCHEMAS)
    optimizer: OptimizerConfig = key(factory=OptimizerConfig)
    start: StartConfig = key(factory=StartConfig)
    recipe: RecipeConfig = key(factory=RecipeConfig, changes_numbers=False)
    trainer: TrainerConfig = key(factory=TrainerConfig)
    logger: LoggerConfig = key(factory=LoggerConfig, changes_numbers=False)


def register_schema() -> None:
    """Makes the schemas known to Hydra: configs/train.yaml builds on `train_schema`, a task on that of its kind."""
    # Here and not above, as OmegaConf below: what reads finished runs does without them.
    from hydra.core.config_store import ConfigStore

    _register_in(ConfigStore.instance())


# Once is enough, and takes a fifth of what it takes to compose a config.
@functools.cache
def _register_in(store: ConfigStore) -> None:
    store.store(name="train_schema", node=TrainConfig)
    for kind, schema in TASK_SCHEMAS.items():
        store.store(name=f"{kind}_schema", node=schema)


def typed(cfg: DictConfig | dict[str, Any]) -> TrainConfig:
    """The resolved config as its dataclasses, without Hydra's own part; ranges are not looked at.

    Raises:
        ConfigError: for a key that is unknown or missing, or a value of another type, in one line.
    """
    container: Any = cfg
    if not isinstance(cfg, dict):
        from omegaconf import OmegaConf

        own = OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name != "hydra"]) if "hydra" in cfg else cfg
        container = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    return convert(TrainConfig, container)


def plain(config: TrainConfig) -> dict[str, Any]:
    """The config as JSON can hold it: every default spelled out, inf and nan as words."""
    return storable(dataclasses.asdict(config))


def storable(value: Any) -> Any:
    """Plain containers as JSON can hold them: inf and nan as words.

    >>> storable({"limit": [0, float("inf")]})
    {'limit': [0, 'inf']}
    """
    if isinstance(value, dict):
        return {name: storable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [storable(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def with_numbers(model: dict[str, Any]) -> dict[str, Any]:
    """A stored `model` group with its mixer's inf as the number again, which `storable` had made a word.

    >>> with_numbers({"label": "inf", "mixer": {"limit": [0, "inf"]}})
    {'label': 'inf', 'mixer': {'limit': [0, inf]}}
    """
    return {**model, "mixer": _with_numbers(model["mixer"])} if "mixer" in model else model


def _with_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_numbers(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_with_numbers(item) for item in value]
    return float(value) if value in ("inf", "-inf") else value
