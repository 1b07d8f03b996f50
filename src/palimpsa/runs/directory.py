"""What a run leaves on disk, and what it may do where something lies already."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from palimpsa.config.errors import RunDirectoryError
from palimpsa.runs.files import LockHeldError, hold_lock, lock_holder, write_atomic
from palimpsa.runs.identity import differences, upgraded, with_key_expansion
from palimpsa.runs.result import read_json_object, read_result
from palimpsa.runs.schema import FINISHED, ResultError

# Where a checkpoint keeps the config of its model.
MODEL_CONFIG_KEY = "model_config"
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
        except ResultError as error:
            raise RunDirectoryError(f"{error}; was it cut short? Delete it to run again") from error
        if stored is None and result is not None:
            stored = result.get("config")
        if stored is not None:
            self._check_same_run(upgraded(stored), config)
        return result

    def claim(self, config: dict[str, Any]) -> dict[str, Any] | None:
        """Takes the directory for a config; returns the result where that run is finished already.

        Raises:
            RunDirectoryError: where the directory holds another config or a damaged file, or cannot be written.
        """
        result = self.inspect(config)
        if result is not None and result.get("status") == FINISHED:
            return result
        try:
            write_atomic(self.config_file, json.dumps(config, indent=1))
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
            stored = {"model": with_key_expansion(content.get(MODEL_CONFIG_KEY, {}), config["model"])}
            changes = _config_changes(stored, {"model": config["model"]}) if stored["model"] else []
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
        """The last act of a run: what `result.run_result` makes."""
        write_atomic(self.result_file, json.dumps(result, indent=1, allow_nan=False))

    def _check_same_run(self, stored: dict[str, Any], config: dict[str, Any]) -> None:
        changes = _config_changes(stored, config)
        if changes:
            raise RunDirectoryError(
                f"run_dir: {self.path} holds a run of another config ({_shortened(changes)}). "
                "Give the new one a name of its own (variant=_NAME), another results_dir, or delete the directory"
            )


def _config_changes(stored: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """What two plain configs compute differently, a phrase a key."""
    return [
        f"{key}: stored {'nothing' if old is None else old}, now {'nothing' if new is None else new}"
        for key, old, new in differences(stored, config)
    ]


def _weight_changes(stored: Mapping[str, Any], weights: Mapping[str, Any]) -> list[str]:
    """The tensors that one of two state_dicts lacks or has in another shape, a phrase each."""
    old, new = ({key: list(value.shape) for key, value in tensors.items()} for tensors in (stored, weights))
    return [
        f"{key}: stored {old.get(key, 'nothing')}, now {new.get(key, 'nothing')}"
        for key in [*new, *sorted(old.keys() - new.keys())]
        if old.get(key) != new.get(key)
    ]


def _shortened(changes: list[str]) -> str:
    more = f"; and {len(changes) - MOST_CHANGES} more" if len(changes) > MOST_CHANGES else ""
    return "; ".join(changes[:MOST_CHANGES]) + more
