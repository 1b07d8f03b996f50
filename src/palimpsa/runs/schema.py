"""What the result files hold: the columns of the CSV files, and what a value of a result.json may be."""

import json
import math
from pathlib import Path
from typing import Any

# Of result.json. 1 had keys of the config where they were then, and no status for a run that diverged.
RESULT_FORMAT = 2

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

_KINDS = {
    "text": "a non-empty string",
    "string": "a string",
    "status": '"finished", "failed" or "diverged"',
    "count": "an integer >= 0",
    "number": "a finite number",
    "positive": "a number > 0",
    "accuracy": "a number from 0 to 1",
    "accuracies": "a list of numbers from 0 to 1 or null",
    "bool": "true or false",
    "list": "a list",
    "object": "an object",
}


class ResultError(ValueError):
    """A result file that is missing, cut short, of another format or at odds with another one."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def matches(value: Any, kind: str) -> bool:
    match kind:
        case "text":
            return isinstance(value, str) and bool(value.strip())
        case "string":
            return isinstance(value, str)
        case "status":
            return value in (FINISHED, FAILED, DIVERGED)
        case "count":
            return isinstance(value, int) and not isinstance(value, bool) and value >= 0
        case "number":
            return _is_number(value) and abs(value) < math.inf
        case "positive":
            return _is_number(value) and 0 < value < math.inf
        case "accuracy":
            return _is_number(value) and 0 <= value <= 1
        case "accuracies":
            return isinstance(value, list) and all(item is None or matches(item, "accuracy") for item in value)
        case "bool":
            return isinstance(value, bool)
        case "list":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
    raise AssertionError(kind)


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
            raise ResultError(f"{self.path}: {self.where}{key} is {found}, expected {_KINDS[kind]}")
        return value

    def block(self, key: str) -> "Block":
        return Block(self.path, f"{self.where}{key}.", self.get(key, "object"))


def shorten(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
