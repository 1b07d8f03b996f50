"""What a config may not be although its types are right: ranges, and keys that must agree with each other."""

from __future__ import annotations

import dataclasses
import errno
import os
import tempfile
from pathlib import Path
from typing import Any

from palimpsa.config.errors import ConfigError
from palimpsa.config.keys import MAX_NAME, is_file_name, rules
from palimpsa.config.schema import TrainConfig
from palimpsa.config.text import is_line

# Bytes of a file's name on any file system of today's; and of a run's directory, which leaves room for its files.
MAX_FILE_NAME = 255
MAX_PATH = 3_900
# `recipe.forgetting` as configs/recipe has it, for language models alone.
OF_LANGUAGE_RECIPES = ("normal", "random")


def check_config(config: TrainConfig) -> None:
    """Checks a config's values before any work.

    Raises:
        ConfigError: in one line, naming the key, the value that came and what was expected.
    """
    check_ranges(config)
    _check_agreement(config)


def check_ranges(group: Any, path: str = "") -> None:
    """Holds every value of a config's dataclass to its `KeyRule`.

    Args:
        path: of the group, with a dot at its end, for errors.

    Raises:
        ConfigError: for the first value, in the order of the schema, that is out of its range.
    """
    for name, rule in rules(type(group)).items():
        value = getattr(group, name)
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{path}{name}.")
        elif rule.items is not None and value is not None:
            for i, item in enumerate(value):
                check_ranges(item, f"{path}{name}[{i}].")
        else:
            rule.check(f"{path}{name}", value)


def _check_agreement(config: TrainConfig) -> None:
    trainer = config.trainer
    if trainer.cuda_graphs and trainer.accelerator != "gpu":
        raise ConfigError(
            f"trainer.cuda_graphs: got true, expected false with trainer.accelerator={trainer.accelerator}"
        )
    if trainer.cuda_graphs and trainer.checkpoint_blocks:
        # Not tried on a GPU.
        raise ConfigError("trainer.checkpoint_blocks: got true, expected false with trainer.cuda_graphs=true")
    if not is_file_name(f"{config.model.name}{config.variant}"):
        raise ConfigError(
            f"variant: got {config.variant!r}, expected letters, digits, '_', '-', '+' and '.', and with model.name "
            f"{MAX_NAME} bytes at most (a directory's name)"
        )
    # A result without one would be refused when it is read, after the training.
    if not is_line(config.model.label):
        raise ConfigError(
            f"model.label: got {config.model.label!r}, expected what figures and tables call it: a line of text"
        )
    for name in ("results_dir", "run_dir"):
        path = getattr(config, name)
        if not path or "\0" in path:
            found = repr(path) if path else "an empty string"
            raise ConfigError(f"{name}: got {found}, expected a directory")
    if config.logger.name != "wandb" and config.logger.artifacts:
        raise ConfigError(f"logger.artifacts: got true, expected false with logger={config.logger.name}")
    if config.logger.name == "wandb" and config.logger.mode is None:
        raise ConfigError("logger.mode: got null, expected one of offline, online, disabled with logger=wandb")
    if config.model.vocab_size < config.task.vocab_size:
        raise ConfigError(
            f"model.vocab_size: got {config.model.vocab_size}, expected at least task.vocab_size = "
            f"{config.task.vocab_size}"
        )
    # Associative recall's models do not take it: it would be asked for, stored, and change nothing.
    asked, taken = config.recipe.forgetting, config.model.mixer.get("forgetting")
    if hasattr(config.task, "stages") and asked not in (*OF_LANGUAGE_RECIPES, taken):
        raise ConfigError(
            f"recipe.forgetting: got {asked!r}, which models of associative recall do not take, expected "
            f"model.mixer.forgetting={asked}"
        )


def check_writable(value: str, directory: Path, key: str = "results_dir") -> None:
    """Tries to write in `directory`, or in the nearest parent that there is; ConfigError names key and value."""
    folder = directory.absolute()
    try:
        if len(os.fsencode(folder)) > MAX_PATH:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        # A link that leads nowhere is there, and nothing can be made below it.
        while not os.path.lexists(folder):
            if len(os.fsencode(folder.name)) > MAX_FILE_NAME:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            folder = folder.parent
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"{key}: got {value!r}, expected a directory that can be written ({folder}: {error.strerror})"
        ) from error
