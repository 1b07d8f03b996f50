"""The schema of configs/calibrate.yaml: every key, its range and its unit; and a command line as such a config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsa.config.checks import check_ranges, check_writable
from palimpsa.config.compose import compose_values
from palimpsa.config.errors import ConfigError
from palimpsa.config.keys import convert, key

CONFIG_NAME = "calibrate"
# What of a command line is not of scripts/train.py, beside results_dir, which is of both.
OWN_KEYS = ("calibration.", "fresh=", "device=")


@dataclass
class CalibrationConfig:
    """How variances and errors are compared.

    Args:
        num_examples: sequences of the test split, of each load.
        batch_size: sequences at a time; no number depends on it but for rounding.
        num_bins: of a reliability diagram.
        loads: [length, pairs] each; null: the stages of the run's own task that are tested.
    """

    num_examples: int = key(minimum=2, unit="sequences")
    batch_size: int = key(minimum=1, unit="sequences")
    num_bins: int = key(minimum=2, maximum=1_000)
    loads: Any = key(None)


@dataclass
class CalibrateConfig:
    """configs/calibrate.yaml.

    Args:
        device: auto is the GPU, where there is one.
        fresh: forget the rows of the scales that are measured, where they are of another revision or other settings.
        results_dir: calibration.csv, reliability.csv and what is drawn of them are made in it; of `train` the runs too.
    """

    device: str = key(choices=("auto", "cpu", "cuda"))
    fresh: bool = key()
    results_dir: str = key()
    calibration: CalibrationConfig = key(factory=CalibrationConfig)


def load(overrides: Sequence[str]) -> CalibrateConfig:
    """A command line's config, composed and checked.

    Raises:
        ConfigError: in one line, naming the key, what came and what was expected.
    """
    config: CalibrateConfig = convert(CalibrateConfig, compose_values(overrides, CONFIG_NAME))
    check_ranges(config)
    loads = config.calibration.loads
    if loads is not None and not (isinstance(loads, list) and loads and all(map(_is_load, loads))):
        raise ConfigError(f"calibration.loads: got {loads!r}, expected null or a list of [length, pairs]")
    if loads is not None and any(loads.count(one) > 1 for one in loads):
        raise ConfigError(f"calibration.loads: got {loads!r}, expected each load once")
    if not config.results_dir or "\0" in config.results_dir:
        raise ConfigError(f"results_dir: got {config.results_dir!r}, expected a directory")
    check_writable(config.results_dir, Path(config.results_dir))
    return config


def _is_load(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(one) is int and one > 0 for one in value)
