"""result.json, the last act of a run: made here, and read here by whoever asks what a run came to."""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path
from typing import Any

from palimpsa.config.schema import TrainConfig, plain
from palimpsa.runs.identity import config_hash, upgraded
from palimpsa.runs.provenance import provenance
from palimpsa.runs.schema import DIVERGED, FAILED, RESULT_FORMAT, ResultError, shorten


def status_of(error: BaseException) -> str:
    """How a run ended that an error ended."""
    return DIVERGED if isinstance(error, FloatingPointError) else FAILED


def run_result(
    config: TrainConfig,
    status: str,
    error: str | None,
    stages: list[dict[str, Any]],
    summary: dict[str, Any],
    started: datetime.datetime,
    clock: float,
) -> dict[str, Any]:
    """The content of result.json: run, stages, metrics, config, provenance.

    Args:
        config: of the run.
        status: FINISHED, FAILED or DIVERGED.
        error: what ended it, None where it finished.
        stages: a dictionary for each stage that ended.
        summary: what else there is to say: state_size and num_parameters go to `run`, a traceback stands alone, the
            others are metrics.
        started, clock: the time and `time.perf_counter()` at the beginning of the run's last session.
    """
    stored = plain(config)
    return {
        "format": RESULT_FORMAT,
        "status": status,
        "error": error,
        "run": {
            "task": config.task.name,
            "scale": config.scale.name,
            "model": f"{config.model.name}{config.variant}",
            "label": f"{config.model.label}{config.variant.replace('_', ' ')}",
            "lr": config.optimizer.lr,
            "seed": config.seed,
            "state_size": summary.get("state_size"),
            "num_parameters": summary.get("num_parameters"),
        },
        "stages": stages,
        "metrics": {k: v for k, v in summary.items() if k not in ("state_size", "num_parameters", "traceback")},
        **({"traceback": summary["traceback"]} if "traceback" in summary else {}),
        "config": stored,
        "config_hash": config_hash(stored),
        "provenance": {
            **provenance(config.trainer.accelerator),
            "started": started.isoformat(timespec="seconds"),
            "wall_time_s": round(time.perf_counter() - clock, 2),
        },
    }


def read_result(path: Path) -> dict[str, Any]:
    """A result.json as its dictionary, checked for `format` only; one of an older format as this one has it.

    Raises:
        ResultError: in one line that names the file, what was found and what was expected.
    """
    expected = f"expected a complete result of format {RESULT_FORMAT}"
    result = read_json_object(path, expected)
    if result.get("format") == 1:
        return _from_format_1(result)
    if result.get("format") != RESULT_FORMAT:
        found = shorten(result["format"]) if "format" in result else "missing"
        raise ResultError(f"{path}: format is {found}, {expected}")
    return result


def read_json_object(path: Path, expected: str) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        expected: "expected ...", the end of an error.

    Raises:
        ResultError: for a file that is cut short or holds something else; NaN and Infinity, which Python would read but
            JSON does not have, are errors too.
    """

    def reject(constant: str) -> None:
        raise ResultError(f"{path}: holds {constant}, which is not JSON, {expected} (null where there is no number)")

    try:
        content = path.read_bytes()
    except OSError as error:
        raise ResultError(f"{path}: cannot be read ({error.strerror}), {expected}") from None
    try:
        found = json.loads(content, parse_constant=reject)
    except ResultError:
        raise
    except ValueError as error:
        raise ResultError(f"{path}: got {len(content)} bytes that are not JSON ({error}), {expected}") from None
    if not isinstance(found, dict):
        raise ResultError(f"{path}: got {shorten(found)}, {expected}")
    return found


def _from_format_1(result: dict[str, Any]) -> dict[str, Any]:
    """The config's keys have moved since, and with them its hash; a diverged run was a failed one."""
    new = {**result, "format": RESULT_FORMAT}
    if result.get("status") == FAILED and str(result.get("error")).startswith(FloatingPointError.__name__):
        new["status"] = DIVERGED
    if isinstance(result.get("config"), dict):
        new["config"] = upgraded(result["config"])
        new["config_hash"] = config_hash(new["config"])
    return new
