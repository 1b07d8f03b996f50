"""Which part of the learning curves curves.csv holds: what Figure 3 shows, at a few steps of each run.

Of the runs: those that Figure 3 shows, finished ones at each model's chosen learning rate (`finished_curves`).

Of a run: the probes of its memory (windows and ratios of all heads), and the losses, that straight lines need to follow
the full curve. First, last, least and greatest are kept, then again and again the record that lies farthest from the
lines between those kept, until every other one is nearer than a tolerance, or MAX_RECORDS are kept. A distance is a
share of the run's range, of windows and of ratios apart, and its root mean square over the heads; both are drawn on
logarithmic axes, and so it is that of log10(1 + x). Where a probe is kept, so is the loss at its step. Numbers are
rounded first.

So thinning a thinned curve changes nothing, and the rows of a run do not depend on what it is collected with. Where
more runs move a model's choice to another rate, the curves of that rate come from its run directories again.
"""

import numpy as np
import pandas as pd

from palimpsa.analysis.statistics.learning_curves import finished_curves
from palimpsa.analysis.statistics.learning_rate import choose_learning_rates
from palimpsa.runs.read import head_columns
from palimpsa.runs.schema import CURVE_COLUMNS, RUN_KEY

MAX_RECORDS = 100
# Significant digits, and shares of the range of a run.
PROBE_DIGITS, PROBE_TOLERANCE = 3, 0.02
LOSS_DIGITS, LOSS_TOLERANCE = 4, 0.005


def thin_curves(runs: pd.DataFrame, curves: pd.DataFrame) -> pd.DataFrame:
    """The rows and numbers of `curves` that curves.csv holds; its columns, but for heads that no kept run has.

    Args:
        runs, curves: of runs.csv and curves.csv, of any tasks and scales.
    """
    kept = []
    for task, scale in sorted(set(zip(runs["task"], runs["scale"], strict=True))):
        rows, own = (frame.loc[(frame["task"] == task) & (frame["scale"] == scale)] for frame in (runs, curves))
        shown = finished_curves(rows, own, choose_learning_rates(rows))
        kept += [_thin_run(run) for _, run in shown.sort_values([*RUN_KEY, "step"]).groupby(RUN_KEY)]
    if not kept:
        return curves.iloc[:0].loc[:, list(CURVE_COLUMNS)]
    thinned = pd.concat(kept, ignore_index=True)
    heads = head_columns(thinned.dropna(axis="columns", how="all"))
    return thinned.loc[:, [*CURVE_COLUMNS, *heads]].sort_values([*RUN_KEY, "step"], ignore_index=True)


def _thin_run(run: pd.DataFrame) -> pd.DataFrame:
    """The kept records of one run's rows, which are sorted by step."""
    heads = head_columns(run)
    windows = ["window_mean", *(name for name in heads if name.startswith("window/"))]
    ratios = ["metaplasticity_mean", *(name for name in heads if not name.startswith("window/"))]
    values = {name: _round(run[name].to_numpy(dtype=float), PROBE_DIGITS) for name in (*windows, *ratios)}
    values["loss"] = _round(run["loss"].to_numpy(dtype=float), LOSS_DIGITS)
    steps = run["step"].to_numpy(dtype=float)
    probes = [np.log10(1 + np.maximum([values[name] for name in names], 0)).T for names in (windows, ratios)]
    keep_probe = _choose(steps, probes, PROBE_TOLERANCE, np.zeros(len(run), dtype=bool))
    keep_loss = _choose(steps, [values["loss"][:, None]], LOSS_TOLERANCE, keep_probe)
    kept = {name: np.where(keep_loss if name == "loss" else keep_probe, own, np.nan) for name, own in values.items()}
    return run.assign(**kept).loc[keep_probe | keep_loss]


def _choose(steps: np.ndarray, groups: list[np.ndarray], tolerance: float, first_choice: np.ndarray) -> np.ndarray:
    """Which records to keep of those that have any value.

    Args:
        steps: [n], increasing.
        groups: [n, m] each, values that share a range; what is not finite was not recorded.
        tolerance: the distance from the lines that a record left out may have.
        first_choice: [n] bool, records to keep whatever their distance.

    Returns [n] bool.
    """
    groups = [np.where(np.isfinite(group), group, np.nan) for group in groups]
    groups = [group for group in groups if not np.isnan(group).all()]
    if not groups:
        return np.zeros(len(steps), dtype=bool)
    recorded = ~np.isnan(np.concatenate(groups, axis=1)).all(axis=1)
    chosen = first_choice & recorded
    chosen[np.flatnonzero(recorded)[[0, -1]]] = True
    for group in groups:
        for extreme in (np.nanargmin(group), np.nanargmax(group)):
            # The range of what is kept is the range of all.
            chosen[extreme // group.shape[1]] = True
    ranges = [np.nanmax(group) - np.nanmin(group) for group in groups]
    scaled = np.concatenate([group / (size or 1.0) for group, size in zip(groups, ranges, strict=True)], axis=1)
    scaled = scaled[:, ~np.isnan(scaled).all(axis=0)]
    while chosen.sum() < min(recorded.sum(), MAX_RECORDS):
        distances = np.full(len(steps), -1.0)
        distances[recorded] = _distances_to_lines(steps[recorded], scaled[recorded], chosen[recorded])
        distances[chosen] = -1.0
        farthest = distances.argmax()
        if distances[farthest] <= tolerance:
            break
        chosen[farthest] = True
    return chosen


def _distances_to_lines(steps: np.ndarray, values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """How far each record is from the straight lines between the chosen ones: root mean square over the columns.

    0 in a column whose record, or one of the line's ends, is missing.
    """
    ends = np.flatnonzero(chosen)
    right = np.clip(np.searchsorted(ends, np.arange(len(steps))), 1, len(ends) - 1)
    low, high = ends[right - 1], ends[right]
    weight = ((steps - steps[low]) / (steps[high] - steps[low]))[:, None]
    lines = (1 - weight) * values[low] + weight * values[high]
    return np.sqrt(np.mean(np.nan_to_num(values - lines) ** 2, axis=1))


def _round(values: np.ndarray, digits: int) -> np.ndarray:
    """Each number to so many significant digits; what is not finite stays as it is."""
    return np.array([float(f"{value:.{digits}g}") for value in values])
