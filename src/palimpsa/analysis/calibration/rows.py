"""calibration.csv, a row a score of a run at a load, and reliability.csv, a row a bin of such a score."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsa.analysis.collect.csv_columns import read_csv_columns
from palimpsa.config.text import to_cell
from palimpsa.runs.files import write_all_atomic
from palimpsa.runs.schema import ResultError

FILE, BINS_FILE = "calibration.csv", "reliability.csv"
RUN = ("scale", "task", "model", "lr", "seed")
LOAD = ("seq_len", "num_pairs")
# layer: a number from 0, "sum" over all, or empty where layers have no part in a score.
SCORE = ("signal", "layer")
# What all rows of a scale share: they are of one revision, one device and one way of measuring.
SHARED = ("num_examples", "num_bins", "device", "git_revision")
# steps: of training. auroc: the probability that an error has the greater score, and its 95% interval. spearman: with
# the loss of each query. calibration_error: of a score that is a probability of being wrong.
COLUMNS = (
    *(*RUN, "label", "config_hash", "steps", *LOAD, "num_queries", "accuracy", "loss", *SCORE),
    *("auroc", "auroc_low", "auroc_high", "spearman", "calibration_error", *SHARED, "date"),
)
# bin: from 0, the surest. score: the mean. low, high: the ends of Wilson's 95% interval of num_wrong / count.
BIN_COLUMNS = (*RUN, *LOAD, *SCORE, "bin", "score", "count", "num_wrong", "low", "high")
TEXT = {"scale", "task", "model", "label", "config_hash", *SCORE, "device", "git_revision", "date"}
NEEDED = ("lr", "seed", "steps", *LOAD, "num_queries", "accuracy", "loss", "num_examples", "num_bins")

Rows = Sequence[Mapping[str, Any]]


def read_calibration(folder: Path) -> pd.DataFrame:
    """The rows of a folder's calibration.csv, none where there is none. Raises ResultError naming the file."""
    return _read(folder / FILE, COLUMNS, [*RUN, *LOAD, *SCORE], NEEDED)


def read_bins(folder: Path) -> pd.DataFrame:
    """The same of reliability.csv."""
    needed = ("lr", "seed", *LOAD, "bin", "score", "count", "num_wrong", "low", "high")
    return _read(folder / BINS_FILE, BIN_COLUMNS, [*RUN, *LOAD, *SCORE, "bin"], needed)


def add_calibration(folder: Path, rows: Rows, bins: Rows) -> None:
    """Puts the rows of one run into both files, in the place of those that it has there, or writes neither.

    Raises:
        ResultError: for a file that is there and is none of this version.
        OSError: one cannot be written.
    """
    read_calibration(folder)
    read_bins(folder)
    write_all_atomic(
        {
            folder / BINS_FILE: _added(folder / BINS_FILE, BIN_COLUMNS, bins),
            folder / FILE: _added(folder / FILE, COLUMNS, rows),
        }
    )


def forget_scale(folder: Path, scale: str) -> None:
    """Takes the rows of a scale out of both files. Raises ResultError and OSError as `add_calibration` does."""
    read_calibration(folder)
    read_bins(folder)
    kept = {}
    for path in (folder / BINS_FILE, folder / FILE):
        if path.exists():
            old = _as_text(path.read_text(encoding="utf-8"))
            kept[path] = old.loc[old["scale"] != scale]
    for path, rows in kept.items():
        if rows.empty:
            path.unlink()
    write_all_atomic({path: _text(rows) for path, rows in kept.items() if not rows.empty})


def _read(path: Path, columns: Sequence[str], keys: list[str], needed: Sequence[str]) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame(columns=list(columns))
    rows = read_csv_columns(path, columns, TEXT)
    rows = rows.assign(layer=rows["layer"].fillna(""))
    for name in needed:
        if len(rows[name].dropna()) < len(rows):
            raise ResultError(f"{path}: {name} is empty in a row, expected a number")
    if rows.duplicated(keys).any():
        twice = rows.loc[rows.duplicated(keys), keys].iloc[0]
        raise ResultError(f"{path}: got {', '.join(map(str, twice))} twice, expected it once")
    return rows


def _added(path: Path, columns: Sequence[str], rows: Rows) -> str:
    cells = [{name: _cell(name, value) for name, value in row.items()} for row in rows]
    new = _as_text(_text(pd.DataFrame(cells, columns=list(columns))))
    if path.exists():
        # As text, so that the rows of other runs stay as they are.
        old = _as_text(path.read_text(encoding="utf-8"))
        own = set(new[list(RUN)].itertuples(index=False, name=None))
        others = [run not in own for run in old[list(RUN)].itertuples(index=False, name=None)]
        new = pd.concat([old.loc[others], new])
    # Whichever run came first, the file is the same.
    order = {"seed": lambda column: column.astype(int), "lr": lambda column: column.astype(float)}
    for name in reversed(RUN):
        new = new.sort_values(name, kind="stable", key=order.get(name))
    return _text(new)


def _cell(name: str, value: Any) -> Any:
    if isinstance(value, str):
        return to_cell(value)
    # A rate tells runs apart: all of its digits.
    if isinstance(value, float) and name != "lr":
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def _as_text(content: str) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(content), dtype=str, keep_default_na=False)


def _text(rows: pd.DataFrame) -> str:
    return rows.to_csv(index=False, lineterminator="\n")
