"""Runs that W&B recorded offline: their folders on disk, and the line that uploads them. Nothing here needs wandb."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# offline-run-20261130_054244-ID: when the folder was begun, and the run.
_FOLDER = re.compile(r"offline-run-(?P<begun>\d{8}_\d{6})-(?P<id>.+)")


@dataclass(frozen=True)
class OfflineRun:
    """One run of W&B's, which has a folder for each time that it went on.

    run_id: W&B's, of ours the config's hash. directory: of the run that has recorded it. folders: in the order in which
    they were begun. is_synced: whether all of them have been uploaded.
    """

    run_id: str
    directory: Path
    folders: tuple[Path, ...]
    is_synced: bool

    @property
    def files(self) -> tuple[Path, ...]:
        """What wandb wrote in each folder, and whatever reads runs may read."""
        return tuple(folder / f"run-{self.run_id}.wandb" for folder in self.folders)

    @property
    def sync_line(self) -> str:
        """What uploads it: see `sync_line`."""
        return sync_line(self.folders)


def sync_line(folders: Iterable[Path]) -> str:
    """What uploads the folders of a run: of several wandb makes one, in the order of their beginnings."""
    return shlex.join(["wandb", "sync", *map(str, folders)])


def nameless_sync_line(folders: Iterable[Path]) -> str:
    """The same for others to see: paths from the working directory, or from the home directory by its ~."""
    return " ".join(["wandb", "sync", *map(_nameless, folders)])


def _nameless(folder: Path) -> str:
    absolute, here, home = folder.absolute(), Path.cwd(), Path.home()
    # A path from / would name whose home it is.
    below_home = absolute.is_relative_to(home) and home != Path("/")
    if absolute.is_relative_to(here) and not (below_home and home.is_relative_to(here) and home != here):
        return shlex.quote(str(absolute.relative_to(here)))
    # The shell knows a ~ outside of quotes alone.
    return f"~/{shlex.quote(str(absolute.relative_to(home)))}" if below_home else shlex.quote(str(folder))


def find_offline_runs(root: Path | str) -> list[OfflineRun]:
    """The offline runs below a folder, at any depth, in the order of their directories; none where there is no folder.

    A folder without its .wandb file, which a kill in the first moment leaves, has nothing to upload and is left out.
    """
    found: dict[tuple[Path, str], list[tuple[str, Path]]] = {}
    for folder in Path(root).rglob("wandb/offline-run-*"):
        name = _FOLDER.fullmatch(folder.name)
        if name is None or not (folder / f"run-{name['id']}.wandb").is_file():
            continue
        found.setdefault((folder.parent.parent, name["id"]), []).append((name["begun"], folder))
    runs = []
    for (directory, run_id), dated in sorted(found.items()):
        folders = tuple(folder for _, folder in sorted(dated))
        is_synced = all((folder / f"run-{run_id}.wandb.synced").exists() for folder in folders)
        runs.append(OfflineRun(run_id, directory, folders, is_synced))
    return runs
