"""Read the CSV files of the operator benchmark, checked."""

from pathlib import Path

import pandas as pd

from palimpsa.analysis.kernel_schema import COLUMNS, OPERATORS, TEXT_COLUMNS
from palimpsa.analysis.schema import ResultError


def read_benchmark_csv(folder: Path, kind: str, slug: str) -> pd.DataFrame:
    """The rows of KIND_SLUG.csv, none where there is no such file. Raises ResultError naming the file."""
    path, columns = folder / f"{kind}_{slug}.csv", list(COLUMNS[kind])
    if not path.exists():
        return pd.DataFrame(columns=columns)
    try:
        rows = pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, str), keep_default_na=True)
    except (ValueError, OSError) as error:
        raise ResultError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if list(rows.columns) != columns:
        raise ResultError(f"{path}: its columns are not those of this version, expected {', '.join(columns)}")
    numbers = [name for name in columns if name not in TEXT_COLUMNS]
    wrong = [name for name in numbers if not pd.api.types.is_numeric_dtype(rows.dtypes[name])]
    if wrong:
        raise ResultError(f"{path}: {wrong[0]} holds something else than numbers")
    unknown = set(rows["operator"]) - {*OPERATORS, "copy"}
    if unknown:
        raise ResultError(f"{path}: unknown operator {min(unknown)}, expected one of {', '.join(OPERATORS)}")
    return rows
