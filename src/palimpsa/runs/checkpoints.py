"""The folder of a run's checkpoints: which there are, which is the newest, and what goes when a new one comes."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
from pathlib import Path

from palimpsa.runs.files import read_regular

# Folders of shards, by the optimiser step, and which one of the same step.
_SHARDED = re.compile(r"step_(\d+)(?:_(\d+))?")


class CheckpointFolder:
    """A run's checkpoints: files, last.ckpt and previous.ckpt, or folders of shards, step_N.

    Args:
        path: the folder, which need not be there.

    Attributes:
        last, previous: the files.
        latest: a file with the name of the last folder of shards.
        partial: what is being written, or removed; a kill may leave it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last = path / "last.ckpt"
        self.previous = path / "previous.ckpt"
        self.latest = path / "latest"
        self.partial = path / ".step.partial"

    def newest_first(self) -> list[Path]:
        """Files and folders to go on from, damaged ones too; before all others those that say no step."""
        whole = [path for path in (self.last, self.previous) if path.exists()]
        sharded = self.sharded()
        if not sharded or not whole:
            return [*whole, *sharded]

        def age(path: Path) -> tuple[float, float]:
            step = self.step_of(path)
            return math.inf if step is None else step, path.stat().st_mtime if path.exists() else 0.0

        return sorted([*whole, *sharded], key=age, reverse=True)

    def sharded(self) -> list[Path]:
        """Folders of shards, the newest first; the one that `latest` names is among them, though it be gone."""
        paths = {path for path in self.path.glob("step_*") if path.is_dir()}
        named = self._named_latest()
        numbers = {path: _number(path) for path in paths | ({named} if named is not None else set())}
        found = [(number, path) for path, number in numbers.items() if number is not None]
        return [path for _, path in sorted(found, reverse=True)]

    def new_sharded(self, step: int) -> Path:
        """A name for a folder that none has."""
        taken = [number[1] for path in self.sharded() if (number := _number(path)) and number[0] == step]
        return self.path / (f"step_{step}_{max(taken) + 1}" if taken else f"step_{step}")

    def step_of(self, path: Path) -> int | None:
        """The optimiser step that a checkpoint goes on from; None where it does not say."""
        import torch

        number = _number(path)
        if number is not None:
            return number[0]
        try:
            if not path.is_file():
                return None
            return int(torch.load(path, weights_only=True, map_location="cpu", mmap=True)["global_step"])
        except Exception:
            # Whether it is damaged, and how, is for the run to say that reads all of it.
            return None

    def keep_newest(self, number: int) -> None:
        """Removes all older ones; those that say no step are left alone, and do not count."""
        known = [path for path in self.newest_first() if self.step_of(path) is not None]
        for path in known[number:]:
            if path.is_dir():
                self._forget(path)
                # Under another name first: a kill may leave half of it.
                self.remove_partial()
                os.replace(path, self.partial)
                self.remove_partial()
            else:
                path.unlink(missing_ok=True)

    def set_apart(self, damaged: Path) -> None:
        """Gives a damaged one a name under which nobody looks for a checkpoint."""
        self._forget(damaged)
        apart = Path(f"{damaged}.damaged")
        with contextlib.suppress(FileNotFoundError):
            if apart.is_dir():
                shutil.rmtree(apart)
            os.replace(damaged, apart)

    def remove_partial(self) -> None:
        """Removes what a kill has left half written, or half removed."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def _named_latest(self) -> Path | None:
        try:
            name = read_regular(self.latest).decode(errors="replace").strip()
        except OSError:
            # The folders themselves say which is the newest.
            return None
        return self.path / name if _SHARDED.fullmatch(name) else None

    def _forget(self, path: Path) -> None:
        """Has `latest` no longer name a folder."""
        if self._named_latest() == path:
            self.latest.unlink(missing_ok=True)


def is_sharded(path: Path) -> bool:
    """Whether a checkpoint of this name is a folder of shards, there or gone."""
    return _number(path) is not None


def _number(path: Path) -> tuple[int, int] | None:
    """The step of a folder of shards, and which one of that step it is; None for another name."""
    found = _SHARDED.fullmatch(path.name)
    return (int(found[1]), int(found[2] or 1)) if found else None
