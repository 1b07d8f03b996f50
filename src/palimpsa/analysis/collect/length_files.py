"""lengths.csv, a row a number of a run that was tested at a length of anyone's choice: read, and added to."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsa.analysis.collect.csv_columns import read_csv_columns
from palimpsa.config.text import to_cell
from palimpsa.runs.files import write_atomic
from palimpsa.runs.schema import ResultError

# metric: as the task names it; accuracies are fractions of the queries, losses nats a query.
COLUMNS = (
    *("task", "scale", "model", "label", "lr", "seed", "seq_len", "num_pairs", "metric", "value"),
    *("config_hash", "device", "git_revision", "date"),
)
TEXT = {*COLUMNS} - {"lr", "seed", "seq_len", "num_pairs", "value"}
KEYS = ["config_hash", "seq_len", "num_pairs", "metric"]


def read_lengths_csv(path: Path) -> pd.DataFrame:
    """The rows of the file, none where there is none.

    Raises:
        ResultError: naming the file, for other columns, a number that is none, or one that stands there twice.
    """
    if not path.exists():
        return pd.DataFrame(columns=list(COLUMNS))
    rows = read_csv_columns(path, COLUMNS, TEXT)
    if rows[["lr", "seed", "seq_len", "num_pairs", "value"]].isna().to_numpy().any():
        raise ResultError(f"{path}: a number is empty in a row, expected one")
    _check_once(rows, path)
    return rows


def _check_once(rows: pd.DataFrame, path: Path) -> None:
    if rows.duplicated(KEYS).any():
        twice = rows.loc[rows.duplicated(KEYS), KEYS].iloc[0]
        raise ResultError(f"{path}: got {', '.join(map(str, twice))} twice, expected it once")


def add_lengths(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Adds rows to the file, sorted.

    Raises:
        ResultError: see `read_lengths_csv`; also for a number that is there, of another process say. The file stays.
        OSError: it cannot be written.
    """
    cells = [{key: to_cell(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows]
    new = pd.read_csv(
        io.StringIO(pd.DataFrame(cells, columns=list(COLUMNS)).to_csv(index=False)), dtype=str, keep_default_na=False
    )
    if path.exists():
        read_lengths_csv(path)
        # As text, so that what is there stays as it is.
        new = pd.concat([pd.read_csv(path, dtype=str, keep_default_na=False), new])
    _check_once(new, path)
    order = ["task", "model", "lr", "seed", "seq_len", "num_pairs"]
    numbers = {"seed": int, "seq_len": int, "num_pairs": int, "lr": float}
    new = new.sort_values(order, key=lambda column: column.map(numbers.get(str(column.name), str)), kind="stable")
    return write_atomic(path, new.to_csv(index=False, lineterminator="\n"))
