"""From a source to token shards: what was asked for, what is there already, and the loop that goes on after a kill."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from palimpsa.config.errors import ConfigError
from palimpsa.runs.files import LockHeldError, hold_lock, write_atomic
from palimpsa.text.files import MANIFEST, remove_checkpoints, remove_shards
from palimpsa.text.hub import HubSource
from palimpsa.text.manifest import TokenizerFacts, json_sha256, read_manifest
from palimpsa.text.request import Source, check_request, make_request, make_sources
from palimpsa.text.schema import PrepareTextConfig
from palimpsa.text.shards import ShardWriter, TokenShards
from palimpsa.text.tokenise import TokenisedBatch, TokeniserPool
from palimpsa.text.tokenizers import build_tokenizer, find_tokenizer

TRAIN, VALIDATION = "train", "validation"
PROGRESS = "progress.json"
LOCK = ".lock"
_PACKAGES = ("palimpsa", "numpy", "sentencepiece", "tokenizers", "datasets", "pyarrow")


@dataclass
class Standing:
    """How far the work is, for whoever shows it.

    Args:
        fraction: of the source, read so far; None where nobody knows.
        resumed_tokens: that were there when this process began.
    """

    num_tokens: int = 0
    num_documents: int = 0
    num_shards: int = 0
    fraction: float | None = None
    resumed_tokens: int = 0


@dataclass
class _Work:
    """The state of the loop; all of it is in progress.json."""

    writers: dict[str, ShardWriter]
    licences: dict[str, Counter[str]]
    # Of `parts`: the one being read, and where.
    part: int = 0
    after: dict[str, Any] | None = None
    # Documents of the first part, which say which of them are for validation.
    num_documents: int = 0
    standing: Standing = field(default_factory=Standing)


def prepare(
    config: PrepareTextConfig, command: str = "", report: Callable[[Standing], None] = lambda standing: None
) -> tuple[dict[str, TokenShards], bool]:
    """Makes the token shards that a config asks for, or goes on making them.

    Args:
        command: the command line, for the manifest.
        report: called after each batch.

    Returns:
        the shards by split, and whether they were there already.

    Raises:
        ConfigError: the source, the tokenizer or what is in the directory is not what was expected.
        OSError: a file cannot be written; what is finished stays, and the next call goes on.
        RuntimeError: a process was killed.
    """
    directory = Path(config.directory)
    source, validation = make_sources(config)
    files = find_tokenizer(config.tokenizer, end_of_text=config.end_of_text, revision=config.tokenizer_revision)
    facts = build_tokenizer(files).facts
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with hold_lock(directory / LOCK):
            request = make_request(config, source, validation, facts)
            splits = [TRAIN, *([VALIDATION] if validation is not None or config.validation_every is not None else [])]
            if config.fresh:
                if isinstance(source, HubSource):
                    # Nothing is thrown away for a hub that cannot be reached.
                    source.resolve_revision()
                (directory / PROGRESS).unlink(missing_ok=True)
                for name in (TRAIN, VALIDATION):
                    remove_shards(directory / name)
            finished = _finished(directory, splits, request)
            if finished is not None:
                return finished, True
            work, revision = _begin(directory, splits, config, facts, request)
            if isinstance(source, HubSource):
                # The newest one may be another by the time that this goes on.
                source.revision = revision = revision or source.resolve_revision()
            with TokeniserPool(files, config.num_workers or _num_cores()) as pool:
                parts = [source, *([validation] if validation is not None else [])]
                while work.part < len(parts):
                    for fraction, is_shard in _tokenise_part(parts[work.part], pool, work, config):
                        if is_shard:
                            _save(directory, work, request, revision)
                        _stand(work, fraction)
                        report(work.standing)
                    work.part, work.after = work.part + 1, None
            return _finish(directory, work, config, request, revision, command), False
    except LockHeldError as error:
        raise ConfigError(f"directory: {directory} is being made by {error.holder}") from error


def _finished(directory: Path, splits: list[str], request: dict[str, Any]) -> dict[str, TokenShards] | None:
    """The shards, where all are there; they, and those of another config, are never written over."""
    there = [name for name in (TRAIN, VALIDATION) if (directory / name / MANIFEST).exists()]
    for name in there:
        check_request(directory / name, read_manifest(directory / name).request, request)
    if there != splits:
        return None
    found = {name: TokenShards.open(directory / name) for name in splits}
    # A kill may have come between the last manifest and this.
    _remove_progress(directory)
    return found


def _remove_progress(directory: Path) -> None:
    """Where all splits are finished: the file that asks for the checkpoints before these."""
    (directory / PROGRESS).unlink(missing_ok=True)
    for name in (TRAIN, VALIDATION):
        remove_checkpoints(directory / name)


def _begin(
    directory: Path, splits: list[str], config: PrepareTextConfig, facts: TokenizerFacts, request: dict[str, Any]
) -> tuple[_Work, str | None]:
    """The work so far, nothing where there was none; and the revision of the hub's data set that it holds to."""
    saved = _read_progress(directory / PROGRESS)
    if saved is None:
        # What was killed before its first checkpoint, of whatever config.
        for name in (TRAIN, VALIDATION):
            remove_shards(directory / name)
    else:
        check_request(directory, saved["request"], request)
    writers = {
        name: ShardWriter(directory / name, tokenizer=facts, tokens_per_shard=config.tokens_per_shard)
        for name in splits
    }
    if saved is None:
        return _Work(writers, {name: Counter() for name in splits}), None
    for name, writer in writers.items():
        writer.restore(saved["writers"][name])
    licences = {name: Counter(saved["licences"][name]) for name in splits}
    work = _Work(writers, licences, saved["part"], saved["after"], saved["num_documents"])
    _stand(work, None)
    work.standing.resumed_tokens = work.standing.num_tokens
    return work, saved["revision"]


