"""evaluation.csv, a row a measured number of a model: read, checked, and brought up to date."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsa.analysis.collect.csv_columns import read_csv_columns
from palimpsa.runs.files import write_atomic
from palimpsa.runs.schema import ResultError

FILE = "evaluation.csv"
# measure: a task, an average of tasks or a long-range measure. at: "all", or a bin of positions, ages or sizes. count:
# items, tokens or tasks that a value is the mean of. limit: items a task; empty: all. data: SHA-256 of the records.
COLUMNS = (
    *("name", "label", "scale", "seed", "lr", "steps", "tokens", "num_parameters"),
    *("measure", "at", "metric", "value", "stderr", "count", "limit"),
    *("max_length", "prefix_token", "batch_size", "dtype", "data", "device", "lm_eval", "git_revision", "date"),
)
TEXT = {
    *("name", "label", "scale", "measure", "at", "metric"),
    *("dtype", "data", "device", "lm_eval", "git_revision", "date"),
}
# A row is known by them.
KEYS = ["name", "measure", "at", "metric"]


def read_evaluation_csv(folder: Path) -> pd.DataFrame:
    """The rows of evaluation.csv, none where there is no such file. Raises ResultError naming the file."""
    path = folder / FILE
    rows = _read(path) if path.exists() else pd.DataFrame(columns=list(COLUMNS))
    if rows.duplicated(KEYS).any():
        twice = rows.loc[rows.duplicated(KEYS)].iloc[0]
        raise ResultError(f"{path}: got {twice['measure']} at {twice['at']} of {twice['name']} twice, expected it once")
    return rows


def add_evaluation(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Puts the rows of one model into evaluation.csv, in the place of those of its name.

    Raises:
        ResultError: for a file that is there and is none of this version.
        OSError: it cannot be written.
    """
    new = pd.DataFrame(list(rows), columns=list(COLUMNS))
    path = folder / FILE
    if path.exists():
        read_evaluation_csv(folder)
        # As text, so that the rows of other models stay as they are.
        old = pd.read_csv(path, dtype=str, keep_default_na=False)
        others = old.loc[~old["name"].isin(new["name"])]
        new = pd.concat([others, pd.read_csv(io.StringIO(new.to_csv(index=False)), dtype=str, keep_default_na=False)])
        new = new.sort_values("name", kind="stable")
    return write_atomic(path, new.to_csv(index=False, lineterminator="\n"))


def _read(path: Path) -> pd.DataFrame:
    rows = read_csv_columns(path, COLUMNS, TEXT)
    if len(rows["value"].dropna()) < len(rows):
        raise ResultError(f"{path}: value is empty in a row, expected a number")
    return rows
