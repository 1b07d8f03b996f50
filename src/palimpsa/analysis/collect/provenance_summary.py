"""Where the rows of runs.csv came from, and how long GPUs were held for them: what provenance.json holds."""

from typing import Any

import numpy as np
import pandas as pd

from palimpsa.runs.schema import RUN_KEY


def summarize_provenance(runs: pd.DataFrame, sessions: pd.DataFrame | None = None) -> dict[str, Any]:
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
            "num_failed": int((each["status"] != "finished").sum()),
            "git_revisions": _unique(each["git_revision"] + changed),
            "devices": _unique(each["device"]),
            "versions": {name: sorted(found) for name, found in versions.items()},
            "wall_hours": round(float(each["wall_time_s"].sum()) / 3600, 4),
            "started": [started.min(), started.max()] if len(started) else [],
            "commands": _unique(each["command"]),
        }
    if sessions is not None:
        summary["gpu_sessions"] = _summarize_gpu_sessions(sessions)
    return summary


def _summarize_gpu_sessions(sessions: pd.DataFrame) -> dict[str, Any]:
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
