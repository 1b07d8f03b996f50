"""The schema of configs/prepare_text.yaml: every key, its range and its unit; and a command line as such a config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from palimpsa.config.errors import ConfigError
from palimpsa.config.keys import convert, key


@dataclass
class SourceConfig:
    """configs/source: where text comes from. Of the kind `sample` these are all the keys."""

    name: str = key(names_files=True)
    kind: str = key(choices=("hub", "files", "sample"))


@dataclass
class FieldsConfig(SourceConfig):
    """Where a record has what.

    Args:
        text_field: the field, or column, of a document's text.
        licence_field: that of its licence or source, to be counted; null: every document has `licence`.
        licence: of documents without such a field.
    """

    text_field: str = key()
    licence_field: str | None = key(None)
    licence: str = key()


@dataclass
class HubConfig(FieldsConfig):
    """A data set of the hub, streamed.

    Args:
        revision: null: the newest, to which a run that goes on holds.
    """

    dataset: str = key()
    subset: str | None = key(None)
    split: str = key()
    revision: str | None = key(None)


@dataclass
class FilesConfig(FieldsConfig):
    """Local files: JSONL, parquet, plain text.

    Args:
        files: paths, folders, patterns.
        split_text_at: of plain text: a regular expression for the whole first line of each document; null: a file is a
            document.
    """

    files: list[str] = key()
    split_text_at: str | None = key(None)


SOURCES = {"hub": HubConfig, "files": FilesConfig, "sample": SourceConfig}


@dataclass
class PrepareTextConfig:
    """configs/prepare_text.yaml.

    Args:
        directory: of the token shards: `train` and `validation` are made in it.
        tokenizer: "bytes", a file, a folder, or a hub's name; see `tokenizers.load_tokenizer`.
        tokenizer_revision: of a hub's.
        end_of_text: the token that ends a document; null: the tokenizer's own.
        validation_every: one document of so many is for validation, from the first on; null: none.
        validation_files: whose documents are for validation instead, with the fields of `source`.
        max_tokens: for training: the document that reaches it is the last one; null: the whole source.
        num_workers: processes that tokenise; null: one a core. The shards are the same for any.
        fresh: true: throws away what is in the directory and begins anew.
    """

    directory: str = key()
    source: SourceConfig = key(kinds=SOURCES)
    tokenizer: str = key()
    tokenizer_revision: str | None = key(None)
    end_of_text: str | None = key(None)
    validation_every: int | None = key(None, minimum=2, unit="documents")
    validation_files: list[str] = key(factory=list)
    max_tokens: int | None = key(None, minimum=1, unit="tokens")
    tokens_per_shard: int = key(minimum=1, maximum=2_000_000_000, unit="tokens")
    num_workers: int | None = key(None, minimum=1, maximum=1_024)
    fresh: bool = key(False)


def load(overrides: Sequence[str]) -> PrepareTextConfig:
    """A command line's config, composed and checked.

    Raises:
        ConfigError: in one line, naming the key, what came and what was expected.
    """
    # Here and not above: whoever reads shards needs no Hydra.
    from palimpsa.config.checks import check_ranges, check_writable
    from palimpsa.config.compose import compose_values

    config = convert(PrepareTextConfig, compose_values(overrides, "prepare_text"))
    check_ranges(config)
    if not config.directory or "\0" in config.directory:
        raise ConfigError(f"directory: got {config.directory!r}, expected a folder for the token shards")
    check_writable(config.directory, Path(config.directory), "directory")
    if config.validation_every is not None and config.validation_files:
        raise ConfigError(
            f"validation_every: got {config.validation_every}, expected null with validation_files: one or the other"
        )
    if config.validation_files and not isinstance(config.source, FilesConfig):
        raise ConfigError(f"validation_files: got {config.validation_files}, expected none but with source=files")
    return config
