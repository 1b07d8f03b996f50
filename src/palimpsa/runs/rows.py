"""What figures are made of in a result: its rows of runs.csv, and what it says of the curves beside it; all checked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsa.config.text import one_line
from palimpsa.runs.identity import protocol_hash
from palimpsa.runs.schema import Block, ResultError, shorten


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
        "task": run.get("task", "name"),
        "scale": run.get("scale", "name"),
        "model": run.get("model", "name"),
        "lr": float(run.get("lr", "positive")),
        "seed": run.get("seed", "count"),
        "run_seq_len": task.get("seq_len", "count", optional=True) or 0,
        "label": _one_line(run.get("label", "text")),
        "status": top.get("status", "status"),
        "error": _one_line(top.get("error", "words", optional=True)),
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


@dataclass(frozen=True)
class HistoryFacts:
    """What a result says of the history.csv beside it; None in results of formats that do not.

    num_rows: without the header; sha256: of its bytes, in hexadecimal digits.
    """

    num_rows: int | None
    sha256: str | None

    def check(self, path: Path, content: bytes) -> None:
        """Raises ResultError where a file holds other curves."""
        num_rows = max(content.count(b"\n") - 1, 0)
        if self.num_rows is not None and (num_rows != self.num_rows or not content.endswith(b"\n")):
            raise ResultError(f"{path}: got {num_rows} whole rows, expected the {self.num_rows} that its result counts")
        if self.sha256 is not None and hashlib.sha256(content).hexdigest() != self.sha256:
            raise ResultError(f"{path}: got other bytes than those that its result has the sha256 of")


def history_of(path: Path, result: dict[str, Any]) -> HistoryFacts:
    """What a result says of its run's history.csv. Raises ResultError, naming `path`, for values of another kind."""
    metrics = Block(path, "metrics.", Block(path, "", result).get("metrics", "object", optional=True) or {})
    return HistoryFacts(
        metrics.get("history_rows", "count", optional=True), metrics.get("history_sha256", "text", optional=True)
    )


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


def _one_line(text: str | None) -> str | None:
    return None if text is None else one_line(text)
