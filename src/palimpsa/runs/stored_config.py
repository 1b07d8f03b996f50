"""config.json of a run, for those who want to know what was trained: checked, so that no key is missing later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palimpsa.config.errors import RunDirectoryError
from palimpsa.runs.identity import upgraded
from palimpsa.runs.result import read_json_object
from palimpsa.runs.schema import Block, ResultError


def read_stored_config(path: Path) -> dict[str, Any]:
    """The plain config of a run, whatever it was trained on, with each key of an older tree where it is today.

    Checked are what the run is called, its rate and seed, and of one that trains on text its data and its context. The
    keys of the model are those of its checkpoint.

    Raises:
        RunDirectoryError: naming the file and the key, for a config that lacks one or has a value that no run can have.
    """
    try:
        config = upgraded(read_json_object(path, "expected a run's config"))
        _check(Block(path, "", config))
    except ResultError as error:
        raise RunDirectoryError(str(error)) from error
    return config


def _check(top: Block) -> None:
    top.get("seed", "count")
    top.get("variant", "string")
    top.block("scale").get("name", "name")
    top.block("optimizer").get("lr", "positive")
    model = top.block("model")
    model.get("name", "name")
    model.get("label", "text")
    task = top.block("task")
    task.get("name", "name")
    task.get("tokens_per_step", "count")
    # Runs of the first kind of task came before the key.
    if task.get("kind", "string", optional=True) == "commonsense":
        task.get("data", "string")
        task.get("context", "count")
        task.get("train_digest", "text", optional=True)
