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

from palimpsa.analysis.collect.merge import Identity, OnDisk, computed, concat, first_difference, read_curves, read_runs
from palimpsa.runs.files import write_all_atomic
from palimpsa.runs.protocol import describe_run, one_protocol
from palimpsa.runs.read import head_columns, read_curves_csv, read_gpu_sessions_csv, read_runs_csv, runs_frame
from palimpsa.runs.schema import CURVE_COLUMNS, RUN_KEY, ResultError


@dataclass(frozen=True)
class Collected:
    """What `collect` found.

    runs, curves: the frames of runs.csv and curves.csv, older rows included.
    num_found: runs on disk; num_kept: runs that only the older runs.csv knows.
    num_duplicates: directories that repeat another one's result.
    num_other: results of other tasks, left alone.
    not_ended: run directories without result.json; no_history: runs without history.csv.
    unreadable: a line for each result.json or history.csv that is cut short or invalid: these are left out.
    notes: what else was left out of the older runs.csv or of the runs on disk, and why.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    num_found: int
    num_kept: int
    num_duplicates: int
    num_other: int
    not_ended: list[Path]
    no_history: list[Path]
    unreadable: list[str]
    notes: list[str]

    def report(self) -> list[str]:
        """What was found, in lines for a person."""
        failed = self.runs.loc[self.runs["status"] == "failed", RUN_KEY].drop_duplicates()
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

    Of several directories of one run a finished one wins over failed ones; finished ones must agree. Runs of the older
    runs.csv that are not below `roots` are kept (they came from another machine); those that are take the result found
    on disk, unless the run on disk failed and the older one finished. Older runs of a task and scale of which runs of
    another protocol finished on disk are dropped: the experiment was changed and run again. What was left out, dropped
    or replaced is in the notes. A file that is cut short or invalid keeps only itself from being collected. Only tasks
    whose name starts with `task_prefix` are collected. Nothing is written: see `write_collected`.

    Raises ResultError: a root that is missing or holds no run; no readable run at all; an older file that is invalid;
    two directories that hold different finished results of the same run (named both); finished runs of one task and
    scale, but of two protocols.
    """
    found = read_runs(roots, task_prefix)
    if not found.runs:
        raise ResultError(_nothing(roots, found, task_prefix))
    runs = runs_frame([row for run in found.runs.values() for row in run.rows])
    protocols = {place: _protocol(own, found) for place, own in runs.groupby(["task", "scale"])}
    curves, no_history = read_curves(found)
    notes = found.notes
    replaced = set(found.runs)
    same: set[Identity] = set()
    num_kept = 0
    if (out / "runs.csv").exists():
        older, stale = _of_protocols(read_runs_csv(out / "runs.csv"), protocols, notes)
        worse = _failed_again(older, runs, found, notes)
        runs, curves = _without(runs, worse), _without(curves, worse)
        same = _same_results(older, runs, found, notes)
        older = _without(older, replaced - worse)
        replaced = (replaced | stale) - worse
        num_kept = len(older[RUN_KEY].drop_duplicates())
        runs = concat([older, runs]).sort_values([*RUN_KEY, "stage"], ignore_index=True)
    if (out / "curves.csv").exists():
        # Of the very same result, but without a readable curve on disk: the older curve is this run's.
        lost = same - _identities(curves)
        curves = concat([_without(read_curves_csv(out / "curves.csv"), replaced - lost), curves])
    columns = [*CURVE_COLUMNS, *head_columns(curves)]
    curves = curves.loc[:, columns].sort_values([*RUN_KEY, "step"], ignore_index=True)
    return Collected(
        runs=runs,
        curves=curves,
        num_found=len(found.runs),
        num_kept=num_kept,
        num_duplicates=found.num_duplicates,
        num_other=found.num_other,
        not_ended=found.not_ended,
        no_history=no_history,
        unreadable=found.unreadable,
        notes=notes,
    )


def _protocol(own: pd.DataFrame, found: OnDisk) -> str | None:
    """`one_protocol` of the runs on disk of one task and scale; its error names their directories too."""
    try:
        return one_protocol(own, {key: run.config for key, run in found.runs.items()})
    except ResultError as error:
        firsts = own.loc[own["status"] == "finished"].drop_duplicates("protocol_hash").head(2)
        folders = [str(found.runs[key].folders[0]) for key in firsts[RUN_KEY].itertuples(index=False, name=None)]
        raise ResultError(f"{' and '.join(folders)}: {error}") from None


