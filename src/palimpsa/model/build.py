"""From a `model` config to the network, and what its constructors refuse, told before a run starts."""

from __future__ import annotations

import importlib
import inspect
import types
import typing
from typing import Any

import torch
from hydra.utils import instantiate

from palimpsa import mixers
from palimpsa.config.errors import ConfigError, nearest
from palimpsa.model.language_model import LanguageModel


def build_model(config: Any, seed: int | None) -> LanguageModel:
    """The network of a `model` config.

    Args:
        config: the `model` group of configs/train.yaml.
        seed: the initial weights are a function of it alone; None leaves them for a checkpoint to fill.
    """
    return LanguageModel(
        config.vocab_size,
        config.d_model,
        config.num_layers,
        instantiate(config.mixer, _partial_=True),
        norm=config.norm,
        norm_eps=config.norm_eps,
        channel_mixer=config.channel_mixer,
        channel_width=config.channel_width,
        init_std=config.init_std,
        generator=None if seed is None else torch.Generator().manual_seed(seed),
    )


def check_model(model: dict[str, Any]) -> None:
    """Checks a plain `model` config by building it without memory.

    Raises:
        ConfigError: naming the key below model, what came and what was expected.
    """
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
