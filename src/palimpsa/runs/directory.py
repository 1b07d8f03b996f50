"""What a run leaves on disk, and what it may do where something lies already."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from palimpsa.config.errors import RunDirectoryError
from palimpsa.config.schema import IRRELEVANT_KEYS

RESULT_FORMAT = 1
# Where a checkpoint keeps the config of its model.
MODEL_CONFIG_KEY = "model_config"
# How often, 10 ms apart, a lock is tried: a process that only looks at it (`lock_holder`) holds it for a moment.
LOCK_TRIES = 20


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
                    raise LockHeldError(_told_holder(file)) from None
                time.sleep(0.01)
        # A full disk has no room for the news, and the lock holds without it.
        with contextlib.suppress(OSError):
            news = f"process {os.getpid()} on {socket.gethostname()}".encode()
            os.pwrite(file.fileno(), news, 0)
            os.ftruncate(file.fileno(), len(news))
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
            return _told_holder(file)
    return None


def _told_holder(file: Any) -> str:
    file.seek(0)
    return file.read().strip() or "a process that does not say which"


def atomic_write(path: Path, text: str) -> None:
    """Writes a file whole or not at all: a crash leaves the old one."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a plain config that decides what is computed: all but `IRRELEVANT_KEYS`, as flat dotted keys."""
    flat = flatten(config)
    return {k: v for k, v in flat.items() if not any(k == r or k.startswith(f"{r}.") for r in IRRELEVANT_KEYS)}


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def config_hash(config: dict[str, Any]) -> str:
    """16 hexadecimal digits that two configs share when they describe the same computation."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:16]


class RunDirectory:
    """One run's directory: config.json, history.csv, checkpoints/last.ckpt and, last of all, result.json."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.lock_file = self.path / ".lock"
        self.result_file = self.path / "result.json"
        self.config_file = self.path / "config.json"
        self.history_file = self.path / "history.csv"
        self.checkpoint_file = self.path / "checkpoints" / "last.ckpt"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the directory and keeps every other process out of it; the system lifts the lock of a killed process.

        Raises:
            RunDirectoryError: where it cannot be made or written, or another process holds it.
        """
        with contextlib.ExitStack() as stack:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                stack.enter_context(hold_lock(self.lock_file))
            except LockHeldError as error:
                raise RunDirectoryError(
                    f"run_dir: {self.path} is in use by another process ({error.holder}), expected a free one"
                ) from error
            except OSError as error:
                raise RunDirectoryError(f"results_dir: cannot write to {self.path}: {error.strerror}") from error
            yield

    def inspect(self, config: dict[str, Any]) -> dict[str, Any] | None:
        """The result that the directory holds, finished or failed; None where there is none. Writes nothing.

        Raises:
            RunDirectoryError: where the directory holds another config or a damaged file.
        """
        stored = self._read(self.config_file)
        result = self._read(self.result_file)
        if result is not None and result.get("format") != RESULT_FORMAT:
            raise RunDirectoryError(
                f"{self.result_file}: got format {result.get('format')!r}, expected {RESULT_FORMAT}; "
                "it is of another version of this code: choose another results_dir"
            )
        if stored is None and result is not None:
            stored = result.get("config")
        if stored is not None:
            self._compare(stored, config)
        return result

    def claim(self, config: dict[str, Any]) -> dict[str, Any] | None:
        """Takes the directory for a config; returns the result where that run is finished already.

        Raises:
            RunDirectoryError: where the directory holds another config or a damaged file, or cannot be written.
        """
        result = self.inspect(config)
        if result is not None and result.get("status") == "finished":
            return result
        try:
            atomic_write(self.config_file, json.dumps(config, indent=1))
        except OSError as error:
            raise RunDirectoryError(f"results_dir: cannot write to {self.path}: {error.strerror}") from error
        return None

    def holder(self) -> str | None:
        """Which process is at work here, in words; None where none is."""
        return lock_holder(self.lock_file)

    def checkpoint_step(self) -> int | None:
        """The optimiser step that the last checkpoint goes on from; None where it does not say."""
        import torch

        try:
            content = torch.load(self.checkpoint_file, weights_only=True, map_location="cpu", mmap=True)
            return int(content["global_step"])
        except Exception:
            # Whether it is damaged, and how, is for the run to say that reads all of it.
            return None

    def readable_checkpoint(self, weights: Mapping[str, Any], config: dict[str, Any]) -> Path | None:
        """The last checkpoint, None where there is none.

        Args:
            weights: the state_dict that it is to fill.
            config: the run's plain config.

        Raises:
            RunDirectoryError: where it cannot be read, or is of another model.
        """
        import torch

        path = self.checkpoint_file
        if not path.exists():
            return None
        try:
            content = torch.load(path, weights_only=True, map_location="cpu")
            stored = {"model": content.get(MODEL_CONFIG_KEY, {})}
            changes = _changes(stored, {"model": config["model"]}) if stored["model"] else []
            changes += _weight_changes(content["state_dict"], weights)
        except Exception as error:
            raise RunDirectoryError(
                f"{path}: got {path.stat().st_size} bytes that are no readable checkpoint ({type(error).__name__}), "
                "expected one of this run; was it cut short? Delete it to start the run again"
            ) from error
        if changes:
            raise RunDirectoryError(
                f"model: {path} is a checkpoint of another model, expected one of this run's "
                f"{config['model']['name']} ({_shortened(changes)}). Delete it to start the run again"
            )
        return path

    def write_result(self, result: dict[str, Any]) -> None:
        """The last act of a run."""
        atomic_write(self.result_file, json.dumps(result, indent=1, allow_nan=False))

    def _read(self, path: Path) -> dict[str, Any] | None:
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise RunDirectoryError(
                f"{path}: got {path.stat().st_size} bytes that are not JSON ({error}), expected a run's {path.name}; "
                "was it cut short? Delete it to run again"
            ) from error
        if not isinstance(content, dict):
            raise RunDirectoryError(f"{path}: got a JSON {type(content).__name__}, expected an object; delete it")
        return content

    def _compare(self, stored: dict[str, Any], config: dict[str, Any]) -> None:
        changes = _changes(stored, config)
        if changes:
            raise RunDirectoryError(
                f"run_dir: {self.path} holds a run of another config ({_shortened(changes)}). "
                "Give the new one a name of its own (variant=_NAME), another results_dir, or delete the directory"
            )


def _changes(stored: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """What two configs compute differently, a phrase a key."""
    # Through JSON and back: tuples become lists and 1e-3 the same float on both sides.
    old, new = identity(stored), identity(json.loads(json.dumps(config)))
    return [
        f"{key}: stored {old.get(key, 'nothing')!r}, now {new.get(key, 'nothing')!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, ...) != new.get(key, ...)
    ]


def _weight_changes(stored: Mapping[str, Any], weights: Mapping[str, Any]) -> list[str]:
    """The tensors that one of two state_dicts lacks or has in another shape, a phrase each."""
    old, new = ({key: list(value.shape) for key, value in tensors.items()} for tensors in (stored, weights))
    return [
        f"{key}: stored {old.get(key, 'nothing')}, now {new.get(key, 'nothing')}"
        for key in [*new, *sorted(old.keys() - new.keys())]
        if old.get(key) != new.get(key)
    ]


def _shortened(changes: list[str], most: int = 5) -> str:
    more = f"; and {len(changes) - most} more" if len(changes) > most else ""
    return "; ".join(changes[:most]) + more
