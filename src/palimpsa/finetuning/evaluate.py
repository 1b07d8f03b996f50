"""The long-range measures of a run, kept beside it: measured once, whoever asks, as long as they are of the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from palimpsa.config.errors import RunDirectoryError
from palimpsa.evaluation.long_range import LongRange
from palimpsa.evaluation.models.checkpoints import load_evaluated
from palimpsa.evaluation.models.scoring import Scorer
from palimpsa.evaluation.schema import load
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.files import write_atomic
from palimpsa.runs.result import read_json_object, read_result

FILE = "long_range.json"


def evaluated(directory: Path, overrides: Sequence[str], report: Callable[[str], None]) -> dict[str, Any]:
    """What `scripts/evaluate.py` measures of a finished run.

    Args:
        overrides: its command line, without the checkpoint and with no tasks.
        report: told that it is measured now.

    Returns:
        points: rows with measure, at, value, stderr and count; documents: mean nats a token of each document; notes.

    Raises:
        ConfigError, RunDirectoryError, ResultError: see `load_evaluated` and `LongRange`.
    """
    file = directory / FILE
    of = {"overrides": list(overrides), "run": read_result(RunDirectory(directory).result_file)["config_hash"]}
    if file.exists():
        kept = read_json_object(file, "expected what scripts/demonstrate.py has measured of a run")
        if kept.get("of") == of:
            return kept
    report(f"evaluating {directory}")
    config = load([*overrides, "evaluation.tasks=[]", f"checkpoint='{directory}'"])
    model = load_evaluated(config)
    measures = LongRange(model, Scorer(model.network, config.evaluation.batch_size), config.long_range)
    points = [
        {"measure": name, **{key: _or_none(value) for key, value in point._asdict().items()}}
        for name, found in measures.run(None).items()
        for point in found
    ]
    if not points:
        raise RunDirectoryError(f"{directory}: nothing was measured: {'; '.join(measures.notes)}")
    documents = measures.document_losses().mean(axis=1).tolist()
    content = {"of": of, "points": points, "documents": documents, "notes": measures.notes}
    write_atomic(file, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return content


def _or_none(value: Any) -> Any:
    # JSON knows no number that is none.
    return None if value != value else value
