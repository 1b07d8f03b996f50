"""Tokenising in processes: batches of records go out, token ids come back in the order of the records."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np

from palimpsa.config.errors import ConfigError
from palimpsa.text.manifest import DTYPES
from palimpsa.text.records import Batch, Fields, parse
from palimpsa.text.tokenizers import Tokenizer, TokenizerFiles, build_tokenizer

# Batches on their way for each process: enough that none waits for a slow one, few enough to keep in memory.
BATCHES_PER_WORKER = 3


@dataclass(frozen=True)
class TokenisedBatch:
    """The documents of a batch.

    Args:
        tokens: [sum of lengths], with end_of_text behind each document.
        lengths, num_bytes: [documents] int64, in tokens and in bytes of UTF-8.
        licences: [documents].
    """

    tokens: np.ndarray
    lengths: np.ndarray
    num_bytes: np.ndarray
    licences: list[str]


def tokenise(batch: Batch, tokenizer: Tokenizer, fields: Fields) -> TokenisedBatch:
    """The token ids of a batch's documents. Raises ConfigError: see `records.parse`."""
    documents = parse(batch, fields)
    encoded = tokenizer.encode_batch([one.text for one in documents])
    lengths = np.array([len(one) + 1 for one in encoded], np.int64)
    tokens = np.full(lengths.sum(), tokenizer.facts.end_of_text, DTYPES[tokenizer.facts.dtype])
    for start, ids in zip(np.cumsum(lengths) - lengths, encoded, strict=True):
        tokens[start : start + len(ids)] = ids
    num_bytes = np.array([len(one.text.encode("utf-8")) for one in documents], np.int64)
    return TokenisedBatch(tokens, lengths, num_bytes, [one.licence for one in documents])


class TokeniserPool:
    """Processes that tokenise; a context manager.

    What they make is handed over in files, and only the names go through the pool's pipe: a process that is killed in
    the middle of a longer message leaves one that nobody ends, and whoever reads it waits for ever.

    Args:
        files: of the tokenizer; every process loads its own.
        num_workers: processes.
    """

    def __init__(self, files: TokenizerFiles, num_workers: int) -> None:
        self._in_flight = BATCHES_PER_WORKER * num_workers
        self._folder = tempfile.TemporaryDirectory(prefix="palimpsa-tokens-")
        # Not forked: whoever prepares text may have threads of pyarrow's, whose locks a fork copies.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(
            num_workers, context, initializer=_start_worker, initargs=(files, self._folder.name)
        )

    def __enter__(self) -> TokeniserPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._folder.cleanup()

    def tokenise_in_order(self, batches: Iterable[Batch], fields: Fields) -> Iterator[tuple[Batch, TokenisedBatch]]:
        """Each batch with its tokens, in the order in which they came, whatever the number of processes.

        Raises:
            ConfigError: for the first record that is wrong; what comes before it has been handed out by then.
            RuntimeError: a process was killed.
        """
        pending: deque[tuple[Batch, Future[Path]]] = deque()
        source, error = iter(batches), None
        try:
            while error is None:
                try:
                    batch = next(source, None)
                except ConfigError as raised:
                    # Records that were read before may be wrong too, and come first.
                    error = raised
                    break
                if batch is None:
                    break
                pending.append((batch, self._pool.submit(_tokenise_here, batch, fields, self._folder.name)))
                if len(pending) >= self._in_flight:
                    done, future = pending.popleft()
                    yield done, _take(future.result())
            while pending:
                done, future = pending.popleft()
                yield done, _take(future.result())
        except BrokenProcessPool as broken:
            raise RuntimeError(
                "a process that tokenised was killed: out of memory? num_workers=1 needs least"
            ) from broken
        if error is not None:
            raise error


# Of this process, where it is one of a pool's.
_tokenizer: Tokenizer | None = None


def _start_worker(files: TokenizerFiles, folder: str) -> None:
    global _tokenizer
    # Ctrl-C is for the process that reads and writes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    _tokenizer = build_tokenizer(files)


def _end_with_parent(folder: str) -> None:
    """A pool's processes wait for ever for a parent that was killed, which removes no folder either."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    with contextlib.suppress(OSError):
        wait([parent.sentinel])
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _tokenise_here(batch: Batch, fields: Fields, folder: str) -> Path:
    """The file below the folder that holds the batch's tokens."""
    assert _tokenizer is not None
    found = tokenise(batch, _tokenizer, fields)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            pickle.dump(found, file)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            # The system does not say which disk is full, and this may be another one than that of the shards.
            error.filename = folder
        raise
    return Path(file.name)


def _take(file: Path) -> TokenisedBatch:
    """What one of these processes has made, whose file is gone afterwards."""
    found = pickle.loads(file.read_bytes())
    file.unlink()
    return found
