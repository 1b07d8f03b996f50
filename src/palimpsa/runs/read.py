"""Reads run directories and the collected CSV files into tidy data frames.

A run directory holds `result.json` (its last act: see `runs.result`) and `history.csv` (its learning curves).
Everything read here is checked: a file that is cut short or of another format is one `ResultError`
that names the file, what was found and what was expected.
"""

import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsa.config.text import from_cell, one_line, printable, to_cell
from palimpsa.runs.files import read_regular
from palimpsa.runs.result import read_result_and_rows
from palimpsa.runs.rows import HistoryFacts
from palimpsa.runs.schema import (
    CELL_KINDS,
    CURVE_COLUMNS,
    HEAD_PREFIXES,
    KINDS,
    OPTIONAL_COLUMNS,
    RUN_COLUMNS,
    RUN_KEY,
    SESSION_COLUMNS,
    FileUnreadableError,
    ResultError,
    matches,
    shorten,
)


def find_run_dirs(root: Path, unlisted: Callable[[ResultError], None] | None = None) -> tuple[list[Path], list[Path]]:
    """The run directories below `root`, at any depth, sorted: with a result.json, and without.

    A directory without result.json counts as a run that has not ended when it holds history.csv,
    config.json or .hydra. Raises ResultError when `root` is not a directory, or one below it cannot be listed:
    `unlisted` is called of that instead, and what can be listed is returned.
    """
    if not root.is_dir():
        found = "is a file" if root.exists() else "no such directory"
        raise ResultError(f"{root}: {found}, expected a directory with run directories")

    def cannot_list(error: OSError) -> None:
        told = ResultError(f"{error.filename}: cannot be listed ({error.strerror}), expected run directories")
        if unlisted is None:
            raise told
        unlisted(told)

    ended, not_ended = [], []
    seen: set[str] = set()
    # Links are followed: a folder of runs may lie on another disk. One that leads back is not walked twice.
    for folder, subfolders, files in os.walk(root, onerror=cannot_list, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:
            subfolders.clear()
            continue
        seen.add(place)
        subfolders.sort()
        if "result.json" in files:
            ended.append(Path(folder))
            # Checkpoints and logs of a run hold no other runs.
            subfolders.clear()
        elif {"history.csv", "config.json", ".hydra"} & {*files, *subfolders}:
            not_ended.append(Path(folder))
    return sorted(ended), sorted(not_ended)


def runs_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a frame: the columns and dtypes of RUN_COLUMNS, sorted by identity and stage."""

    def column(name: str) -> list[Any]:
        # True and False as words; None, not "None" or "nan", for an empty cell.
        to_cell = str if RUN_COLUMNS[name] == "str" else lambda value: value
        values = [row.get(name) for row in rows]
        return [None if value is None else to_cell(value) for value in values]

    frame = pd.DataFrame({name: column(name) for name in RUN_COLUMNS})
    return frame.astype(RUN_COLUMNS).sort_values([*RUN_KEY, "stage"], ignore_index=True)


def read_run_dir(folder: Path) -> pd.DataFrame:
    """The rows of runs.csv of one run directory. Raises ResultError."""
    path = folder / "result.json"
    return runs_frame(read_result_and_rows(path)[1])


def read_history(path: Path, facts: HistoryFacts | None = None) -> pd.DataFrame:
    """The learning curves of one run: CURVE_COLUMNS from step on, and the columns of single heads.

    One row a logged step (an optimizer step counted over all stages); rows of the same step are
    joined, and steps at which none of these columns was logged are left out. What was not measured
    is NaN.

    facts: what its result says of it (`history_of`). Raises ResultError; a file that does not end with a line end was
    cut inside its last row.
    """
    frame = _read_csv(path, {"step": "int64", "stage": "Int64", "loss": "float64"}, facts)
    if not frame["step"].is_monotonic_increasing:
        raise ResultError(f"{path}: column step goes down, expected training steps counted over all stages")
    heads = head_columns(frame)
    values = ["loss", "window_mean", "metaplasticity_mean", *heads]
    frame = _as_floats(frame.reindex(columns=["step", "stage", *values]), values, path)
    frame = frame.groupby("step", as_index=False).last()
    return frame.dropna(subset=values, how="all").reset_index(drop=True)


def head_columns(frame: pd.DataFrame) -> list[str]:
    """The columns of single heads, such as window/layer0/head1; layer 2 comes before layer 10."""

    def natural(name: str) -> list[tuple[int, str]]:
        return [(int(part or 0), word) for word, part in re.findall(r"(\D+)(\d*)", name)]

    found = [name for name in frame.columns if name.startswith(HEAD_PREFIXES)]
    return sorted(found, key=lambda name: (not name.startswith("window/"), natural(name)))


def read_runs_csv(path: Path) -> pd.DataFrame:
    """runs.csv as `runs_frame` made it.

    Raises ResultError: no such file, a missing column, a cell of another type, a last row that was cut short.
    """
    return _read_csv(path, RUN_COLUMNS).loc[:, list(RUN_COLUMNS)]


def read_curves_csv(path: Path) -> pd.DataFrame:
    """curves.csv: CURVE_COLUMNS and the columns of single heads (float64).

    Raises ResultError: no such file, a missing column, a cell of another type, a last row that was cut short.
    """
    frame = _read_csv(path, CURVE_COLUMNS)
    heads = head_columns(frame)
    return _as_floats(frame.loc[:, [*CURVE_COLUMNS, *heads]], heads, path)


def read_gpu_sessions_csv(path: Path) -> pd.DataFrame:
    """gpu_sessions.csv, kept by hand beside runs.csv: a row for each time that a machine with GPUs was held.

    Raises ResultError: see `read_runs_csv`.
    """
    return _read_csv(path, SESSION_COLUMNS)


def _read_csv(path: Path, columns: dict[str, str], facts: HistoryFacts | None = None) -> pd.DataFrame:
    """A CSV file with at least `columns` (name -> dtype), floats as exact as they were written."""
    try:
        content = read_regular(path)
    except OSError as error:
        raise FileUnreadableError(f"{path}: cannot be read as a CSV file ({error.strerror})") from None
    if facts is not None:
        facts.check(path, content)
    try:
        # As text first: pandas' own parser of floats may be one unit off in the last place. Only an
        # empty cell is missing; a model may be called "NA".
        frame = pd.read_csv(io.BytesIO(content), dtype="str", keep_default_na=False, na_values=[""])
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ResultError(f"{path}: cannot be read as a CSV file ({one_line(str(error))})") from None
    for name, dtype in columns.items():
        if name not in frame.columns:
            raise ResultError(
                f"{path}: column {name} is missing, found {', '.join(frame.columns[:8])}, ...; "
                f"expected {', '.join(columns)}"
            )
        text = frame.loc[:, name]
        frame[name] = _map_text(text, from_cell) if dtype == "str" else _convert(text, dtype, path)
        if name in CELL_KINDS:
            _check_cells(frame.loc[:, name], name, path)
        if dtype == "str":
            frame[name] = _map_text(frame.loc[:, name], printable)
    if not content.endswith((b"\n", b"\r")):
        raise ResultError(f"{path}: row {len(frame)} has no line end, expected one; was the file cut short?")
    return frame


def _check_cells(column: pd.Series, name: str, path: Path) -> None:
    """Raises ResultError for the first cell of a column of RUN_COLUMNS that a result could not have had."""
    kind = CELL_KINDS[name]
    # Each value once: a thousand rows share a model.
    for value in column.unique().tolist():
        empty = pd.isna(value)
        if not (name in OPTIONAL_COLUMNS if empty else matches(value, kind)):
            row = (column.isna() if empty else column == value).tolist().index(True)
            found = "empty" if empty else shorten(value)
            raise ResultError(f"{path}: column {name} is {found} in row {row + 1}, expected {KINDS[kind]}")


def cells_of(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame as its CSV file holds it: text as `config.text.to_cell` has it, numbers as they are."""
    text = [name for name in frame.columns if RUN_COLUMNS.get(name) == "str"]
    return frame.assign(**{name: _map_text(frame.loc[:, name], to_cell) for name in text})


def _map_text(column: pd.Series, change: Callable[[str], str]) -> pd.Series:
    return column.map(change, na_action="ignore").astype(column.dtype)


def _as_floats(frame: pd.DataFrame, names: list[str], path: Path) -> pd.DataFrame:
    # At once: one column after the other pandas warns of, where a model has many heads.
    converted = {name: _convert(frame.loc[:, name], "float64", path) for name in names}
    return pd.concat([frame.drop(columns=names), pd.DataFrame(converted)], axis=1).loc[:, frame.columns]


def _convert(column: pd.Series, dtype: str, path: Path) -> pd.Series:
    try:
        if dtype == "float64":
            return column.map(float).astype(dtype)
        # Not by a float, which has no place for all of an integer's digits.
        return column.map(int, na_action="ignore").astype(dtype)
    except (ValueError, TypeError, OverflowError) as error:
        # pandas names neither the column nor the file.
        raise ResultError(f"{path}: column {column.name} is not of type {dtype} ({error})") from None
