"""Reads run directories and the collected CSV files into tidy data frames.

A run directory holds `result.json` (its last act: see `runs.result`) and `history.csv` (its learning curves).
Everything read here is checked: a file that is cut short or of another format is one `ResultError`
that names the file, what was found and what was expected.
"""

import os
import re
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsa.runs.identity import protocol_hash
from palimpsa.runs.result import read_result
from palimpsa.runs.schema import (
    CURVE_COLUMNS,
    HEAD_PREFIXES,
    RUN_COLUMNS,
    RUN_KEY,
    SESSION_COLUMNS,
    Block,
    ResultError,
    shorten,
)


def _one_line(text: str | None) -> str | None:
    return None if text is None else " ".join(text.split())


def find_run_dirs(root: Path) -> tuple[list[Path], list[Path]]:
    """The run directories below `root`, at any depth, sorted: with a result.json, and without.

    A directory without result.json counts as a run that has not ended when it holds history.csv,
    config.json or .hydra. Raises ResultError when `root` is not a directory, or one below it cannot be listed.
    """
    if not root.is_dir():
        found = "is a file" if root.exists() else "no such directory"
        raise ResultError(f"{root}: {found}, expected a directory with run directories")

    def unlisted(error: OSError) -> None:
        raise ResultError(f"{error.filename}: cannot be listed ({error.strerror}), expected run directories")

    ended, not_ended = [], []
    seen: set[str] = set()
    # Links are followed: a folder of runs may lie on another disk. One that leads back is not walked twice.
    for folder, subfolders, files in os.walk(root, onerror=unlisted, followlinks=True):
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


def result_rows(path: Path, result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of runs.csv of one result: keys of RUN_COLUMNS, one row a stage that ended.

    A result without stages gives one row without a stage. `path` names the file in errors. Raises
    ResultError for a value that is missing or of the wrong kind.
    """
    top = Block(path, "", result)
    run, provenance = top.block("run"), top.block("provenance")
    # task.seq_len is null in a curriculum; the other protocol trains one run a length.
    config = top.block("config")
    task = config.block("task")
    versions = provenance.block("versions").values
    common = {
        "task": run.get("task", "text"),
        "scale": run.get("scale", "text"),
        "model": run.get("model", "text"),
        "lr": float(run.get("lr", "positive")),
        "seed": run.get("seed", "count"),
        "run_seq_len": task.get("seq_len", "count", optional=True) or 0,
        "label": _one_line(run.get("label", "text")),
        "status": top.get("status", "status"),
        "error": _one_line(top.get("error", "text", optional=True)),
        "state_size": run.get("state_size", "count", optional=True),
        "num_parameters": run.get("num_parameters", "count", optional=True),
        "vocab_size": task.get("vocab_size", "count", optional=True),
        "config_hash": top.get("config_hash", "text"),
        "protocol_hash": protocol_hash(config.values),
        "git_revision": provenance.get("git_revision", "text", optional=True),
        "git_dirty": provenance.get("git_dirty", "bool", optional=True),
        "versions": ";".join(f"{k}={v}" for k, v in sorted(versions.items()) if v is not None),
        "device": _one_line(provenance.get("device", "string", optional=True)),
        "started": provenance.get("started", "string", optional=True),
        "wall_time_s": provenance.get("wall_time_s", "number", optional=True),
        "command": _one_line(provenance.get("command", "string", optional=True)),
    }
    stages = []
    for index, values in enumerate(top.get("stages", "list")):
        if not isinstance(values, dict):
            raise ResultError(f"{path}: stages[{index}] is {shorten(values)}, expected an object")
        stages.append(_stage_row(Block(path, f"stages[{index}].", values)))
    return [common | stage for stage in stages or [{}]]


def history_length(path: Path, result: dict[str, Any]) -> int | None:
    """How many rows the run's history.csv must have (metrics.history_rows); None in results without that number."""
    metrics = Block(path, "", result).get("metrics", "object", optional=True)
    return Block(path, "metrics.", metrics or {}).get("history_rows", "count", optional=True)


def _stage_row(stage: Block) -> dict[str, Any]:
    tested = stage.get("test_accuracy", "accuracy", optional=True)
    by_age = stage.get("test_accuracy_by_age", "accuracies", optional=True)
    return {
        "stage": stage.get("stage", "count"),
        "seq_len": stage.get("seq_len", "count", optional=True),
        "num_pairs": stage.get("num_pairs", "count", optional=True),
        "steps": stage.get("steps", "count"),
        "ended_by": stage.get("ended_by", "text", optional=True),
        "plateau_exit_step": stage.get("plateau_exit_step", "count", optional=True),
        # A stage of the figure takes part in the choice of the learning rate.
        "validation_accuracy": stage.get("validation_accuracy", "accuracy", optional=tested is None),
        "test_accuracy": tested,
        "test_accuracy_by_age": by_age and ";".join("" if value is None else str(value) for value in by_age),
        "test_loss": stage.get("test_loss", "number", optional=True),
    }


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
    return runs_frame(result_rows(path, read_result(path)))


def read_history(path: Path, num_rows: int | None = None) -> pd.DataFrame:
    """The learning curves of one run: CURVE_COLUMNS from step on, and the columns of single heads.

    One row a logged step (an optimizer step counted over all stages); rows of the same step are
    joined, and steps at which none of these columns was logged are left out. What was not measured
    is NaN.

    num_rows: how many rows the file must have, where known (`history_length`). Raises ResultError; a file that
    does not end with a line end was cut inside its last row.
    """
    frame = _read_csv(path, {"step": "int64", "stage": "Int64", "loss": "float64"})
    if num_rows not in (None, len(frame)):
        raise ResultError(f"{path}: holds {len(frame)} rows, expected the {num_rows} that its result.json counts")
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


def _read_csv(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    """A CSV file with at least `columns` (name -> dtype), floats as exact as they were written."""
    try:
        # As text first: pandas' own parser of floats may be one unit off in the last place. Only an
        # empty cell is missing; a model may be called "NA".
        frame = pd.read_csv(path, dtype="str", keep_default_na=False, na_values=[""])
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        found = _one_line(str(error))
        raise ResultError(f"{path}: cannot be read as a CSV file ({found})") from None
    for name, dtype in columns.items():
        if name not in frame.columns:
            raise ResultError(
                f"{path}: column {name} is missing, found {', '.join(frame.columns[:8])}, ...; "
                f"expected {', '.join(columns)}"
            )
        if dtype != "str":
            frame[name] = _convert(frame.loc[:, name], dtype, path)
    if not path.read_bytes().endswith((b"\n", b"\r")):
        raise ResultError(f"{path}: row {len(frame)} has no line end, expected one; was the file cut short?")
    return frame


def _as_floats(frame: pd.DataFrame, names: list[str], path: Path) -> pd.DataFrame:
    return frame.assign(**{name: _convert(frame.loc[:, name], "float64", path) for name in names})


def _convert(column: pd.Series, dtype: str, path: Path) -> pd.Series:
    try:
        if dtype == "float64":
            return column.map(float).astype(dtype)
        return pd.Series(pd.to_numeric(column)).astype(dtype)
    except (ValueError, TypeError) as error:
        # pandas names neither the column nor the file.
        raise ResultError(f"{path}: column {column.name} is not of type {dtype} ({error})") from None
