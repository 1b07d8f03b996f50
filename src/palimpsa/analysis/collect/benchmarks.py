"""Read the CSV files of the benchmarks, checked."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from palimpsa.analysis.collect.operator_columns import COLUMNS, OPERATORS, TEXT_COLUMNS
from palimpsa.runs.schema import ResultError


def read_benchmark_csv(folder: Path, kind: str, slug: str) -> pd.DataFrame:
    """The rows of KIND_SLUG.csv, none where there is no such file. Raises ResultError naming the file."""
    path, columns = folder / f"{kind}_{slug}.csv", COLUMNS[kind]
    if not path.exists():
        return pd.DataFrame(columns=list(columns))
    rows = read_columns(path, columns, TEXT_COLUMNS)
    unknown = set(rows["operator"]) - {*OPERATORS, "copy"}
    if unknown:
        raise ResultError(f"{path}: unknown operator {min(unknown)}, expected one of {', '.join(OPERATORS)}")
    return rows


def read_columns(path: Path, columns: Sequence[str], text_columns: Sequence[str]) -> pd.DataFrame:
    """The rows of a CSV file that has exactly these columns, numbers but for the text ones.

    Raises ResultError naming the file.
    """
    try:
        rows = pd.read_csv(path, dtype=dict.fromkeys(text_columns, str), keep_default_na=True)
    except (ValueError, OSError) as error:
        raise ResultError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if list(rows.columns) != list(columns):
        raise ResultError(f"{path}: its columns are not those of this version, expected {', '.join(columns)}")
    if rows.empty:
        raise ResultError(f"{path}: holds no row, expected one a measurement")
    numbers = [name for name in columns if name not in text_columns]
    wrong = [name for name in numbers if not pd.api.types.is_numeric_dtype(rows.dtypes[name])]
    if wrong:
        raise ResultError(f"{path}: {wrong[0]} holds something else than numbers")
    return rows
