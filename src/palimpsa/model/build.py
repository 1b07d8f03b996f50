"""From a `model` config to the network; and what is wrong with a config, told before a run starts."""

from __future__ import annotations

import functools
import importlib
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any

import torch

from palimpsa import mixers
from palimpsa.config.errors import ConfigError, nearest
from palimpsa.model.language_model import LanguageModel

# Keys of the `model` group that `LanguageModel` takes as they are.
SKELETON_KEYS = (
    *("vocab_size", "d_model", "num_layers", "norm", "norm_eps"),
    *("channel_mixer", "channel_width", "init_std", "tie_word_embeddings", "final_norm"),
)
# Of these, what configs of older trees do not have: what it was then.
SKELETON_DEFAULTS = {"tie_word_embeddings": True, "final_norm": None}


def skeleton_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `SKELETON_KEYS` of a `model` config, with `SKELETON_DEFAULTS` for what it does not have."""
    return {
        key: config.get(key, SKELETON_DEFAULTS[key]) if key in SKELETON_DEFAULTS else config[key]
        for key in SKELETON_KEYS
    }


def build_model(config: Any, seed: int | None) -> LanguageModel:
    """The network of a `model` config.

    Args:
        config: the `model` group of configs/train.yaml, checked.
        seed: the initial weights are a function of it alone; None leaves them for a checkpoint to fill.
    """
    keys = {key: getattr(config, key) for key in (*SKELETON_KEYS, "mixer")}
    return build_skeleton(keys, None if seed is None else torch.Generator().manual_seed(seed))


def build_skeleton(config: Mapping[str, Any], generator: torch.Generator | None = None) -> LanguageModel:
    """As `build_model`, of the keys that say what is built: `SKELETON_KEYS` and "mixer".

    Args:
        generator: of the initial weights; None leaves them for a checkpoint to fill.
    """
    arguments = dict(config["mixer"])
    return LanguageModel(
        make_mixer=functools.partial(_mixer_class(str(arguments.pop("_target_"))), **arguments),
        generator=generator,
        **skeleton_keys(config),
    )


def check_model(config: dict[str, Any]) -> None:
    """Checks a `model` config, as plain containers, by building its network without memory.

    Raises:
        ConfigError: naming the key, what came and what was expected.
    """
    arguments = dict(config["mixer"])
    target = str(arguments.pop("_target_", None))
    mixer_class = _mixer_class(target)
    _check_arguments(mixer_class, target, arguments)

    def make_mixer(d_model: int) -> mixers.Mixer:
        try:
            return mixer_class(d_model=d_model, **arguments)
        except ValueError as error:
            raise ConfigError(f"model.mixer.{error}") from error

    try:
        # Shapes without memory: no model is too large to be checked.
        with torch.device("meta"):
            LanguageModel(make_mixer=make_mixer, generator=None, **skeleton_keys(config))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"model.{error}") from error
    except (TypeError, RuntimeError, OverflowError) as error:
        # A size that torch cannot count up to.
        raise ConfigError(f"model: got sizes that make no tensor ({str(error).splitlines()[0]})") from error


def _mixer_class(target: str) -> type[Any]:
    """The class at a dotted path. Raises ConfigError where there is none, or where it is no mixer."""
    module, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:
        # Whatever importing a module of the user's own raises.
        reason = " ".join(str(error).split())
        known = [f"palimpsa.mixers.{name}" for name in mixers.__all__]
        raise ConfigError(
            f"model.mixer._target_: got {target!r}, expected the path of a mixer class ({reason})"
            f"{nearest(target, known)}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, mixers.Mixer)):
        raise ConfigError(f"model.mixer._target_: got {target!r}, expected a subclass of palimpsa.mixers.Mixer")
    return found


def _check_arguments(mixer_class: type[Any], target: str, arguments: dict[str, Any]) -> None:
    """Raises ConfigError for an argument that is missing, unknown or of another type than the class annotates."""
    parameters = {name: one for name, one in inspect.signature(mixer_class).parameters.items() if name != "d_model"}
    annotations = typing.get_type_hints(mixer_class.__init__)
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise ConfigError(f"model.mixer.{name}: missing, {target} needs it")
    for name, value in arguments.items():
        if name not in parameters:
            raise ConfigError(f"model.mixer.{name}: {target} takes no such argument{nearest(name, parameters)}")
        annotation = annotations.get(name, Any)
        if not _is_of_type(value, annotation):
            expected = getattr(annotation, "__name__", str(annotation))
            raise ConfigError(f"model.mixer.{name}: got {value!r}, expected {expected}")


def _is_of_type(value: Any, annotation: Any) -> bool:
    """Whether a YAML value is of an annotated type: ints pass for floats, lists for tuples, bools for bools alone.

    >>> _is_of_type(1, float | None), _is_of_type([0, 1], tuple[float, float]), _is_of_type(True, int)
    (True, True, False)
    """
    if annotation is Any:
        return True
    if isinstance(annotation, types.UnionType):
        return any(_is_of_type(value, option) for option in typing.get_args(annotation))
    if typing.get_origin(annotation) is tuple:
        options = typing.get_args(annotation)
        is_list = isinstance(value, list | tuple) and len(value) == len(options)
        return is_list and all(map(_is_of_type, value, options))
    if isinstance(value, bool):
        return annotation is bool
    return isinstance(value, int | float if annotation is float else annotation)
