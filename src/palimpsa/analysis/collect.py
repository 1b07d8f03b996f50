"""Collect run directories into runs.csv, curves.csv and provenance.json, and merge with older ones.

The three files are a function of what is on disk: collecting twice gives the same bytes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from palimpsa.analysis.files import write_atomic
from palimpsa.analysis.load import (
    find_run_dirs,
    head_columns,
    history_length,
    read_curves_csv,
    read_history,
    read_json,
    read_runs_csv,
    result_rows,
    runs_frame,
)
from palimpsa.analysis.protocol import describe_run, one_protocol
from palimpsa.analysis.schema import CURVE_COLUMNS, IDENTITY, RUN_COLUMNS, ResultError

# Two directories of one run are the same result when all but these are equal.
_INCIDENTAL = {
    "git_revision",
    "git_dirty",
    "versions",
    "device",
    "started",
    "wall_time_s",
    "command",
}

Identity = tuple[Any, ...]


@dataclass(frozen=True)
class Collected:
    """What `collect` found.

    runs, curves: the frames of runs.csv and curves.csv, older rows included.
    num_found: runs on disk; num_kept: runs that only the older runs.csv knows.
    num_duplicates: directories that repeat another one's result.
    num_other: results of other tasks, left alone.
    not_ended: run directories without result.json; no_history: runs without history.csv.
    notes: what was left out of the older runs.csv or of the runs on disk, and why.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    num_found: int
    num_kept: int
    num_duplicates: int
    num_other: int
    not_ended: list[Path]
    no_history: list[Path]
    notes: list[str]

    def report(self) -> list[str]:
        """What was found, in lines for a person."""
        failed = self.runs.loc[self.runs["status"] == "failed", IDENTITY].drop_duplicates()
        facts = {
            "runs found": self.num_found,
            "kept from the older runs.csv": self.num_kept,
            "failed": len(failed),
            "repeated directories": self.num_duplicates,
            "directories without result.json, left out": len(self.not_ended),
            "runs without history.csv": len(self.no_history),
            "results of other tasks, left out": self.num_other,
        }
        return [*(f"{name}: {count}" for name, count in facts.items() if count), *self.notes]


def collect(roots: Sequence[Path], out: Path, *, task_prefix: str = "mqar") -> Collected:
    """Read every run directory below `roots` and what an older collection left in `out`.

    Runs of the older runs.csv that are not below `roots` are kept (they came from another machine);
    those that are take the rows found on disk, unless the run on disk failed and the older one
    finished. Older runs of a task and scale of which runs of another protocol finished on disk are
    dropped: the experiment was changed and run again. Only tasks whose name starts with
    `task_prefix` are collected. Nothing is written: see `write_collected`.

    Raises ResultError: no run at all; an invalid file; two directories that hold different results
    of the same run (named both); finished runs of one task and scale, but of two protocols.
    """
    rows: dict[Identity, list[dict[str, Any]]] = {}
    folders: dict[Identity, Path] = {}
    configs: dict[Identity, dict[str, Any]] = {}
    lengths: dict[Identity, int | None] = {}
    not_ended: list[Path] = []
    num_duplicates = num_other = 0
    for root in roots:
        ended, unfinished = find_run_dirs(root)
        not_ended += unfinished
        for folder in ended:
            path = folder / "result.json"
            result = read_json(path)
            found = result_rows(path, result)
            if not found[0]["task"].startswith(task_prefix):
                num_other += 1
                continue
            key = tuple(found[0][name] for name in IDENTITY)
            if key not in rows:
                rows[key], folders[key] = found, folder
                configs[key], lengths[key] = result["config"], history_length(path, result)
            elif _result(rows[key]) == _result(found):
                num_duplicates += 1
            else:
                raise ResultError(_disagreement(key, folders[key], rows[key], folder, found))
    if not rows:
        unended = f" ({len(not_ended)} without result.json)" if not_ended else ""
        raise ResultError(
            f"no run found below {', '.join(map(str, roots))}{unended}, expected directories with "
            f"a result.json of a task {task_prefix}*"
        )

    runs = runs_frame([row for found in rows.values() for row in found])
    protocols = {place: one_protocol(own, configs) for place, own in runs.groupby(["task", "scale"])}
    curves, no_history = _curves(folders, lengths)
    notes: list[str] = []
    replaced = set(rows)
    num_kept = 0
    if (out / "runs.csv").exists():
        older, stale = _of_protocols(read_runs_csv(out / "runs.csv"), protocols, notes)
        worse = _failed_again(older, runs, folders, notes)
        runs, curves = _without(runs, worse), _without(curves, worse)
        older = _without(older, replaced - worse)
        replaced = (replaced | stale) - worse
        num_kept = len(older[IDENTITY].drop_duplicates())
        runs = _concat([older, runs]).sort_values([*IDENTITY, "stage"], ignore_index=True)
    if (out / "curves.csv").exists():
        curves = _concat([_without(read_curves_csv(out / "curves.csv"), replaced), curves])
    columns = [*CURVE_COLUMNS, *head_columns(curves)]
    curves = curves.loc[:, columns].sort_values([*IDENTITY, "step"], ignore_index=True)
    return Collected(
        runs=runs,
        curves=curves,
        num_found=len(rows),
        num_kept=num_kept,
        num_duplicates=num_duplicates,
        num_other=num_other,
        not_ended=not_ended,
        no_history=no_history,
        notes=notes,
    )