def _nothing(roots: Sequence[Path], found: OnDisk, task_prefix: str) -> str:
    if found.unreadable:
        rest = len(found.unreadable) - 1
        return found.unreadable[0] + (f"; and {rest} more, no run could be read" if rest else "")
    unended = f" ({len(found.not_ended)} without result.json)" if found.not_ended else ""
    return (
        f"no run found below {', '.join(map(str, roots))}{unended}, expected directories with "
        f"a result.json of a task {task_prefix}*"
    )


def write_collected(collected: Collected, out: Path) -> list[Path]:
    """Write runs.csv, curves.csv and provenance.json to `out`; returns their paths.

    The files are replaced whole, and none of them where the disk has no room for all. Floats are written exactly in
    runs.csv and to 6 significant digits in curves.csv. Raises OSError when `out` cannot be written, ResultError for a
    gpu_sessions.csv there that is invalid.
    """
    sessions = out / "gpu_sessions.csv"
    origins = provenance(collected.runs, read_gpu_sessions_csv(sessions) if sessions.exists() else None)
    curves = collected.curves.assign(lr=[repr(lr) for lr in collected.curves["lr"].tolist()])
    # All text first: a value that cannot be written must not leave new files beside old ones.
    contents = {
        "runs.csv": collected.runs.to_csv(index=False, lineterminator="\n"),
        "curves.csv": curves.to_csv(index=False, lineterminator="\n", float_format="%.6g"),
        "provenance.json": json.dumps(origins, indent=2, sort_keys=True) + "\n",
    }
    return write_all_atomic({out / name: content for name, content in contents.items()})


def provenance(runs: pd.DataFrame, sessions: pd.DataFrame | None = None) -> dict[str, Any]:
    """Where the rows of runs.csv came from, by "task/scale", and how long GPUs were held ("gpu_sessions").

    Each entry: num_runs, num_finished, num_failed, git_revisions ("+changes" after a revision whose tree had been
    edited, "+unchecked" after one that the run was told), devices, versions (package -> versions), wall_hours (the sum
    over runs), started (first and last, ISO 8601), commands.
    """
    summary = {}
    for task, scale in sorted(set(zip(runs["task"], runs["scale"], strict=True))):
        rows = runs.loc[(runs["task"] == task) & (runs["scale"] == scale)]
        each = rows.drop_duplicates(RUN_KEY)
        dirty = each["git_dirty"]
        changed = np.where(dirty == "True", "+changes", np.where(dirty.isna(), "+unchecked", ""))
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
    if sessions is not None:
        summary["gpu_sessions"] = _gpu_sessions(sessions)
    return summary


def _gpu_sessions(sessions: pd.DataFrame) -> dict[str, Any]:
    """How long GPUs were held: starts count here, and wall_hours count a GPU once for each run that shares it."""
    hours: dict[str, float] = {}
    for row in sessions.to_dict("records"):
        hours[row["device"]] = hours.get(row["device"], 0.0) + row["num_gpus"] * row["held_s"] / 3600
    return {
        "num_sessions": len(sessions),
        "gpu_hours": {device: round(held, 2) for device, held in hours.items()},
        "git_revisions": _unique(sessions.loc[:, "git_revision"]),
    }


def _unique(column: pd.Series) -> list[str]:
    return sorted(column.dropna().unique())


def _identities(frame: pd.DataFrame) -> set[Identity]:
    return set(frame[RUN_KEY].itertuples(index=False, name=None))


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


def _failed_again(older: pd.DataFrame, runs: pd.DataFrame, found: OnDisk, notes: list[str]) -> set[Identity]:
    """The runs that failed on disk, but are finished ones in the older rows."""
    worse = _identities(older.loc[older["status"] == "finished"]) & _identities(runs.loc[runs["status"] == "failed"])
    notes += [
        f"kept the finished run of the older runs.csv: {found.runs[key].folders[0]} holds a failed one"
        for key in sorted(worse)
    ]
    return worse


def _same_results(older: pd.DataFrame, runs: pd.DataFrame, found: OnDisk, notes: list[str]) -> set[Identity]:
    """The runs of which the older rows have the same result; of finished ones with another result, a note."""
    before, now = computed(older), computed(runs)
    known = [key for key in now if key in before]
    changed = [key for key in known if before[key] != now[key] and before[key][0]["status"] == "finished"]
    if changed:
        key = changed[0]
        notes.append(
            f"finished runs of the older runs.csv replaced by other results on disk: {len(changed)}, the first "
            f"{found.runs[key].folders[0]} ({describe_run(key)}), {first_difference(before[key], now[key])}"
        )
    return {key for key in known if before[key] == now[key]}


def _without(frame: pd.DataFrame, identities: set[Identity]) -> pd.DataFrame:
    keep = [key not in identities for key in frame[RUN_KEY].itertuples(index=False, name=None)]
    return frame.loc[keep]
