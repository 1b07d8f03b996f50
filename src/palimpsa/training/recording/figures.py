"""The figures and tables of a results folder as a W&B run of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from palimpsa.config.keys import convert
from palimpsa.config.schema import LoggerConfig
from palimpsa.training.loggers import close_loggers, make_loggers
from palimpsa.training.recording.artifacts import FIGURES, artifact_name, record_figures


def record_results(logger: Mapping[str, Any], folder: Path) -> list[str]:
    """Records what a results folder shows, where the runs' logger wants artifacts; the same folder is the same run.

    Args:
        logger: the `logger` group of the runs, as plain values.
        folder: with figures, tables and their CSV files; W&B's own offline files go below it.

    Returns:
        the names of the files; none where nothing is to be recorded.
    """
    config: LoggerConfig = convert(LoggerConfig, logger, "logger.")
    if not config.artifacts:
        return []
    # Among the runs it would be the group of the first.
    name, config = artifact_name(FIGURES, folder.name), replace(config, group=None)
    loggers: list[Any] = make_loggers(config, run_dir=folder, name=name, run_id=name, run_config={}, job_type=FIGURES)
    try:
        return [file for one in loggers for file in record_figures(one.experiment, folder)]
    finally:
        close_loggers(loggers)
