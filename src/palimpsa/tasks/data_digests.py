"""What a run's identity says of the data that it reads: digests, where the path of a folder says nothing.

Needs no torch: a sweep asks for every one of its runs.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from palimpsa.config.errors import ConfigError
from palimpsa.config.schema import CommonsenseConfig, TrainConfig
from palimpsa.text.manifest import read_manifest


def with_data_digests(config: TrainConfig) -> TrainConfig:
    """The config with the digests of its data; one that has them is held to them, of a task without data as it is.

    Raises:
        ConfigError: where the data are missing or damaged, or are not those that the config has the digests of.
    """
    task = config.task
    if not isinstance(task, CommonsenseConfig):
        return config
    folders = {split: split_folder(task.data, split) for split in ("train", "validation")}
    manifests = {split: read_manifest(folder) for split, folder in folders.items()}
    found = {
        "train_digest": (folders["train"], manifests["train"].digest),
        "validation_digest": (folders["validation"], manifests["validation"].digest),
        "tokenizer_digest": (folders["train"], manifests["train"].tokenizer.sha256),
    }
    for name, (folder, digest) in found.items():
        given = getattr(task, name)
        if given not in (None, digest):
            raise ConfigError(
                f"task.{name}: got {given}, expected {digest}, that of {folder}; null reads it from there"
            )
    digests = {name: digest for name, (_, digest) in found.items()}
    return dataclasses.replace(config, task=dataclasses.replace(task, **digests))


def split_folder(data: str, split: str) -> Path:
    """Where the token shards of a split are. ConfigError where `task.data` is no folder of them."""
    folder = Path(data).expanduser() / split
    if not folder.is_dir():
        raise ConfigError(
            f"task.data: got {data!r}, expected a folder that scripts/prepare_text.py wrote: it has no folder {split}/"
        )
    return folder
