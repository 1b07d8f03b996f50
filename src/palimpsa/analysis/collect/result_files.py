"""Collect run directories into runs.csv, curves.csv and provenance.json, and merge with older ones.

The three files are a function of what is on disk: collecting twice gives the same bytes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsa.analysis.collect.provenance_summary import summarize_provenance
from palimpsa.analysis.collect.run_directories import (
    FoundRuns,
    RunKey,
    concat,
    first_difference,
    read_curves,
    read_runs,
    result_by_run,
)
from palimpsa.analysis.collect.thin_curves import thin_curves
from palimpsa.runs.files import write_all_atomic
from palimpsa.runs.protocol import describe_run, one_protocol
from palimpsa.runs.read import cells_of, head_columns, read_curves_csv, read_gpu_sessions_csv, read_runs_csv, runs_frame
from palimpsa.runs.schema import CURVE_COLUMNS, RUN_KEY, ResultError


@dataclass(frozen=True)
class Collected:
    """What `collect` found.

    runs, curves: the frames of runs.csv and curves.csv, older rows included, curves thinned unless they were asked for.
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
        statuses = self.runs.drop_duplicates(RUN_KEY)["status"].tolist()
        facts = {
            "runs found": self.num_found,
            "kept from the older runs.csv": self.num_kept,
            "failed": statuses.count("failed"),
            "diverged": statuses.count("diverged"),
            "repeated directories": self.num_duplicates,
            "directories without result.json, left out": len(self.not_ended),
            "runs without history.csv": len(self.no_history),
            "results of other tasks, left out": self.num_other,
        }
        return [*(f"{name}: {count}" for name, count in facts.items() if count), *self.notes]


def collect(roots: Sequence[Path], out: Path, *, task_prefix: str = "mqar", full_curves: bool = False) -> Collected:
    """Read every run directory below `roots` and what an older collection left in `out`.

    Of several directories of one run a finished one wins over failed ones; finished ones must agree. Runs of the older
    runs.csv that are not below `roots` are kept (they came from another machine); those that are take the result found
    on disk, unless the run on disk failed and the older one finished. Older runs of a task and scale of which runs of
    another protocol finished on disk are dropped: the experiment was changed and run again. What was left out, dropped
    or replaced is in the notes. A file that is cut short or invalid keeps only itself from being collected. Only tasks
    whose name starts with `task_prefix` are collected. Nothing is written: see `write_collected`.

    Of the curves, the older ones too, those are kept that Figure 3 shows, at a few steps each (`thin_curves`); with
    `full_curves` all, as the runs logged them and the older curves.csv had them.

    Raises ResultError: a root that is missing or holds no run; no readable run at all; an older file that is invalid;
    two directories that hold different finished results of the same run (named both); finished runs of one task and
    scale, but of two protocols.
    """
    found = read_runs(roots, task_prefix)
    if not found.runs:
        raise ResultError(_no_run_message(roots, found, task_prefix))
    runs = runs_frame([row for run in found.runs.values() for row in run.rows])
    protocols = {place: _protocol_on_disk(own, found) for place, own in runs.groupby(["task", "scale"])}
    curves, no_history = read_curves(found)
    notes = found.notes
    superseded = set(found.runs)
    unchanged: set[RunKey] = set()
    num_kept = 0
    if (out / "runs.csv").exists():
        older, dropped = _drop_other_protocols(read_runs_csv(out / "runs.csv"), protocols, notes)
        finished_before = _finished_before(older, runs, found, notes)
        runs, curves = _drop_runs(runs, finished_before), _drop_runs(curves, finished_before)
        unchanged = _unchanged_runs(older, runs, found, notes)
        older = _drop_runs(older, superseded - finished_before)
        superseded = (superseded | dropped) - finished_before
        num_kept = len(older[RUN_KEY].drop_duplicates())
        runs = concat([older, runs]).sort_values([*RUN_KEY, "stage"], ignore_index=True)
    if (out / "curves.csv").exists():
        # Of the very same result, but without a readable curve on disk: the older curve is this run's.
        without_curve = unchanged - _run_keys(curves)
        curves = concat([_drop_runs(read_curves_csv(out / "curves.csv"), superseded - without_curve), curves])
    columns = [*CURVE_COLUMNS, *head_columns(curves)]
    curves = curves.loc[:, columns].sort_values([*RUN_KEY, "step"], ignore_index=True)
    curves = curves if full_curves else thin_curves(runs, curves)
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