def write_collected(collected: Collected, out: Path) -> list[Path]:
    """Write runs.csv, curves.csv and provenance.json to `out`; returns their paths.

    Each file is replaced whole. Floats are written exactly in runs.csv and to 6 significant digits
    in curves.csv. Raises OSError when `out` cannot be written.
    """
    curves = collected.curves.assign(lr=[repr(lr) for lr in collected.curves["lr"].tolist()])
    # All text first: a value that cannot be written must not leave new files beside old ones.
    contents = {
        "runs.csv": collected.runs.to_csv(index=False, lineterminator="\n"),
        "curves.csv": curves.to_csv(index=False, lineterminator="\n", float_format="%.6g"),
        "provenance.json": json.dumps(provenance(collected.runs), indent=2, sort_keys=True) + "\n",
    }
    return [write_atomic(out / name, content) for name, content in contents.items()]


def provenance(runs: pd.DataFrame) -> dict[str, Any]:
    """Where the rows of runs.csv came from, by "task/scale".

    Each entry: num_runs, num_finished, num_failed, git_revisions ("+changes" after a revision whose
    tree had been edited), devices, versions (package -> versions), wall_hours (the sum over runs),
    started (first and last, ISO 8601), commands.
    """
    summary = {}
    for task, scale in sorted(set(zip(runs["task"], runs["scale"], strict=True))):
        rows = runs.loc[(runs["task"] == task) & (runs["scale"] == scale)]
        each = rows.drop_duplicates(IDENTITY)
        changed = np.where(each["git_dirty"] == "True", "+changes", "")
        versions: dict[str, set[str]] = {}
        for entry in each["versions"].dropna().unique():
            for item in entry.split(";"):
                name, _, version = item.partition("=")
                versions.setdefault(name, set()).add(version)
        started = each["started"].dropna()
        summary[f"{task}/{scale}"] = {
            "num_runs": len(each),
            "num_finished": int((each["status"] == "finished").sum()),
            "num_failed": int((each["status"] == "failed").sum()),
            "git_revisions": _unique(each["git_revision"] + changed),
            "devices": _unique(each["device"]),
            "versions": {name: sorted(found) for name, found in versions.items()},
            "wall_hours": round(float(each["wall_time_s"].sum()) / 3600, 4),
            "started": [started.min(), started.max()] if len(started) else [],
            "commands": _unique(each["command"]),
        }
    return summary


def _unique(column: pd.Series) -> list[str]:
    return sorted(column.dropna().unique())


def _result(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # Through text: nan is equal to nan there.
    kept = [{k: v for k, v in row.items() if k not in _INCIDENTAL} for row in rows]
    return json.loads(json.dumps(kept), parse_constant=str)


def _disagreement(
    key: Identity,
    folder: Path,
    rows: list[dict[str, Any]],
    other_folder: Path,
    other_rows: list[dict[str, Any]],
) -> str:
    detail = f"{len(rows)} and {len(other_rows)} stages"
    for row, other in zip(_result(rows), _result(other_rows), strict=False):
        different = [name for name in RUN_COLUMNS if row.get(name) != other.get(name)]
        if different:
            name = different[0]
            where = f"stage {row['stage']}: " if "stage" in row else ""
            detail = f"{where}{name} {row.get(name)!r} and {other.get(name)!r}"
            break
    return (
        f"{folder} and {other_folder} hold different results of the same run ({describe_run(key)}): {detail}; "
        "expected one result a run. Move one of them away. Nothing was written"
    )


def _identities(frame: pd.DataFrame) -> set[Identity]:
    return set(frame[IDENTITY].itertuples(index=False, name=None))


def _of_protocols(
    older: pd.DataFrame, protocols: dict[Any, str | None], notes: list[str]
) -> tuple[pd.DataFrame, set[Identity]]:
    """The older rows without those of another protocol than the runs on disk, and the runs so dropped."""
    stale: set[Identity] = set()
    for (task, scale), found in protocols.items():
        here = (older["task"] == task) & (older["scale"] == scale) & (older["protocol_hash"] != found)
        # None: nothing finished on disk, and so nothing that could stand in their place.
        dropped = _identities(older.loc[here]) if found else set()
        if dropped:
            notes.append(
                f"dropped from the older runs.csv, {task}/{scale}: {len(dropped)} runs of protocol "
                f"{', '.join(sorted(older.loc[here, 'protocol_hash'].unique()))}; those found are of {found}"
            )
        stale |= dropped
    return _without(older, stale), stale


def _failed_again(
    older: pd.DataFrame, runs: pd.DataFrame, folders: dict[Identity, Path], notes: list[str]
) -> set[Identity]:
    """The runs that failed on disk, but are finished ones in the older rows."""
    worse = _identities(older.loc[older["status"] == "finished"]) & _identities(runs.loc[runs["status"] == "failed"])
    notes += [
        f"kept the finished run of the older runs.csv: {folders[key]} holds a failed one" for key in sorted(worse)
    ]
    return worse


def _curves(folders: dict[Identity, Path], lengths: dict[Identity, int | None]) -> tuple[pd.DataFrame, list[Path]]:
    frames, no_history = [], []
    for key, folder in folders.items():
        path = folder / "history.csv"
        if not path.exists():
            no_history.append(folder)
            continue
        history = read_history(path, lengths[key])
        identity = pd.DataFrame([key] * len(history), columns=IDENTITY)
        frames.append(pd.concat([identity, history], axis=1))
    empty = pd.DataFrame({name: [] for name in CURVE_COLUMNS})
    return _concat([empty, *frames]).astype(CURVE_COLUMNS), sorted(no_history)


def _without(frame: pd.DataFrame, identities: set[Identity]) -> pd.DataFrame:
    keep = [key not in identities for key in frame[IDENTITY].itertuples(index=False, name=None)]
    return frame.loc[keep]


def _concat(frames: list[pd.DataFrame]) -> pd.DataFrame:
    # Empty frames would turn integer columns into floats.
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else frames[0]
