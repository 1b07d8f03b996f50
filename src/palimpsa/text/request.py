"""What a config asks for: its sources, all that its token shards depend on, and whether shards are those."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from palimpsa.config.errors import ConfigError
from palimpsa.text.documents import FileSource, sample_source
from palimpsa.text.hub import HubSource
from palimpsa.text.manifest import TokenizerFacts
from palimpsa.text.records import Batch, Fields
from palimpsa.text.schema import FilesConfig, HubConfig, PrepareTextConfig


class Source(Protocol):
    """Where records come from."""

    fields: Fields

    def facts(self) -> dict[str, Any]:
        """What the manifest says of it; the same facts are the same records."""
        ...

    def batches(self, state: dict[str, Any] | None) -> Iterator[Batch]:
        """The records, from the start or from behind the batch whose `after` is given."""
        ...


def make_sources(config: PrepareTextConfig) -> tuple[Source, Source | None]:
    """What is read, and the validation files where there are some."""
    chosen = config.source
    if isinstance(chosen, HubConfig):
        fields = Fields(chosen.text_field, chosen.licence_field, chosen.licence)
        return HubSource(chosen.dataset, chosen.subset, chosen.split, chosen.revision, fields), None
    if not isinstance(chosen, FilesConfig):
        return sample_source(), None
    fields = Fields(chosen.text_field, chosen.licence_field, chosen.licence)
    source = FileSource(chosen.files, fields, chosen.split_text_at)
    if not config.validation_files:
        return source, None
    validation = FileSource(config.validation_files, fields, chosen.split_text_at, "validation_files")
    both = {one.resolve() for one in source.paths} & {one.resolve() for one in validation.paths}
    if both:
        raise ConfigError(f"validation_files: got {min(both)}, expected none of source.files")
    return source, validation


def make_request(
    config: PrepareTextConfig, source: Source, validation: Source | None, tokenizer: TokenizerFacts
) -> dict[str, Any]:
    """All that the shards depend on."""
    return {
        "source": source.facts(),
        "validation": validation.facts() if validation is not None else None,
        "validation_every": config.validation_every,
        "fields": vars(source.fields),
        "split_text_at": getattr(config.source, "split_text_at", None),
        "tokenizer": {"sha256": tokenizer.sha256, "end_of_text": tokenizer.end_of_text},
        "max_tokens": config.max_tokens,
        "tokens_per_shard": config.tokens_per_shard,
    }


def check_request(path: Path, there: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raises ConfigError, with the first difference, where what is there was made on another request."""
    # As JSON has it, where a tuple is a list.
    one, other = _flat(there), _flat(json.loads(json.dumps(asked)))
    for name in [*other, *one]:
        if one.get(name) != other.get(name):
            raise ConfigError(
                f"directory: {path} was made with another {name}: {one.get(name)!r}, not {other.get(name)!r}; expected "
                "another directory, or fresh=true, which throws it away"
            )


def _flat(values: Any, path: str = "") -> dict[str, Any]:
    """The leaves of nested values by their paths, `source.files[0].sha256`."""
    if isinstance(values, dict) and values:
        return {k: v for name, one in values.items() for k, v in _flat(one, f"{path}.{name}" if path else name).items()}
    if isinstance(values, list) and values:
        return {k: v for place, one in enumerate(values) for k, v in _flat(one, f"{path}[{place}]").items()}
    return {path: values}
