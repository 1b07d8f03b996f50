"""pairs.csv, a row a measured number of a run of a demonstration, and documents.csv, the losses of single documents."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsa.analysis.collect.csv_columns import read_csv_columns
from palimpsa.config.text import to_cell
from palimpsa.runs.files import write_atomic
from palimpsa.runs.schema import ResultError

# What was trained first; what was trained on as it was; what was trained on converted.
SOURCE, CONTINUED, CONVERTED = "source", "continued", "converted"
FILE, DOCUMENTS_FILE = "pairs.csv", "documents.csv"
PLACE = ("demonstration", "model", "seed", "arm")
# measure, at: what was measured, and at which length, position or age. stderr, count: where evaluation knows them.
# date: when the run began.
COLUMNS = (
    *("demonstration", "scale", "model", "label", "seed", "arm", "steps", "measure", "at", "value", "stderr", "count"),
    *("config_hash", "device", "git_revision", "date"),
)
DOCUMENT_COLUMNS = (*PLACE, "document", "loss")
TEXT = {*COLUMNS} - {"seed", "steps", "value", "stderr", "count"}
KEYS = [*PLACE, "measure", "at"]
DOCUMENT_KEYS = [*PLACE, "document"]


def metrics_of_stage(stage: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What result.json says of a stage, as rows with measure, at and value: nothing of one that was not tested."""
    if stage.get("test_accuracy") is not None:
        return [{"measure": "accuracy", "at": str(stage["seq_len"]), "value": stage["test_accuracy"]}]
    if "validation_loss" in stage:
        by_position = stage["validation_loss_by_position"].items()
        return [
            {"measure": "validation_loss", "at": "all", "value": stage["validation_loss"]},
            {"measure": "validation_perplexity", "at": "all", "value": stage["validation_perplexity"]},
            *({"measure": "validation_loss_by_position", "at": at, "value": value} for at, value in by_position),
        ]
    return []


def read_pairs(folder: Path) -> pd.DataFrame:
    """The rows of a folder's pairs.csv, none where there is none. Raises ResultError naming the file."""
    return _read(folder / FILE, COLUMNS, TEXT, KEYS, "value")


def read_documents(folder: Path) -> pd.DataFrame:
    """The same of documents.csv."""
    return _read(folder / DOCUMENTS_FILE, DOCUMENT_COLUMNS, {"demonstration", "model", "arm"}, DOCUMENT_KEYS, "loss")


def add_pairs(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Puts rows into pairs.csv, in the place of those of the same demonstration, model and seed.

    Raises:
        ResultError: for a file that is there and is none of this version.
        OSError: it cannot be written.
    """
    read_pairs(folder)
    return _add(folder / FILE, COLUMNS, rows)


def add_documents(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """The same of documents.csv."""
    read_documents(folder)
    return _add(folder / DOCUMENTS_FILE, DOCUMENT_COLUMNS, rows)


def _read(path: Path, columns: Sequence[str], text: set[str], keys: list[str], value: str) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame(columns=list(columns))
    rows = read_csv_columns(path, columns, text)
    if len(rows[value].dropna()) < len(rows):
        raise ResultError(f"{path}: {value} is empty in a row, expected a number")
    unknown = set(rows["arm"]) - {SOURCE, CONTINUED, CONVERTED}
    if unknown:
        raise ResultError(f"{path}: arm is {json.dumps(min(unknown))}, expected {SOURCE}, {CONTINUED} or {CONVERTED}")
    if rows.duplicated(keys).any():
        twice = rows.loc[rows.duplicated(keys), keys].iloc[0]
        raise ResultError(f"{path}: got {', '.join(map(str, twice))} twice, expected it once")
    return rows


def _add(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> Path:
    cells = [{key: to_cell(value) if isinstance(value, str) else value for key, value in row.items()} for row in rows]
    new = pd.DataFrame(cells, columns=list(columns))
    if path.exists():
        # As text, so that other rows stay as they are.
        old = pd.read_csv(path, dtype=str, keep_default_na=False)
        text = pd.read_csv(io.StringIO(new.to_csv(index=False)), dtype=str, keep_default_na=False)
        pairs = [
            pd.MultiIndex.from_arrays([rows["demonstration"], rows["model"], rows["seed"]]) for rows in (old, text)
        ]
        others = old.loc[~pairs[0].isin(pairs[1])]
        new = pd.concat([others, text]).sort_values("demonstration", kind="stable")
    return write_atomic(path, new.to_csv(index=False, lineterminator="\n"))