def _protocol_on_disk(own: pd.DataFrame, found: FoundRuns) -> str | None:
    """`one_protocol` of the runs on disk of one task and scale; its error names their directories too."""
    try:
        return one_protocol(own, {key: run.config for key, run in found.runs.items()})
    except ResultError as error:
        firsts = own.loc[own["status"] == "finished"].drop_duplicates("protocol_hash").head(2)
        folders = [str(found.runs[key].folders[0]) for key in firsts[RUN_KEY].itertuples(index=False, name=None)]
        raise ResultError(f"{' and '.join(folders)}: {error}") from None


def _no_run_message(roots: Sequence[Path], found: FoundRuns, task_prefix: str) -> str:
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
    runs.csv and to at most 6 significant digits in curves.csv. Raises OSError when `out` cannot be written,
    ResultError for a gpu_sessions.csv there that is invalid.
    """
    sessions = out / "gpu_sessions.csv"
    provenance = summarize_provenance(collected.runs, read_gpu_sessions_csv(sessions) if sessions.exists() else None)
    curves = collected.curves.assign(lr=[repr(lr) for lr in collected.curves["lr"].tolist()])
    # All text first: a value that cannot be written must not leave new files beside old ones.
    contents = {
        "runs.csv": cells_of(collected.runs).to_csv(index=False, lineterminator="\n"),
        "curves.csv": cells_of(curves).to_csv(index=False, lineterminator="\n", float_format="%.6g"),
        "provenance.json": json.dumps(provenance, indent=2, sort_keys=True) + "\n",
    }
    return write_all_atomic({out / name: content for name, content in contents.items()})


def _drop_other_protocols(
    older: pd.DataFrame, protocols: dict[Any, str | None], notes: list[str]
) -> tuple[pd.DataFrame, set[RunKey]]:
    """The older rows without those of another protocol than the runs on disk, and the runs so dropped."""
    dropped: set[RunKey] = set()
    for (task, scale), on_disk in protocols.items():
        # None: nothing finished on disk, and so nothing that could stand in their place.
        if on_disk is None:
            continue
        others = older.loc[(older["task"] == task) & (older["scale"] == scale) & (older["protocol_hash"] != on_disk)]
        if len(others):
            runs = _run_keys(others)
            notes.append(
                f"dropped from the older runs.csv, {task}/{scale}: {len(runs)} runs of protocol "
                f"{', '.join(sorted(others['protocol_hash'].unique()))}; those found are of {on_disk}"
            )
            dropped |= runs
    return _drop_runs(older, dropped), dropped


def _finished_before(older: pd.DataFrame, runs: pd.DataFrame, found: FoundRuns, notes: list[str]) -> set[RunKey]:
    """The runs that failed on disk, but are finished ones in the older rows."""
    finished = older["status"] == "finished"
    keys = _run_keys(older.loc[finished]) & _run_keys(runs.loc[runs["status"] != "finished"])
    notes += [
        f"kept the finished run of the older runs.csv: {found.runs[key].folders[0]} holds a failed one"
        for key in sorted(keys)
    ]
    return keys


def _unchanged_runs(older: pd.DataFrame, runs: pd.DataFrame, found: FoundRuns, notes: list[str]) -> set[RunKey]:
    """The runs of which the older rows have the same result; of finished ones with another result, a note."""
    before, now = result_by_run(older), result_by_run(runs)
    known = [key for key in now if key in before]
    changed = [key for key in known if before[key] != now[key] and before[key][0]["status"] == "finished"]
    if changed:
        key = changed[0]
        notes.append(
            f"finished runs of the older runs.csv replaced by other results on disk: {len(changed)}, the first "
            f"{found.runs[key].folders[0]} ({describe_run(key)}), {first_difference(before[key], now[key])}"
        )
    return {key for key in known if before[key] == now[key]}


def _run_keys(frame: pd.DataFrame) -> set[RunKey]:
    return set(frame[RUN_KEY].itertuples(index=False, name=None))


def _drop_runs(frame: pd.DataFrame, keys: set[RunKey]) -> pd.DataFrame:
    kept = [key not in keys for key in frame[RUN_KEY].itertuples(index=False, name=None)]
    return frame.loc[kept]
