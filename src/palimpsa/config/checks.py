"""What the types of the config schema cannot say: ranges and names."""

from __future__ import annotations

import dataclasses
import re
import typing
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from palimpsa.config.errors import ConfigError, nearest
from palimpsa.config.schema import TrainConfig, plain

# Lightning also takes less explicit names for these.
CHOICES = {
    "task.schedule": ("constant", "cosine"),
    "trainer.accelerator": ("cpu", "gpu"),
    "trainer.precision": ("32-true", "bf16-mixed"),
    "logger.name": ("wandb", "csv"),
    "logger.mode": ("offline", "online", "disabled", None),
}
POSITIVE = (
    *("task.power", "task.tokens_per_step", "task.validation_every", "task.num_validation", "task.num_test"),
    *("task.stop_accuracy", "optimizer.lr", "optimizer.gradient_clip", "model.norm_eps", "model.init_std"),
    *("trainer.num_threads", "trainer.log_every", "trainer.probe_every", "trainer.num_probe"),
    "trainer.checkpoint_every",
)
NOT_NEGATIVE = ("seed", "optimizer.weight_decay", "optimizer.warmup_steps")
BELOW_ONE = ("optimizer.beta1", "optimizer.beta2")
# torch's generators take 64 bits, and numpy's tools 32.
MAX_SEED = 2**32 - 1


def check_config(cfg: DictConfig) -> None:
    """Checks a composed config before any work.

    Raises:
        ConfigError: in one line, naming the key, the value that came and what was expected.
    """
    config = plain(cfg)
    try:
        # Hydra lets `+key=value` add keys that the schema does not know; this merge does not.
        OmegaConf.merge(OmegaConf.structured(TrainConfig), config)
    except OmegaConfBaseException as error:
        *parents, key = str(error.full_key).split(".")
        siblings = schema_keys(parents)
        raise ConfigError(
            f"{error.full_key}: unknown key, expected one of {', '.join(map(str, siblings))}{nearest(key, siblings)}"
        ) from error
    for key, choices in CHOICES.items():
        value = OmegaConf.select(cfg, key)
        if value not in choices:
            expected = ", ".join(filter(None, choices))
            raise ConfigError(
                f"{key}: got {value!r}, expected one of {expected}{nearest(str(value), filter(None, choices))}"
            )
    for key in POSITIVE:
        value = OmegaConf.select(cfg, key)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"{key}: got {value}, expected > 0")
    for key in NOT_NEGATIVE:
        value = OmegaConf.select(cfg, key)
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{key}: got {value}, expected >= 0")
    for key in BELOW_ONE:
        if not 0 <= OmegaConf.select(cfg, key) < 1:
            raise ConfigError(f"{key}: got {OmegaConf.select(cfg, key)}, expected >= 0 and < 1")
    if cfg.trainer.cuda_graphs and cfg.trainer.accelerator != "gpu":
        raise ConfigError(
            f"trainer.cuda_graphs: got true, expected false with trainer.accelerator={cfg.trainer.accelerator}"
        )
    if cfg.seed > MAX_SEED:
        raise ConfigError(f"seed: got {cfg.seed}, expected at most {MAX_SEED}")
    if not re.fullmatch(r"[\w.-]*", cfg.variant):
        raise ConfigError(
            f"variant: got {cfg.variant!r}, expected letters, digits, '_', '-' and '.' (a directory's name)"
        )
    if not cfg.results_dir:
        raise ConfigError("results_dir: got an empty string, expected a directory")
    if cfg.model.vocab_size < cfg.task.vocab_size:
        raise ConfigError(
            f"model.vocab_size: got {cfg.model.vocab_size}, expected at least task.vocab_size = {cfg.task.vocab_size}"
        )
    unresolved: Any = OmegaConf.to_container(cfg.model.mixer, resolve=False)
    if (
        unresolved.get("head_k_dim") == "${scale.wide_head_k_dim}"
        and cfg.scale.wide_head_k_dim != 2 * cfg.scale.head_k_dim
    ):
        raise ConfigError(
            f"scale.wide_head_k_dim: got {cfg.scale.wide_head_k_dim}, expected twice scale.head_k_dim = "
            f"{cfg.scale.head_k_dim} with model={cfg.model.name}"
        )


def schema_keys(parents: list[str], schema: type = TrainConfig) -> list[str]:
    """The keys that the schema knows below a path; empty where it leaves them open.

    >>> schema_keys(["scale", "scratch"])
    ['seq_len', 'num_train_examples', 'num_epochs']
    """
    node: Any = schema
    for parent in parents:
        node = typing.get_type_hints(node).get(parent) if dataclasses.is_dataclass(node) else None
    return [field.name for field in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []
