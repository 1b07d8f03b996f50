"""Run directories, finished, failed, at work or interrupted: each as far as it can be read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from palimpsa.analysis.dashboard.committed import Cache, Problems
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.identity import config_hash, upgraded
from palimpsa.runs.read import find_run_dirs, read_history
from palimpsa.runs.result import read_json_object, read_result_and_rows, run_of
from palimpsa.runs.rows import history_of
from palimpsa.runs.schema import ResultError

RUNNING, UNFINISHED, UNREADABLE = "running", "unfinished", "unreadable"


# Compared as what it is, one reading of a directory: frames have no ==.
@dataclass(frozen=True, eq=False)
class RunFolder:
    """One run directory.

    status: of `runs.schema`; running, where a process holds it; unfinished; unreadable.
    rows: of runs.csv, one at least where its config is known.
    result: of result.json, without its config; config: plain; history: its curves, None where there are none to read.
    """

    path: Path
    status: str
    rows: list[dict[str, Any]]
    config: dict[str, Any]
    result: dict[str, Any] = field(default_factory=dict)
    history: pd.DataFrame | None = None

    @property
    def has_ended(self) -> bool:
        return bool(self.result)


def read_run_folders(roots: list[Path], problems: Problems, cache: Cache) -> list[RunFolder]:
    """The run directories below these folders, those that are there."""
    found, seen = [], set()
    for root in roots:
        ended, not_ended = problems.attempt("runs", partial(_list, root, problems), ([], []))
        for folder in [*ended, *not_ended]:
            if folder.resolve() not in seen:
                seen.add(folder.resolve())
                found.append(_read_folder(folder, problems, cache))
    return found


def _list(root: Path, problems: Problems) -> tuple[list[Path], list[Path]]:
    """The run directories below a folder, with a result and without; what nobody may list hides no other."""
    if not root.is_dir():
        return [], []
    return find_run_dirs(root, unlisted=lambda error: problems.add("runs", str(error)))


def _read_folder(folder: Path, problems: Problems, cache: Cache) -> RunFolder:
    files = [folder / name for name in ("result.json", "config.json", "history.csv")]
    read = partial(_read_files, folder)
    unreadable = RunFolder(folder, UNREADABLE, [], {}), []
    # What is not even to be looked at raises, where what cannot be read is told by the line of its file.
    run, lines = problems.attempt("runs", lambda: cache.get("folder", folder, files, read), unreadable)
    for line in lines:
        problems.add("runs", line)
    if run.status == UNFINISHED and problems.attempt("runs", RunDirectory(folder).holder, None) is not None:
        return replace(run, status=RUNNING, rows=[row | {"status": RUNNING} for row in run.rows])
    return run


def _read_files(folder: Path) -> tuple[RunFolder, list[str]]:
    """A run, and a line for each of its files that could not be read."""
    result_file, history_file, lines = folder / "result.json", folder / "history.csv", []
    run, facts = None, None
    if result_file.exists():
        try:
            result, rows = read_result_and_rows(result_file)
            kept = {name: value for name, value in result.items() if name != "config"}
            run, facts = (
                RunFolder(folder, rows[0]["status"], rows, result["config"], kept),
                history_of(result_file, result),
            )
        except ResultError as error:
            lines.append(str(error))
    if run is None:
        run = _unfinished(folder, UNREADABLE if lines else UNFINISHED, lines)
    if history_file.exists():
        try:
            run = replace(run, history=read_history(history_file, facts))
        except ResultError as error:
            lines.append(str(error))
    return run, lines


def _unfinished(folder: Path, status: str, lines: list[str]) -> RunFolder:
    """A run without a readable result, of its config.json, where there is one."""
    if not (folder / "config.json").exists():
        return RunFolder(folder, status, [], {})
    try:
        config = upgraded(read_json_object(folder / "config.json", "expected a run's config"))
        row = {**run_of(config), "status": status, "run_seq_len": config["task"].get("seq_len") or 0}
        row |= {name: int(row[name] or 0) for name in ("seed", "run_seq_len")} | {"lr": float(row["lr"])}
        row |= {"config_hash": config_hash(config), "vocab_size": int(config["task"].get("vocab_size") or 0) or None}
        return RunFolder(
            folder, status, [row | {name: str(row[name]) for name in ("task", "scale", "model", "label")}], config
        )
    except ResultError as error:
        lines.append(str(error))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        lines.append(f"{folder / 'config.json'}: got no run's config ({type(error).__name__}: {error})")
    return RunFolder(folder, status, [], {})


def spread_out(frame: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most so many rows of a curve, evenly spread, the first and the last among them."""
    if len(frame) <= most:
        return frame
    return frame.iloc[np.unique(np.linspace(0, len(frame) - 1, most).round().astype(int))]
