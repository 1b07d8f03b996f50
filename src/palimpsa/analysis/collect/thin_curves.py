"""Which part of the learning curves curves.csv holds: what Figure 3 shows, at a few steps of each run.

Of the runs: those that Figure 3 shows, finished ones at each model's chosen learning rate (`finished_curves`).

Of a run: NUM_PROBES of its probes of the memory (windows and ratios, of all heads), and NUM_LOSSES of its losses, those
at the kept probes among them. They are chosen so that straight lines between them follow the full curve: the first and
the last, then again and again the record that lies farthest from these lines. Windows and ratios are drawn on
logarithmic axes, and so their distance is that of log10(1 + x), summed over all heads. A curve that has no more records
than that is kept whole, so that thinning a thinned curve changes nothing, and a run's rows do not depend on what it is
collected with. Numbers are rounded: to PROBE_DIGITS and LOSS_DIGITS significant digits.

Where more runs move a model's choice to another rate, the curves of that rate come from its run directories again.
"""

import numpy as np
import pandas as pd

from palimpsa.analysis.statistics.learning_curves import finished_curves
from palimpsa.analysis.statistics.learning_rate import choose_learning_rates
from palimpsa.runs.read import head_columns
from palimpsa.runs.schema import CURVE_COLUMNS, RUN_KEY

NUM_PROBES, PROBE_DIGITS = 25, 3
NUM_LOSSES, LOSS_DIGITS = 48, 4


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
    """The kept records of one run's rows, sorted by step."""
    memory = ["window_mean", "metaplasticity_mean", *head_columns(run)]
    steps = run["step"].to_numpy(dtype=float)
    probes, losses = run[memory].to_numpy(dtype=float), run[["loss"]].to_numpy(dtype=float)
    no_record = np.zeros(len(run), dtype=bool)
    keep_probe = _choose(steps, np.log10(1 + np.maximum(probes, 0)), NUM_PROBES, no_record)
    keep_loss = _choose(steps, losses, NUM_LOSSES, keep_probe)
    probes = np.where(keep_probe[:, None], _round(probes, PROBE_DIGITS), np.nan)
    losses = np.where(keep_loss, _round(losses[:, 0], LOSS_DIGITS), np.nan)
    thinned = run.assign(loss=losses, **dict(zip(memory, probes.T, strict=True)))
    return thinned.loc[keep_probe | keep_loss]


def _choose(steps: np.ndarray, values: np.ndarray, number: int, first_choice: np.ndarray) -> np.ndarray:
    """Which records to keep: at most `number` of those that have any value.

    Args:
        steps: [n], increasing. values: [n, m], NaN for what was not recorded. first_choice: [n] bool, taken before
            others. Returns [n] bool.
    """
    values = np.where(np.isfinite(values), values, np.nan)
    recorded = np.flatnonzero(~np.isnan(values).all(axis=1))
    chosen = np.zeros(len(steps), dtype=bool)
    if len(recorded) <= number:
        chosen[recorded] = True
        return chosen
    chosen[recorded[[0, -1]]] = True
    chosen[recorded] |= first_choice[recorded]
    while chosen.sum() < number:
        errors = _distance_to_lines(steps[recorded], values[recorded], chosen[recorded])
        chosen[recorded[errors.argmax()]] = True
    return chosen


def _distance_to_lines(steps: np.ndarray, values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Squared distance of each record from the straight lines between the chosen ones, summed over the columns.

    -1 for the chosen ones, so that none is chosen twice.
    """
    ends = np.flatnonzero(chosen)
    right = np.clip(np.searchsorted(ends, np.arange(len(steps))), 1, len(ends) - 1)
    low, high = ends[right - 1], ends[right]
    weight = ((steps - steps[low]) / (steps[high] - steps[low]))[:, None]
    lines = (1 - weight) * values[low] + weight * values[high]
    return np.where(chosen, -1.0, np.nansum((values - lines) ** 2, axis=1))


def _round(values: np.ndarray, digits: int) -> np.ndarray:
    """Each number to so many significant digits; what is not finite stays as it is."""
    return np.array([float(f"{value:.{digits}g}") for value in values.flat]).reshape(values.shape)
