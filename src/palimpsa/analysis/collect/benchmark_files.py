"""Read the CSV files of the benchmarks, checked."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from palimpsa.analysis.collect.benchmark_columns import (
    EVALUATION_SPEED_COLUMNS,
    OPERATOR_COLUMNS,
    OPERATORS,
    PRETRAINING_COLUMNS,
    TEXT_COLUMNS,
    TRAINING_COLUMNS,
)
from palimpsa.analysis.collect.csv_columns import read_csv_columns
from palimpsa.runs.schema import ResultError

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


def read_evaluation_speed_csv(folder: Path, slug: str) -> pd.DataFrame:
    """The rows of evaluation_speed_SLUG.csv. Raises ResultError naming the file."""
    return _read_columns(folder / f"evaluation_speed_{slug}.csv", EVALUATION_SPEED_COLUMNS["evaluation_speed"])


def device_slugs(folder: Path, kinds: Sequence[str]) -> list[str]:
    """The devices, as they stand in file names, that have a CSV file of one of these kinds in `folder`; sorted."""
    return sorted({path.stem.partition("_")[2] for kind in kinds for path in folder.glob(f"{kind}_*.csv")})


def _read_columns(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The rows of a CSV file that has exactly these columns, numbers but for TEXT_COLUMNS.

    Raises ResultError naming the file.
    """
    rows = read_csv_columns(path, columns, TEXT_COLUMNS)
    for name in SIZES & set(columns):
        # Of a copy, of bytes alone, there are none.
        sizes = rows.loc[rows["case"] != "copy", name] if "case" in rows else rows[name]
        if not (sizes.between(1, MAX_SIZE) & (sizes % 1 == 0)).all():
            raise ResultError(f"{path}: {name} holds something else than whole numbers from 1 on")
    # Times, sizes, counts and shares of them.
    numbers = [name for name in columns if name not in TEXT_COLUMNS]
    wrong = [name for name in numbers if ((values := rows[name].to_numpy()) < 0).any() or np.isinf(values).any()]
    if wrong:
        raise ResultError(f"{path}: {wrong[0]} holds a number below 0 or an infinite one")
    return rows
