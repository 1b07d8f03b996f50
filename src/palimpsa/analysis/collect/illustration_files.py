"""Read the files that scripts/illustrate.py writes, checked."""

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsa.runs.files import read_regular
from palimpsa.runs.schema import FileUnreadableError, ResultError

# Recall of one memory at one age (pairs stored since): mean and standard deviation over memories.
RECALL_COLUMNS: tuple[str, ...] = ("memory", "age", "similarity", "similarity_std", "error", "error_std")
# state: numbers that the layer keeps; accuracy: share of num_pairs random pairs that it recalls by a rule at its best
# beta; gain: of that over linear attention with the same keys, with its standard error.
CAPACITY_COLUMNS: tuple[str, ...] = (
    *("rule", "num_heads", "K", "V", "num_candidates", "num_pairs", "state", "beta", "accuracy", "gain", "gain_error"),
)
# What a row is about; all other columns hold numbers.
TEXT_COLUMNS = ("memory", "rule")
RULES = ("linear attention", "delta rule", "Palimpsa", "full covariance")
COLUMNS = {"recall_by_age.csv": RECALL_COLUMNS, "capacity.csv": CAPACITY_COLUMNS}


def read_blocks(path: Path) -> list[dict[str, Any]]:
    """architecture.json: for each block its label, and its boxes as `palimpsa.model.data_flow` lists them.

    Raises ResultError: no such file, or it holds something else.
    """
    try:
        blocks = json.loads(read_regular(path).decode())
        for block in blocks:
            names = [box["name"] for box in block["boxes"]]
            sources = {one["from"] for box in block["boxes"] for one in box["inputs"]}
            if names[0] != "x" or not sources <= set(names) or not block["label"]:
                raise ValueError("a block without a label, or without its input x, or with an unknown input")
    except FileNotFoundError:
        raise ResultError(f"{path}: not there, expected what scripts/illustrate.py writes") from None
    except OSError as error:
        raise FileUnreadableError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ResultError(f"{path}: {error!r}, expected what scripts/illustrate.py writes") from error
    return blocks


def read_illustration_csv(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """recall_by_age.csv or capacity.csv. Raises ResultError: no such file, a column is missing, no rows."""
    try:
        rows = pd.read_csv(io.BytesIO(read_regular(path)))
    except FileNotFoundError:
        raise ResultError(f"{path}: not there, `make illustrations` computes it, in minutes") from None
    except OSError as error:
        raise FileUnreadableError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ResultError(f"{path}: {error}, expected columns {', '.join(columns)}") from error
    missing = [name for name in columns if name not in rows]
    if missing or rows.empty:
        raise ResultError(f"{path}: no {', '.join(missing) or 'rows'}, expected columns {', '.join(columns)}")
    for name in columns:
        values = rows[name]
        if name in TEXT_COLUMNS:
            wrong = bool(values.isna().any()) or (name == "rule" and not set(values) <= set(RULES))
        else:
            numeric = pd.api.types.is_numeric_dtype(values.dtype)
            # A number that is none, or beyond what an axis has, is neither.
            wrong = not numeric or not values.between(-1e9, 1e9).all()
        if wrong:
            raise ResultError(f"{path}: column {name} holds what scripts/illustrate.py does not write")
    return rows
