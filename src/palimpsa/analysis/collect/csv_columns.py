"""Reads a CSV file that has exactly the columns it is to have."""

import io
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from palimpsa.config.text import from_cell, printable
from palimpsa.runs.files import read_regular
from palimpsa.runs.schema import FileUnreadableError, ResultError


def read_csv_columns(path: Path, columns: Sequence[str], text_columns: Collection[str]) -> pd.DataFrame:
    """The rows of a file, one at least.

    Args:
        columns: of the file, in their order.
        text_columns: those of them, and maybe others, that hold text; all others hold numbers or nothing.

    Raises:
        ResultError: naming the file: it cannot be read, has other columns or no row, a number is none, or the last row
            was cut short.
    """
    text = [name for name in columns if name in text_columns]
    try:
        content = read_regular(path)
        # Only an empty cell is missing; a model may be called "NA".
        missing = {name: [""] if name in text_columns else ["", "nan"] for name in columns}
        rows = pd.read_csv(
            io.BytesIO(content), dtype=dict.fromkeys(text, str), keep_default_na=False, na_values=missing
        )
    except OSError as error:
        raise FileUnreadableError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, OverflowError) as error:
        raise ResultError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if list(rows.columns) != list(columns):
        raise ResultError(f"{path}: its columns are not those of this version, expected {', '.join(columns)}")
    if rows.empty:
        raise ResultError(f"{path}: holds no row, expected one a measurement")
    if not content.endswith((b"\n", b"\r")):
        raise ResultError(f"{path}: row {len(rows)} has no line end, expected one; was the file cut short?")
    for name in columns:
        if name not in text and not pd.api.types.is_numeric_dtype(rows.dtypes[name]):
            raise ResultError(f"{path}: {name} holds something else than numbers")
    return rows.assign(
        **{name: rows[name].map(lambda cell: printable(from_cell(cell)), na_action="ignore") for name in text}
    )
