"""What the types of the config schema cannot say: ranges, names, and what the model's constructors take."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import types
import typing
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from palimpsa.config import TrainConfig, plain
from palimpsa.devices import check_gpus
from palimpsa.errors import ConfigError, nearest
from palimpsa.launchers import runs_elsewhere

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
    _check_model(config["model"])
    _check_task(cfg.task)


def check_device(cfg: DictConfig) -> None:
    """Checks that this machine has the GPU that a config asks for.

    Args:
        cfg: composed. With Hydra's own part it is a sweep that is still to be launched, whose jobs may run on another
            machine: they check that one themselves, before they start.

    Raises:
        ConfigError: naming the key that asks, where there is none, or where the trainer would leave it idle.
    """
    gpus = None if cfg.trainer.gpus is None else [int(index) for index in cfg.trainer.gpus]
    if gpus is not None and cfg.trainer.accelerator != "gpu":
        raise ConfigError(
            f"trainer.gpus: got {gpus}, expected null with trainer={cfg.trainer.name}, which computes on the CPU; "
            "add trainer=gpu"
        )
    if not (cfg.scale.requires_gpu or cfg.trainer.accelerator == "gpu"):
        return
    import torch

    by_trainer = "trainer=gpu" if cfg.trainer.name == "gpu" else "trainer.accelerator=gpu"
    asked_by = f"scale={cfg.scale.name}" if cfg.scale.requires_gpu else by_trainer
    elsewhere = "hydra" in cfg and runs_elsewhere(cfg)
    if not elsewhere and not torch.cuda.is_available():
        with_gpus = "" if gpus is None else f" with trainer.gpus={gpus}"
        raise ConfigError(
            f"{asked_by}{with_gpus}: needs an NVIDIA GPU that PyTorch can use (one H200 is what it is sized for), and "
            "this machine has none; scale=laptop with trainer=cpu runs anywhere"
        )
    if cfg.trainer.accelerator != "gpu":
        raise ConfigError(f"trainer: got {cfg.trainer.name}, expected one on the GPU with {asked_by}; add trainer=gpu")
    check_gpus(gpus, None if elsewhere else torch.cuda.device_count())


def schema_keys(parents: list[str], schema: type = TrainConfig) -> list[str]:
    """The keys that the schema knows below a path; empty where it leaves them open.

    >>> schema_keys(["scale", "scratch"])
    ['seq_len', 'num_train_examples', 'num_epochs']
    """
    node: Any = schema
    for parent in parents:
        node = typing.get_type_hints(node).get(parent) if dataclasses.is_dataclass(node) else None
    return [field.name for field in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []


def _check_task(task: Any) -> None:
    from palimpsa.data.stages import stages_from_config

    stages_from_config(task)


def _check_model(model: dict[str, Any]) -> None:
    import torch

    from palimpsa import mixers
    from palimpsa.model import LanguageModel

    arguments = dict(model["mixer"])
    target = arguments.pop("_target_", None)
    try:
        module, _, name = str(target).rpartition(".")
        mixer_class = getattr(importlib.import_module(module), name)
    except Exception as error:
        reason = " ".join(str(error).split())
        expected = f"got {target!r}, expected the path of a mixer class ({reason})"
        shipped = [f"palimpsa.mixers.{name}" for name in mixers.__all__]
        raise ConfigError(f"model.mixer._target_: {expected}{nearest(str(target), shipped)}") from error
    if not (isinstance(mixer_class, type) and issubclass(mixer_class, mixers.Mixer)):
        raise ConfigError(f"model.mixer._target_: got {target!r}, expected a subclass of palimpsa.mixers.Mixer")
    hints = typing.get_type_hints(mixer_class.__init__)
    known = [name for name in inspect.signature(mixer_class).parameters if name != "d_model"]
    for name, parameter in inspect.signature(mixer_class).parameters.items():
        if parameter.default is parameter.empty and name not in ("d_model", *arguments):
            raise ConfigError(f"model.mixer.{name}: missing, {target} needs it")
    for key, value in arguments.items():
        if key not in known:
            raise ConfigError(f"model.mixer.{key}: {target} takes no such argument{nearest(key, known)}")
        if not _fits(value, hints.get(key, Any)):
            expected = getattr(hints[key], "__name__", str(hints[key]))
            raise ConfigError(f"model.mixer.{key}: got {value!r}, expected {expected}")

    def make_mixer(d_model: int) -> Any:
        try:
            return mixer_class(d_model=d_model, **arguments)
        except ValueError as error:
            raise ConfigError(f"model.mixer.{error}") from error

    sizes = {key: value for key, value in model.items() if key not in ("name", "label", "mixer", "init_std")}
    try:
        # Shapes without memory: what a constructor refuses is refused before a run starts.
        with torch.device("meta"):
            LanguageModel(make_mixer=make_mixer, generator=None, **sizes)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"model.{error}") from error
    except (TypeError, RuntimeError, OverflowError) as error:
        # A size that torch cannot count up to.
        raise ConfigError(f"model: got sizes that make no tensor ({str(error).splitlines()[0]})") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a YAML value is of an annotated type: ints pass for floats, lists for tuples, bools for bools alone."""
    if hint is Any:
        return True
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        options = typing.get_args(hint)
        return isinstance(value, list | tuple) and len(value) == len(options) and all(map(_fits, value, options))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)
