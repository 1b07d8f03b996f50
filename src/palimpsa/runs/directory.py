"""What a run leaves on disk, and what it may do where something lies already."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from palimpsa.config.errors import RunDirectoryError
from palimpsa.config.private import with_short_paths
from palimpsa.runs.checkpoints import CheckpointFolder
from palimpsa.runs.files import (
    LockHeldError,
    hold_lock,
    lock_holder,
    open_regular,
    read_regular,
    remove_abandoned,
    write_atomic,
)
from palimpsa.runs.identity import config_hash, differences, upgraded
from palimpsa.runs.result import read_json_object, read_result
from palimpsa.runs.rows import history_of
from palimpsa.runs.schema import FINISHED, FileUnreadableError, ResultError

# Of the keys that differ, how many an error names.
MOST_CHANGES = 5


class RunDirectory:
    """One run's directory: config.json, history.csv, checkpoints/last.ckpt and, last of all, result.json."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.lock_file = self.path / ".lock"
        self.result_file = self.path / "result.json"
        self.config_file = self.path / "config.json"
        self.history_file = self.path / "history.csv"
        self.checkpoints = CheckpointFolder(self.path / "checkpoints")
        self.checkpoint_file = self.checkpoints.last
        # The one before it, which a run goes on from where the last one is damaged.
        self.previous_checkpoint_file = self.checkpoints.previous

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
                remove_abandoned(self.path)
                remove_abandoned(self.checkpoints.path)
                self.checkpoints.remove_partial()
            except LockHeldError as error:
                raise RunDirectoryError(
                    f"run_dir: {self.path} is in use by another process ({error.holder}), expected a free one"
                ) from error
            except OSError as error:
                raise RunDirectoryError(f"results_dir: cannot write to {self.path}: {error.strerror}") from error
            yield

    def inspect(self, config: dict[str, Any]) -> dict[str, Any] | None:
        """The result that the directory holds, however the run ended; None where there is none. Writes nothing.

        Args:
            config: the plain config of the run that is to be here.

        Raises:
            RunDirectoryError: where the directory holds another config or a damaged file.
        """
        try:
            stored = (
                read_json_object(self.config_file, "expected a run's config") if self.config_file.exists() else None
            )
            result = read_result(self.result_file) if self.result_file.exists() else None
        except FileUnreadableError as error:
            raise RunDirectoryError(str(error)) from error
        except OSError as error:
            raise RunDirectoryError(f"results_dir: cannot read {self.path}: {error.strerror}") from error
        except ResultError as error:
            raise RunDirectoryError(f"{error}; was it cut short or changed? Delete it to run again") from error
        if stored is None and result is not None:
            stored = result["config"]
        # The hash of a result is that of its config.
        same = result is not None and stored == result["config"] and result["config_hash"] == config_hash(config)
        if stored is not None and not same:
            self._check_same_run(upgraded(stored), config)
        if result is not None:
            self._check_history(result)
        return result

    def _check_history(self, result: dict[str, Any]) -> None:
        """Raises RunDirectoryError where the curves of a finished run are neither those of its result nor gone."""
        if result["status"] != FINISHED:
            return
        try:
            history_of(self.result_file, result).check(self.history_file, read_regular(self.history_file))
        except FileNotFoundError:
            return
        except OSError as error:
            raise RunDirectoryError(f"{self.history_file}: cannot be read ({error.strerror})") from error
        except ResultError as error:
            raise RunDirectoryError(
                f"{error}; was it cut short or changed? Delete it to do without these curves, or "
                f"{self.result_file.name} to run again"
            ) from error

    def claim(self, config: dict[str, Any]) -> dict[str, Any] | None:
        """Takes the directory for a config; returns the result where that run is finished already.

        Raises:
            RunDirectoryError: where the directory holds another config or a damaged file, or cannot be written.
        """
        result = self.inspect(config)
        if result is not None and result.get("status") == FINISHED:
            return result
        try:
            write_atomic(self.config_file, json.dumps(with_short_paths(config), indent=1))
        except OSError as error:
            raise RunDirectoryError(f"results_dir: cannot write {self.config_file}: {error.strerror}") from error
        return None

    def seems_finished(self) -> bool:
        """Whether the first lines of the result say so: quickly, and without a look at the rest."""
        try:
            with open_regular(self.result_file) as file:
                return f'"status": "{FINISHED}"'.encode() in file.read(200)
        except OSError:
            return False

    def holder(self) -> str | None:
        """Which process is at work here, in words; None where none is."""
        return lock_holder(self.lock_file)

    def has_checkpoint(self) -> bool:
        """Whether a run that is started here may go on from something."""
        return bool(self.checkpoints.newest_first())

    def checkpoint_step(self) -> int | None:
        """The optimiser step that the last checkpoint goes on from; None where it does not say."""
        found = self.checkpoints.newest_first()
        return self.checkpoints.step_of(found[0]) if found else None

    def write_result(self, result: dict[str, Any]) -> None:
        """The last act of a run: what `result.run_result` makes."""
        write_atomic(self.result_file, json.dumps(result, indent=1, allow_nan=False))
        if result["status"] == FINISHED:
            # Of use to one that is to go on.
            with contextlib.suppress(OSError):
                self.previous_checkpoint_file.unlink()
            if self.checkpoints.sharded():
                self.checkpoints.keep_newest(1)

    def _check_same_run(self, stored: dict[str, Any], config: dict[str, Any]) -> None:
        changes = config_changes(stored, config)
        if changes:
            raise RunDirectoryError(
                f"run_dir: {self.path} holds a run of another config ({shortened(changes)}). "
                "Give the new one a name of its own (variant=_NAME), another results_dir, or delete the directory"
            )


def config_changes(stored: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """What two plain configs compute differently, a phrase a key."""
    return [
        f"{key}: stored {'nothing' if old is None else old}, now {'nothing' if new is None else new}"
        for key, old, new in differences(stored, config)
    ]


def shortened(changes: list[str]) -> str:
    """The first few of them, and how many more there are."""
    more = f"; and {len(changes) - MOST_CHANGES} more" if len(changes) > MOST_CHANGES else ""
    return "; ".join(changes[:MOST_CHANGES]) + more
