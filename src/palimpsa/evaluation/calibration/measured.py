"""What calibration.csv holds already: which runs need not be measured again, and whether new rows fit beside them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsa.analysis.calibration.rows import FILE, LOAD, RUN, SHARED, forget_scale, read_calibration
from palimpsa.config.errors import ConfigError
from palimpsa.evaluation.calibration.measure import Subject
from palimpsa.evaluation.calibration.schema import CalibrationConfig


class Measured:
    """The runs in calibration.csv.

    Args:
        folder: of calibration.csv, which need not be there.
        settings, made_by: how, and by what `provenance`, rows are measured now.
        scales: of the runs to be measured: their rows are of one revision, one device and one way of measuring.
        fresh: forget those of these scales that are not.

    Raises:
        ConfigError: there are such rows, and `fresh` is false.
        ResultError, OSError: the files there cannot be read, or written.
    """

    def __init__(
        self,
        folder: Path,
        settings: CalibrationConfig,
        made_by: dict[str, Any],
        scales: Iterable[str],
        *,
        fresh: bool,
    ) -> None:
        now = {
            **{name: getattr(settings, name) for name in ("num_examples", "num_bins")},
            **{name: made_by[name] for name in ("device", "git_revision")},
        }
        assert set(now) == set(SHARED)
        rows = read_calibration(folder)
        for scale in sorted(scales):
            other = _first_difference(rows.loc[rows["scale"] == scale], now)
            if other is None:
                continue
            if not fresh:
                name, then = other
                raise ConfigError(
                    f"{folder / FILE}: {name} of scale {scale} is {then} there and {now[name]} now, expected the "
                    "same; fresh=true measures all of the scale again, results_dir= goes elsewhere"
                )
            forget_scale(folder, scale)
        self._rows = read_calibration(folder)

    def has(self, subject: Subject) -> bool:
        """Whether this run was measured at this step of its training and at these loads."""
        own = self._rows.loc[(self._rows[list(RUN)] == list(subject.key)).all(axis=1)]
        same = own["config_hash"].eq(subject.run["config_hash"]) & own["steps"].eq(subject.run["steps"])
        loads = set(own[list(LOAD)].itertuples(index=False, name=None))
        return len(own) > 0 and bool(same.all()) and loads == set(subject.loads)


def _first_difference(rows: pd.DataFrame, now: dict[str, Any]) -> tuple[str, Any] | None:
    for name, value in now.items():
        for then in rows[name].drop_duplicates():
            then = None if pd.isna(then) else then
            if then != value:
                return name, then
    return None
