"""One result a run, from the run directories of one machine or of several."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsa.runs.identity import protocol_hash
from palimpsa.runs.protocol import describe_run, difference
from palimpsa.runs.read import find_run_dirs, read_history, runs_frame
from palimpsa.runs.result import read_result_and_rows
from palimpsa.runs.rows import HistoryFacts, history_of
from palimpsa.runs.schema import CURVE_COLUMNS, RUN_KEY, ResultError

# Two directories of one run hold the same result when all other columns of runs.csv are equal.
_NOT_PART_OF_THE_RESULT = [
    "label",
    "git_revision",
    "git_dirty",
    "versions",
    "device",
    "started",
    "wall_time_s",
    "command",
]

# The values of RUN_KEY.
RunKey = tuple[Any, ...]
# What a run computed: its rows of runs.csv without _NOT_PART_OF_THE_RESULT; None for an empty cell.
RunResult = list[dict[str, Any]]


@dataclass
class Run:
    """One run on disk: its rows of runs.csv, its resolved config, and the directories that hold this very result.

    histories: for each directory, what its result says of its history.csv.
    """

    rows: list[dict[str, Any]]
    config: dict[str, Any]
    folders: list[Path]
    histories: list[HistoryFacts]

    @property
    def finished(self) -> bool:
        return self.rows[0]["status"] == "finished"

    @property
    def result(self) -> RunResult:
        (result,) = result_by_run(runs_frame(self.rows)).values()
        return result


@dataclass
class FoundRuns:
    """What the run directories hold, see `read_runs`.

    runs: by RunKey; not_ended: directories without result.json; unreadable: a line for each file that
    could not be read, and so was left out; num_duplicates: directories that repeat another one's result; num_other:
    results of other tasks; notes: which failed runs gave way; disagreements: a line for each two directories with
    finished, different results of one run.
    """

    runs: dict[RunKey, Run] = field(default_factory=dict)
    not_ended: list[Path] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    num_duplicates: int = 0
    num_other: int = 0
    notes: list[str] = field(default_factory=list)
    disagreements: list[str] = field(default_factory=list)


def read_runs(roots: Sequence[Path], task_prefix: str) -> FoundRuns:
    """Every run below `roots` of a task whose name starts with `task_prefix`.

    A directory counts once, by however many roots it is reached. Of several directories of one run a finished one
    wins over failed ones, and of failed ones that which ended most stages. A result.json that is cut short or invalid
    does not keep the others from being read.

    Raises ResultError: a root that is missing or holds no run directory; directories with finished, different results
    of one run, all of which it names.
    """
    found = FoundRuns()
    seen: set[Path] = set()
    for root in roots:
        ended, not_ended = find_run_dirs(root)
        if not ended and not not_ended:
            raise ResultError(f"{root}: no run found below it, expected directories with a result.json")
        found.not_ended += [folder for folder in not_ended if folder.resolve() not in seen]
        for folder in ended:
            if folder.resolve() not in seen:
                _read_run(folder, task_prefix, found)
        seen.update(folder.resolve() for folder in [*ended, *not_ended])
    _check_agreement(found)
    return found


def _check_agreement(found: FoundRuns) -> None:
    if found.disagreements:
        expected = "expected one result a run. Move one of them away. Nothing was written"
        raise ResultError(f"{'; '.join(found.disagreements)}; {expected}")


def _read_run(folder: Path, task_prefix: str, found: FoundRuns) -> None:
    path = folder / "result.json"
    try:
        result, rows = read_result_and_rows(path)
        new = Run(rows, result["config"], [folder], [history_of(path, result)])
    except ResultError as error:
        # A run that is tried again may take its file away between the listing and the reading.
        if path.exists():
            found.unreadable.append(str(error))
        else:
            found.not_ended.append(folder)
        return
    if not rows[0]["task"].startswith(task_prefix):
        found.num_other += 1
        return
    key = tuple(rows[0][name] for name in RUN_KEY)
    known = found.runs.setdefault(key, new)
    if known is new:
        return
    if known.result == new.result:
        known.folders += new.folders
        known.histories += new.histories
        found.num_duplicates += 1
        return
    if known.finished and new.finished:
        found.disagreements.append(_disagreement(key, known, new))
        return
    # The finished one first, else the one that came further; the earlier one where that is equal.
    better, worse = sorted([known, new], key=lambda run: (not run.finished, -len(run.rows)))
    found.runs[key] = better
    found.notes.append(
        f"took the {'finished' if better.finished else 'failed'} run of {better.folders[0]}: "
        f"{', '.join(map(str, worse.folders))} failed ({worse.rows[0]['error'] or 'no error recorded'})"
    )


def result_by_run(runs: pd.DataFrame) -> dict[RunKey, RunResult]:
    """What the rows of runs.csv say of each run, apart from where and when it ran."""
    kept = runs.drop(columns=_NOT_PART_OF_THE_RESULT).astype(object)
    results: dict[RunKey, RunResult] = {}
    for row in kept.where(kept.notna(), None).to_dict("records"):
        results.setdefault(tuple(row[name] for name in RUN_KEY), []).append(row)
    return results


def first_difference(one: RunResult, other: RunResult) -> str:
    """The first cell, in the order of runs.csv, in which two results of a run differ, and both values."""
    for row, other_row in zip(one, other, strict=False):
        for name, value in row.items():
            if value != other_row[name]:
                where = "" if row["stage"] is None else f"stage {row['stage']}: "
                return f"{where}{name} {value!r} and {other_row[name]!r}"
    return f"{len(one)} and {len(other)} stages"


def _disagreement(key: RunKey, known: Run, new: Run) -> str:
    detail = first_difference(known.result, new.result)
    if protocol_hash(known.config) != protocol_hash(new.config):
        detail += f"; their configs differ in {difference(known.config, new.config)}"
    places = f"{known.folders[0]} and {new.folders[0]}"
    return f"{places} hold different results of the same run ({describe_run(key)}): {detail}"


def read_curves(found: FoundRuns) -> tuple[pd.DataFrame, list[Path]]:
    """The rows of curves.csv of all runs, and the runs without history.csv (their first directory).

    Where several directories hold a run's result, its curves are those of the first whose history.csv is whole. One
    that is not is added to `found.unreadable`.

    Raises ResultError: where two whole ones of one run differ in these columns; names all of them.
    """
    frames, no_history = [], []
    for key, run in found.runs.items():
        problems, first_whole = [], None
        for folder, facts in zip(run.folders, run.histories, strict=True):
            path = folder / "history.csv"
            if not path.exists():
                continue
            try:
                history = read_history(path, facts)
            except ResultError as error:
                problems.append(str(error))
                continue
            if first_whole is None:
                first_whole = path, history
                key_columns = pd.DataFrame([key] * len(history), columns=RUN_KEY)
                frames.append(pd.concat([key_columns, history], axis=1))
            elif not first_whole[1].equals(history):
                run_text = describe_run(key)
                found.disagreements.append(
                    f"{first_whole[0]} and {path} hold different curves of the same run ({run_text})"
                )
        if first_whole is None:
            found.unreadable += problems
            no_history += [] if problems else [run.folders[0]]
    _check_agreement(found)
    empty = pd.DataFrame({name: [] for name in CURVE_COLUMNS})
    return concat([empty, *frames]).astype(CURVE_COLUMNS), sorted(no_history)


def concat(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """`frames` as one. Empty ones would turn integer columns into floats: they are left out."""
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled, ignore_index=True) if filled else frames[0]
