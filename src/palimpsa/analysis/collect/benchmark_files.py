"""Read the CSV files of the benchmarks, checked."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from palimpsa.analysis.collect.benchmark_columns import (
    OPERATOR_COLUMNS,
    OPERATORS,
    PRETRAINING_COLUMNS,
    TEXT_COLUMNS,
    TRAINING_COLUMNS,
)
from palimpsa.config.text import from_cell, printable
from palimpsa.runs.files import read_regular
from palimpsa.runs.schema import FileUnreadableError, ResultError

# What figures are drawn against and by.
SIZES = {"B", "T", "H", "K", "V", "seq_len", "context", "tokens_per_step", "accumulate"}
MAX_SIZE = 2**40


def read_operator_csv(folder: Path, kind: str, slug: str) -> pd.DataFrame:
    """The rows of KIND_SLUG.csv (operators or throughput), none where there is no such file.

    Raises ResultError naming the file.
    """
    path, columns = folder / f"{kind}_{slug}.csv", OPERATOR_COLUMNS[kind]
    if not path.exists():
        return pd.DataFrame(columns=list(columns))
    rows = _read_columns(path, columns)
    unknown = set(rows["operator"]) - {*OPERATORS, "copy"}
    if unknown:
        raise ResultError(f"{path}: unknown operator {min(unknown)}, expected one of {', '.join(OPERATORS)}")
    return rows


def read_training_csv(folder: Path, slug: str) -> pd.DataFrame:
    """The rows of steps_SLUG.csv. Raises ResultError naming the file."""
    return _read_columns(folder / f"steps_{slug}.csv", TRAINING_COLUMNS["steps"])


def read_pretraining_csv(folder: Path, slug: str) -> pd.DataFrame:
    """The rows of pretraining_SLUG.csv, none where there is no such file. Raises ResultError naming the file."""
    path, columns = folder / f"pretraining_{slug}.csv", PRETRAINING_COLUMNS["pretraining"]
    return _read_columns(path, columns) if path.exists() else pd.DataFrame(columns=list(columns))


def device_slugs(folder: Path, kinds: Sequence[str]) -> list[str]:
    """The devices, as they stand in file names, that have a CSV file of one of these kinds in `folder`; sorted."""
    return sorted({path.stem.partition("_")[2] for kind in kinds for path in folder.glob(f"{kind}_*.csv")})


def _read_columns(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The rows of a CSV file that has exactly these columns, numbers but for TEXT_COLUMNS.

    Raises ResultError naming the file.
    """
    try:
        content = io.BytesIO(read_regular(path))
        # Only an empty cell is missing; a model may be called "NA".
        missing = {name: [""] if name in TEXT_COLUMNS else ["", "nan"] for name in columns}
        rows = pd.read_csv(content, dtype=dict.fromkeys(TEXT_COLUMNS, str), keep_default_na=False, na_values=missing)
    except OSError as error:
        raise FileUnreadableError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, OverflowError) as error:
        raise ResultError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if list(rows.columns) != list(columns):
        raise ResultError(f"{path}: its columns are not those of this version, expected {', '.join(columns)}")
    if rows.empty:
        raise ResultError(f"{path}: holds no row, expected one a measurement")
    text = rows.columns.intersection(TEXT_COLUMNS)
    rows = rows.assign(
        **{name: rows[name].map(lambda cell: printable(from_cell(cell)), na_action="ignore") for name in text}
    )
    numbers = [name for name in columns if name not in TEXT_COLUMNS]
    wrong = [name for name in numbers if not pd.api.types.is_numeric_dtype(rows.dtypes[name])]
    if wrong:
        raise ResultError(f"{path}: {wrong[0]} holds something else than numbers")
    for name in SIZES & set(columns):
        # Of a copy, of bytes alone, there are none.
        sizes = rows.loc[rows["case"] != "copy", name] if "case" in rows else rows[name]
        if not (sizes.between(1, MAX_SIZE) & (sizes % 1 == 0)).all():
            raise ResultError(f"{path}: {name} holds something else than whole numbers from 1 on")
    # Times, sizes, counts and shares of them.
    wrong = [name for name in numbers if ((values := rows[name].to_numpy()) < 0).any() or np.isinf(values).any()]
    if wrong:
        raise ResultError(f"{path}: {wrong[0]} holds a number below 0 or an infinite one")
    return rows
