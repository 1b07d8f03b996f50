"""What the result files hold: the columns of the CSV files, and what a value of a result.json may be."""

import json
import sys
from pathlib import Path
from typing import Any

from palimpsa.config.keys import FILE_NAME_TEXT, is_file_name
from palimpsa.config.text import is_line

# Of result.json. 1 had keys of the config where they were then, and no status for a run that diverged; 2 had no
# checksum.
RESULT_FORMAT = 3
# Its key of the checksum of all others.
CHECKSUM = "sha256"

# How a run ended. Diverged: its own numbers were the reason, and would be again.
FINISHED = "finished"
FAILED = "failed"
DIVERGED = "diverged"

# What tells two runs apart. run_seq_len (config.task.seq_len, tokens) is the length of a protocol
# that trains one run a length, and 0 for a run that walks through several (a curriculum).
RUN_KEY = ["task", "scale", "model", "lr", "seed", "run_seq_len"]

# runs.csv, one row a run and stage: column -> dtype. Units: steps and wall_time_s as named;
# accuracies are fractions of the query positions; losses in nats; state_size in recurrent floats a
# layer and sequence. config_hash: of all that a run computes; protocol_hash: of what the runs of one
# figure share (`identity.protocol_hash`).
RUN_COLUMNS = {
    "task": "str",
    "scale": "str",
    "model": "str",
    "lr": "float64",
    "seed": "int64",
    "run_seq_len": "int64",
    "label": "str",
    "status": "str",
    "error": "str",
    "stage": "Int64",
    "seq_len": "Int64",
    "num_pairs": "Int64",
    "steps": "Int64",
    "ended_by": "str",
    "plateau_exit_step": "Int64",
    "validation_accuracy": "float64",
    "test_accuracy": "float64",
    "test_accuracy_by_age": "str",
    "test_loss": "float64",
    "state_size": "Int64",
    "num_parameters": "Int64",
    "vocab_size": "Int64",
    "config_hash": "str",
    "protocol_hash": "str",
    "git_revision": "str",
    "git_dirty": "str",
    "versions": "str",
    "device": "str",
    "started": "str",
    "wall_time_s": "float64",
    "command": "str",
}

# What a cell of these may be; the others are read by people alone.
CELL_KINDS = {
    "task": "name",
    "scale": "name",
    "model": "name",
    "lr": "positive",
    "seed": "count",
    "run_seq_len": "count",
    "label": "text",
    "status": "status",
    "stage": "count",
    "seq_len": "count",
    "num_pairs": "count",
    "steps": "count",
    "step": "count",
    "ended_by": "text",
    "plateau_exit_step": "count",
    "validation_accuracy": "accuracy",
    "test_accuracy": "accuracy",
    "test_accuracy_by_age": "accuracies_text",
    "test_loss": "number",
    "state_size": "count",
    "num_parameters": "count",
    "vocab_size": "count",
    "protocol_hash": "text",
    "wall_time_s": "number",
    "num_gpus": "count",
    "held_s": "number",
    "num_finished": "count",
}
# Of them, those that may be empty.
OPTIONAL_COLUMNS = {
    "stage",
    "seq_len",
    "num_pairs",
    "steps",
    "ended_by",
    "plateau_exit_step",
    "validation_accuracy",
    "test_accuracy",
    "test_accuracy_by_age",
    "test_loss",
    "state_size",
    "num_parameters",
    "vocab_size",
    "wall_time_s",
}

# curves.csv, one row a run and logged step; window/layer<i>/head<j> and
# metaplasticity/layer<i>/head<j> may follow.
CURVE_COLUMNS = {name: RUN_COLUMNS[name] for name in RUN_KEY} | {
    "step": "int64",
    "stage": "Int64",
    "loss": "float64",
    "window_mean": "float64",
    "metaplasticity_mean": "float64",
}
SESSION_COLUMNS = {
    "started": "str",  # ISO 8601
    "device": "str",
    "num_gpus": "int64",
    "held_s": "float64",  # from the asking for the machine until it is given back
    "git_revision": "str",
    "num_finished": "int64",  # runs
    "what": "str",
}
HEAD_PREFIXES = ("window/", "metaplasticity/")

KINDS = {
    "text": "a non-empty string, without control characters",
    "words": "a non-empty string",
    "string": "a string",
    "name": FILE_NAME_TEXT,
    "status": '"finished", "failed" or "diverged"',
    "count": "an integer >= 0, of 64 bits",
    "number": "a finite number",
    "positive": "a number > 0",
    "accuracy": "a number from 0 to 1",
    "accuracies": "a list of numbers from 0 to 1 or null",
    "accuracies_text": "numbers from 0 to 1, or nothing, between semicolons",
    "bool": "true or false",
    "list": "a list",
    "object": "an object",
}


class ResultError(ValueError):
    """A result file that is missing, cut short, of another format or at odds with another one."""


class FileUnreadableError(ResultError):
    """A file that the system does not let anybody read, for want of rights say: what is in it may be right."""


def _is_number(value: Any) -> bool:
    # Also an integer that a float has no place for is none.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def matches(value: Any, kind: str) -> bool:
    match kind:
        case "words":
            return isinstance(value, str) and bool(value.strip())
        case "text":
            return isinstance(value, str) and is_line(value)
        case "string":
            return isinstance(value, str)
        case "status":
            return isinstance(value, str) and value in (FINISHED, FAILED, DIVERGED)
        case "name":
            return is_file_name(value)
        case "count":
            return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
        case "number":
            return _is_number(value)
        case "positive":
            return _is_number(value) and value > 0
        case "accuracy":
            return _is_number(value) and 0 <= value <= 1
        case "accuracies":
            return isinstance(value, list) and all(item is None or matches(item, "accuracy") for item in value)
        case "accuracies_text":
            return isinstance(value, str) and all(map(_is_accuracy_or_empty, value.split(";")))
        case "bool":
            return isinstance(value, bool)
        case "list":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
    raise AssertionError(kind)


def _is_accuracy_or_empty(text: str) -> bool:
    try:
        return not text or 0 <= float(text) <= 1
    except ValueError:
        return False


_MISSING = object()


class Block:
    """One object of a result.json, and where it stands, so that a wrong value can be named."""

    def __init__(self, path: Path, where: str, values: dict[str, Any]) -> None:
        self.path, self.where, self.values = path, where, values

    def get(self, key: str, kind: str, *, optional: bool = False) -> Any:
        value = self.values.get(key, _MISSING)
        if optional and (value is None or value is _MISSING):
            return None
        if value is _MISSING or not matches(value, kind):
            found = "missing" if value is _MISSING else f"{shorten(value)}"
            raise ResultError(f"{self.path}: {self.where}{key} is {found}, expected {KINDS[kind]}")
        return value

    def block(self, key: str) -> "Block":
        return Block(self.path, f"{self.where}{key}.", self.get(key, "object"))


def shorten(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
