"""What result.json holds: the last act of a run."""

from __future__ import annotations

import datetime
import time
from typing import Any

from omegaconf import DictConfig

from palimpsa.runs.directory import RESULT_FORMAT, config_hash
from palimpsa.runs.provenance import provenance


def run_result(
    cfg: DictConfig,
    config: dict[str, Any],
    status: str,
    error: str | None,
    stages: list[dict[str, Any]],
    summary: dict[str, Any],
    started: datetime.datetime,
    clock: float,
) -> dict[str, Any]:
    """The content of result.json: run, stages, metrics, config, provenance (times are of the last session of a run)."""
    return {
        "format": RESULT_FORMAT,
        "status": status,
        "error": error,
        "run": {
            "task": cfg.task.name,
            "scale": cfg.scale.name,
            "model": f"{cfg.model.name}{cfg.variant}",
            "label": f"{cfg.model.label}{cfg.variant.replace('_', ' ')}",
            "lr": cfg.optimizer.lr,
            "seed": cfg.seed,
            "state_size": summary.get("state_size"),
            "num_parameters": summary.get("num_parameters"),
        },
        "stages": stages,
        "metrics": {k: v for k, v in summary.items() if k not in ("state_size", "num_parameters", "traceback")},
        **({"traceback": summary["traceback"]} if "traceback" in summary else {}),
        "config": config,
        "config_hash": config_hash(config),
        "provenance": {
            **provenance(cfg.trainer.accelerator),
            "started": started.isoformat(timespec="seconds"),
            "wall_time_s": round(time.perf_counter() - clock, 2),
        },
    }
