"""Which of Hydra's own keys a command may set: the others would move a run, or change it, behind the ledger's back."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from palimpsa.config.compose import parse_overrides
from palimpsa.config.errors import ConfigError
from palimpsa.config.moved import unknown_key
from palimpsa.runs.identity import flatten

# What a command may set; the last two are texts of --help.
HONOURED = ("launcher", "mode", "searchpath", "sweeper", "help", "hydra_help")
SWEEPER_KEYS = ("params", "selection_seeds", "max_batch_size")
# What Hydra fills in, whatever it was.
FILLED_IN = ("runtime", "overrides", "job.override_dirname", "job.config_name")
ADVICE = (
    "a run's place is for results_dir and run_dir to say; of Hydra's own keys a command may set hydra.launcher, "
    "hydra.sweeper, hydra.mode and hydra.searchpath"
)

# Told as an error below.
warnings.filterwarnings("ignore", message=r"provider=hydra\.searchpath")


def check_hydra_overrides(overrides: Sequence[str]) -> None:
    """Refuses on a command line what Hydra would overwrite without a word; within `composition`.

    Raises:
        ConfigError: naming the key.
    """
    for override in parse_overrides(overrides):
        key = override.key_or_group.removeprefix("hydra.")
        if override.is_hydra_override() and _is_below(key, FILLED_IN):
            raise ConfigError(f"{override.input_line}: got a key that Hydra fills in itself; {ADVICE}")


def check_hydra_keys(config: DictConfig) -> None:
    """Holds Hydra's own part of a config to that of configs/train.yaml, but for what a command may set.

    Args:
        config: composed with Hydra's own part; within `composition`.

    Raises:
        ConfigError: naming the first key that differs, or a folder of hydra.searchpath that is not there.
    """
    for source in config.hydra.runtime.config_sources:
        if source.provider.startswith("hydra.searchpath") and source.schema == "file" and not _is_folder(source.path):
            raise ConfigError(f"hydra.searchpath: got {source.path!r}, expected a folder of configs")
    _check_launcher_keys(config)
    sweeper = config.hydra.runtime.choices.get("hydra/sweeper")
    if sweeper != "phased" or not OmegaConf.is_dict(config.hydra.sweeper):
        raise ConfigError(f"hydra/sweeper: got {sweeper!r}, expected phased")
    params = config.hydra.sweeper.get("params")
    if params is not None and not OmegaConf.is_dict(params):
        raise ConfigError(f"hydra.sweeper.params: got {params!r}, expected keys with their values, or null")
    own, expected = _fixed_keys(config), _shipped_keys()
    for key in sorted(own.keys() | expected.keys()):
        if own.get(key) != expected.get(key):
            got, wanted = (repr(keys[key]) if key in keys else "nothing" for keys in (own, expected))
            raise ConfigError(f"hydra.{key}: got {got}, expected {wanted}; {ADVICE}")


def _check_launcher_keys(config: DictConfig) -> None:
    """Raises ConfigError for a launcher that is none, or that has a key which its file does not know."""
    launcher, choice = config.hydra.launcher, config.hydra.runtime.choices.get("hydra/launcher")
    if not OmegaConf.is_dict(launcher):
        raise ConfigError(f"hydra.launcher: got {launcher!r}, expected the keys of a launcher")
    if choice is None:
        return
    known = _launcher_keys(choice)
    for name in launcher:
        if name not in known:
            raise ConfigError(unknown_key(f"hydra.launcher.{name}", known))


@functools.cache
def _launcher_keys(choice: str) -> list[str]:
    return [
        str(name) for name in compose("train", [f"hydra/launcher={choice}"], return_hydra_config=True).hydra.launcher
    ]


def _fixed_keys(config: DictConfig) -> dict[str, Any]:
    """The keys below `hydra` that no command may set, interpolations as they are written."""
    container: Any = OmegaConf.to_container(config.hydra, resolve=False)
    keys = flatten({name: value for name, value in container.items() if name != "sweeper"})
    fixed = {key: value for key, value in keys.items() if not _is_below(key, (*HONOURED, *FILLED_IN))}
    return fixed | {
        f"sweeper.{name}": value for name, value in container["sweeper"].items() if name not in SWEEPER_KEYS
    }


@functools.cache
def _shipped_keys() -> dict[str, Any]:
    return _fixed_keys(compose("train", return_hydra_config=True))


def _is_below(key: str, parents: Sequence[str]) -> bool:
    return any(key == parent or key.startswith((f"{parent}.", f"{parent}[")) for parent in parents)


def _is_folder(path: str) -> bool:
    return Path(path).is_dir()
