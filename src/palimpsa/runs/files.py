"""Files that a reader never sees half of, and files that only one process at a time may hold."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, BinaryIO

# Of a temporary file of another machine's, whose processes nobody here can ask for: how long it is left alone.
ABANDONED_S = 24 * 3600
# How often, 10 ms apart, a lock is tried: a process that only asks for its holder has it for a moment.
LOCK_TRIES = 20


def write_atomic(
    path: Path, content: str | bytes | memoryview, *, partial: Path | None = None, keep: Path | None = None
) -> Path:
    """Writes a file whole or not at all: a crash or a full disk leaves the old one.

    Args:
        path: parent folders are made.
        content: text as UTF-8, line ends as they are, or bytes.
        partial: where it is written first, for a path that has one writer at most: what a kill leaves there the next
            one overwrites. None: a file that no two writers share.
        keep: where the file goes that is replaced; None: nowhere.

    Returns:
        `path`.

    Raises:
        OSError: where the place cannot be written.
    """
    partials, kept = ({} if other is None else {path: other} for other in (partial, keep))
    (written,) = write_all_atomic({path: content}, partials, kept)
    return written


def write_all_atomic(
    contents: Mapping[Path, str | bytes | memoryview],
    partial: Mapping[Path, Path] | None = None,
    keep: Mapping[Path, Path] | None = None,
) -> list[Path]:
    """Writes several files that belong together, as `write_atomic`; returns their paths.

    All are written beside their places, and are on the disk, before the first takes its own: where there is no room for
    one of them, each is what it was before.

    Args:
        contents: by path, as `write_atomic` takes them.
        partial, keep: by path, where they are written first, and where what they replace goes: see there.
    """
    temporary = {path: _temporary_of(path) for path in contents} | dict(partial or {})
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_abandoned(path.parent, path.name)
            # Whatever lies there, a pipe that a kill could not leave, is not written to.
            temporary[path].unlink(missing_ok=True)
            with temporary[path].open("xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            if keep and path in keep:
                with contextlib.suppress(FileNotFoundError):
                    os.replace(path, keep[path])
            os.replace(temporary[path], path)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            # The system does not say which file a full disk had no room for.
            error.filename = str(path)
        raise
    finally:
        for file in temporary.values():
            # A full disk may refuse this too, and the error that is under way says more.
            with contextlib.suppress(OSError):
                file.unlink(missing_ok=True)
    return list(contents)


@contextlib.contextmanager
def whole_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder beside a place, which is moved there once it is complete, and removed where it does not become so.

    What a writer that was killed has left of this folder goes first. Folders that it is in are made, and go with it.

    Args:
        replace: what is at the place goes, once the new one is complete.
    """
    place = folder.absolute().parent
    partial, old = _temporary_of(place / folder.name), place / f".{folder.name}.{os.getpid()}.old"
    new_parents = [parent for parent in (place, *place.parents) if not parent.exists()]
    remove_abandoned(place, folder.name)
    try:
        partial.mkdir(parents=True)
        yield partial
        if replace and os.path.lexists(folder):
            os.rename(folder, old)
        try:
            os.rename(partial, folder)
        except OSError:
            if os.path.lexists(old):
                os.rename(old, folder)
            raise
    except OSError as error:
        if error.filename == str(partial):
            # What is asked for, and not where it is made.
            error.filename = str(folder)
        raise
    finally:
        for left in (partial, old):
            shutil.rmtree(left, ignore_errors=True)
        if not os.path.lexists(folder):
            # From within outwards, as long as nobody else has put something there.
            with contextlib.suppress(OSError):
                for parent in new_parents:
                    parent.rmdir()


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Removes the temporary files and folders of writers that were killed, here or, a day ago, on another machine.

    Args:
        folder: where they are.
        name: of what they were to become; None for anything.
    """
    pattern = re.compile(rf"\.{'.+' if name is None else re.escape(name)}\.(\w+)\.(\d+)\.[0-9a-f]{{32}}\.tmp")
    with contextlib.suppress(OSError):
        for file in os.scandir(folder):
            found = pattern.fullmatch(file.name)
            if found is None:
                continue
            if found[1] == _this_machine():
                abandoned = not _is_alive(int(found[2]))
            else:
                abandoned = time.time() - file.stat().st_mtime > ABANDONED_S
            if abandoned:
                # Another process may be as tidy.
                if file.is_dir(follow_symlinks=False):
                    shutil.rmtree(file.path, ignore_errors=True)
                else:
                    Path(file.path).unlink(missing_ok=True)


def _temporary_of(path: Path) -> Path:
    """Where a path is written first: no two writers share it, also not those of two machines."""
    return path.with_name(f".{path.name}.{_this_machine()}.{os.getpid()}.{uuid.uuid4().hex}.tmp")


def _this_machine() -> str:
    return re.sub(r"\W", "_", socket.gethostname())


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        # Somebody else's.
        return True
    return True


def open_regular(path: Path) -> BinaryIO:
    """A file, to be read.

    Raises:
        OSError: where it cannot be read, or is something that may never end, a pipe or a device.
    """
    return os.fdopen(_open(path, os.O_RDONLY), "rb")


def _open(path: Path, flags: int) -> int:
    # Opening a pipe would wait for whoever opens its other end.
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return descriptor


def read_regular(path: Path) -> bytes:
    """The content of a file. Raises OSError: see `open_regular`."""
    with open_regular(path) as file:
        return file.read()


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
    with os.fdopen(_open(path, os.O_RDWR | os.O_CREAT), "r+", encoding="utf-8") as file:
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
        try:
            yield
        finally:
            # Nobody holds it: which machine did is for nobody to read in what a run leaves.
            with contextlib.suppress(OSError):
                os.ftruncate(file.fileno(), 0)


def lock_holder(path: Path) -> str | None:
    """Which process holds a lock file, in words; None where none does."""
    try:
        file = os.fdopen(_open(path, os.O_RDONLY), encoding="utf-8", errors="replace")
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