def _read_progress(path: Path) -> dict[str, Any] | None:
    """What `_save` wrote, but for its checksum; None where it wrote nothing."""
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_bytes())
        is_whole = saved.pop("checksum") == json_sha256(saved)
    except (ValueError, KeyError, AttributeError):
        is_whole = False
    if not is_whole:
        raise ConfigError(f"{path}: is damaged or was changed, expected what was written; fresh=true begins anew")
    return saved


def _num_cores() -> int:
    """Those that this process may use, where the system says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _stand(work: _Work, fraction: float | None) -> None:
    work.standing.num_tokens = sum(one.num_tokens for one in work.writers.values())
    work.standing.num_documents = sum(one.num_documents for one in work.writers.values())
    work.standing.num_shards = sum(one.num_shards for one in work.writers.values())
    work.standing.fraction = fraction


def _tokenise_part(
    source: Source, pool: TokeniserPool, work: _Work, config: PrepareTextConfig
) -> Iterator[tuple[float | None, bool]]:
    """Adds the documents of one part to their splits; says after each batch how much is read, and of a full shard."""
    if work.part == 0 and config.max_tokens is not None and work.writers[TRAIN].num_tokens >= config.max_tokens:
        # Killed behind the last batch.
        return
    for batch, found in pool.tokenise_in_order(source.batches(work.after), source.fields):
        num_shards = sum(one.num_shards for one in work.writers.values())
        is_last = _add(found, work, config)
        work.after = batch.after
        yield batch.fraction, sum(one.num_shards for one in work.writers.values()) > num_shards
        if is_last:
            return


def _add(found: TokenisedBatch, work: _Work, config: PrepareTextConfig) -> bool:
    """Adds a batch's documents to their splits; returns whether training has its `max_tokens`."""
    lengths = found.lengths
    is_validation = np.full(len(lengths), work.part > 0)
    if work.part == 0 and config.validation_every is not None:
        is_validation = (work.num_documents + np.arange(len(lengths))) % config.validation_every == 0
    kept, is_last = len(lengths), False
    if work.part == 0 and config.max_tokens is not None:
        reached = work.writers[TRAIN].num_tokens + np.cumsum(np.where(is_validation, 0, lengths)) >= config.max_tokens
        is_last = bool(reached.any())
        kept = int(np.argmax(reached)) + 1 if is_last else kept
    of_token = np.repeat(is_validation, lengths)
    num_tokens = int(lengths[:kept].sum())
    for name, writer in work.writers.items():
        chosen = (is_validation == (name == VALIDATION))[:kept]
        tokens = found.tokens[:num_tokens][of_token[:num_tokens] == (name == VALIDATION)]
        writer.add_documents(tokens, lengths[:kept][chosen], found.num_bytes[:kept][chosen])
        work.licences[name].update(one for one, is_chosen in zip(found.licences, chosen, strict=False) if is_chosen)
    work.num_documents += kept
    return is_last


def _save(directory: Path, work: _Work, request: dict[str, Any], revision: str | None) -> None:
    """Makes what is done so far last: what the writers need first, then the file that says so, whole or not at all."""
    values = {
        "request": request,
        "revision": revision,
        "part": work.part,
        "after": work.after,
        "num_documents": work.num_documents,
        "licences": work.licences,
        "writers": {name: writer.checkpoint() for name, writer in work.writers.items()},
    }
    values = json.loads(json.dumps(values))
    write_atomic(directory / PROGRESS, json.dumps({**values, "checksum": json_sha256(values)}, indent=2))
    for writer in work.writers.values():
        writer.remove_old_checkpoints()


def _finish(
    directory: Path,
    work: _Work,
    config: PrepareTextConfig,
    request: dict[str, Any],
    revision: str | None,
    command: str,
) -> dict[str, TokenShards]:
    for name, writer in work.writers.items():
        if not writer.num_documents:
            total = sum(one.num_documents for one in work.writers.values())
            key = "validation_files" if name == VALIDATION and config.validation_files else "source"
            raise ConfigError(f"{key}: got {total} documents with text, none of them for {name}; expected at least one")
    source = {**request["source"], "name": config.source.name, "revision": revision}
    shards = {
        name: writer.finish(
            request=request,
            source=source if name == TRAIN or request["validation"] is None else request["validation"],
            licences=dict(sorted(work.licences[name].items())),
            versions=_versions(),
            command=command,
        )
        for name, writer in work.writers.items()
    }
    _remove_progress(directory)
    return shards


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
