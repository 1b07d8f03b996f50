"""result.json of an evaluation: written here, with what it was measured on, and made into rows for tables."""

from __future__ import annotations

import datetime
import json
import math
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from palimpsa.analysis.collect.evaluation_files import COLUMNS
from palimpsa.config.text import to_cell
from palimpsa.evaluation.harness import HarnessResult
from palimpsa.evaluation.harness_tasks import AVERAGES
from palimpsa.evaluation.models.checkpoints import EvaluatedModel, settled_dtype
from palimpsa.evaluation.perplexity import Point
from palimpsa.evaluation.schema import EvaluateConfig
from palimpsa.evaluation.unfinished import plain_numbers
from palimpsa.runs.files import write_atomic

FORMAT = 1


def evaluation_result(
    config: EvaluateConfig,
    model: EvaluatedModel,
    tasks: HarnessResult,
    long_range: dict[str, list[Point]],
    documents: str | None,
    notes: list[str],
    made_by: dict[str, Any],
) -> dict[str, Any]:
    """The content of result.json.

    Args:
        config: that was asked for.
        model: that was measured.
        tasks, long_range: what was measured.
        documents: of the long-range measures.
        notes: what was replaced, and what was not measured.
        made_by: the `provenance` of this process.
    """
    settings = config.evaluation
    return {
        "format": FORMAT,
        "name": model.name,
        "label": model.label,
        "checkpoint": config.checkpoint,
        "strength": config.strength,
        "trained": asdict(model.trained),
        "num_parameters": model.num_parameters,
        "max_length": model.max_length,
        "prefix_token": model.codec.prefix_token,
        "batch_size": settings.batch_size,
        "dtype": str(settled_dtype(config.dtype, config.device)).removeprefix("torch."),
        "limit": settings.limit,
        "data": tasks.files or "hub",
        "tasks": {name: asdict(one) for name, one in tasks.tasks.items()},
        "averages": {name: {**asdict(one), "tasks": AVERAGES[name]} for name, one in tasks.averages.items()},
        "long_range": {
            "settings": {**asdict(config.long_range), "documents": documents},
            "measures": {name: [one._asdict() for one in points] for name, points in long_range.items()},
        },
        "notes": notes,
        "lm_eval": version("lm-eval"),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "provenance": made_by,
    }


def write_result(folder: Path, result: dict[str, Any]) -> Path:
    """Writes result.json, whole or not at all; a standard error that there is not is null. Raises OSError."""
    text = json.dumps(plain_numbers(result), indent=2, ensure_ascii=False, allow_nan=False)
    return write_atomic(folder / "result.json", text + "\n")


def result_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A row of evaluation.csv for each number of a result: those of `COLUMNS`."""
    provenance_of = result["provenance"]
    shared = {
        **{name: result[name] for name in ("num_parameters", "limit", "max_length", "prefix_token", "batch_size")},
        **{name: result["trained"][name] for name in ("scale", "seed", "lr", "steps", "tokens")},
        **{name: result[name] for name in ("name", "label", "dtype", "lm_eval", "date")},
        "device": provenance_of["device"],
        "git_revision": provenance_of["git_revision"],
    }
    rows = []
    for task, one in result["tasks"].items():
        data = result["data"] if isinstance(result["data"], str) else result["data"][task]["sha256"]
        for metric, measured in one["metrics"].items():
            rows.append({"measure": task, "at": "all", "metric": metric, **measured, "count": one["num_items"]})
            rows[-1]["data"] = data
    for average, measured in result["averages"].items():
        value = {name: measured[name] for name in ("value", "stderr")}
        rows.append({"measure": average, "at": "all", "metric": "acc", **value, "count": len(measured["tasks"])})
    for measure, points in result["long_range"]["measures"].items():
        for point in points:
            rows.append({"measure": measure, "metric": "nats", **point})
    return [{name: _cell({**shared, **row}.get(name)) for name in COLUMNS} for row in rows]


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return to_cell(value)
    return None if isinstance(value, float) and math.isnan(value) else value
