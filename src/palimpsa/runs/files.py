"""Files that a reader never sees half of, and files that only one process at a time may hold."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

# How often, 10 ms apart, a lock is tried: a process that only asks for its holder has it for a moment.
LOCK_TRIES = 20


def write_atomic(path: Path, content: str | bytes | memoryview, *, partial: Path | None = None) -> Path:
    """Writes a file whole or not at all: a crash or a full disk leaves the old one.

    Args:
        path: parent folders are made.
        content: text as UTF-8, line ends as they are, or bytes.
        partial: where it is written first, for a path that has one writer at most: what a kill leaves there the next
            one overwrites. None: a file that no two writers share.

    Returns:
        `path`.

    Raises:
        OSError: where the place cannot be written.
    """
    (written,) = write_all_atomic({path: content}, {} if partial is None else {path: partial})
    return written


def write_all_atomic(
    contents: Mapping[Path, str | bytes | memoryview], partial: Mapping[Path, Path] | None = None
) -> list[Path]:
    """Writes several files that belong together, as `write_atomic`; returns their paths.

    All are written beside their places, and are on the disk, before the first takes its own: where there is no room for
    one of them, each is what it was before.

    Args:
        contents: by path, as `write_atomic` takes them.
        partial: by path, where they are written first: see there.
    """
    # No two writers share a temporary file, also not those of two machines.
    temporary = {path: path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp") for path in contents} | dict(
        partial or {}
    )
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary[path].open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            os.replace(temporary[path], path)
    finally:
        for file in temporary.values():
            # A full disk may refuse this too, and the error that is under way says more.
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
    return list(contents)


class LockHeldError(Exception):
    """Another process holds a lock file.

    Args:
        holder: that process, in words.
    """

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Holds a lock file, which says who does; the system lifts the lock of a killed process.

    Raises:
        LockHeldError: where another process holds it.
        OSError: where it cannot be written.
    """
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+") as file:
        for attempt in range(LOCK_TRIES):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if attempt == LOCK_TRIES - 1:
                    raise LockHeldError(_holder_written_in(file)) from None
                time.sleep(0.01)
        # A full disk has no room for the name, and the lock holds without it.
        with contextlib.suppress(OSError):
            name = f"process {os.getpid()} on {socket.gethostname()}".encode()
            os.pwrite(file.fileno(), name, 0)
            os.ftruncate(file.fileno(), len(name))
        yield


def lock_holder(path: Path) -> str | None:
    """Which process holds a lock file, in words; None where none does."""
    try:
        file = path.open()
    except FileNotFoundError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _holder_written_in(file)
    return None


def _holder_written_in(file: IO[str]) -> str:
    file.seek(0)
    return file.read().strip() or "a process that does not say which"
