"""Learning curves of several seeds as one mean curve, when the seeds do not all train as long."""

import numpy as np
import pandas as pd

from palimpsa.analysis.statistics.learning_rate import at_chosen_rates
from palimpsa.runs.schema import RUN_KEY

MAX_POINTS = 500


def finished_curves(rows: pd.DataFrame, curves: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """The rows of curves.csv that Figure 3 shows: finished runs at each model's chosen rate.

    Where one run trains one length, those of the greatest length.

    Args:
        rows, curves: rows of runs.csv and curves.csv of one task and scale.
        chosen: `learning_rate.choose_learning_rates(rows)`.
    """
    finished = rows.loc[rows["status"] == "finished", RUN_KEY].drop_duplicates()
    shown = at_chosen_rates(curves.merge(finished, on=RUN_KEY), chosen)
    return shown.loc[shown["run_seq_len"] == shown["run_seq_len"].max()]


def mean_curve(own: pd.DataFrame, column: str, *, geometric: bool = False) -> pd.DataFrame:
    """Mean over the seeds of one model and +-1 standard deviation around it, by training step.

    At every step at which any seed logged `column`, the mean is over the seeds *still training*: a
    seed's curve is interpolated linearly between its own records and ends with the last. Rows with
    fewer than half of the seeds, or with one seed of several, are left out: what remains there are
    the slow seeds, not the model.

    Args:
        own: rows of curves.csv of one model at one learning rate.
        column: for example "loss". Cells that are not finite were not recorded.
        geometric: of the logarithms, for numbers that differ by orders of magnitude: an arithmetic
            mean of those is the largest, divided by their number. A column with a 0 in it, such as the
            ratio of a model without metaplasticity, has the arithmetic mean all the same.

    Returns step, mean, low and high (mean -+ std of ddof 1; NaN for one seed) and num_seeds, at most
    MAX_POINTS rows; empty when no seed recorded the column.
    """
    seeds, steps, values = (own[name].to_numpy(dtype=float) for name in ("seed", "step", column))
    recorded = np.isfinite(values)
    seeds, steps, values = seeds[recorded], steps[recorded], values[recorded]
    geometric = geometric and bool((values > 0).all())
    if geometric:
        values = np.log(values)
    grid = np.unique(steps)
    # Every k-th step: figures of long runs should stay small.
    grid = grid[:: max(1, -(-len(grid) // MAX_POINTS))]
    order = np.lexsort((steps, seeds))
    starts = np.unique(seeds[order], return_index=True)[1]
    by_seed = np.full((len(starts), len(grid)), np.nan)
    # Without the empty part before the first seed.
    for row, own_rows in zip(by_seed, np.split(order, starts)[1:], strict=True):
        row[:] = np.interp(grid, steps[own_rows], values[own_rows], left=np.nan, right=np.nan)
    num_seeds = np.isfinite(by_seed).sum(axis=0)
    mean = np.nansum(by_seed, axis=0) / np.maximum(num_seeds, 1)
    squares = np.nansum((by_seed - mean) ** 2, axis=0)
    std = np.sqrt(np.where(num_seeds > 1, squares / np.maximum(num_seeds - 1, 1), np.nan))
    columns = {"mean": mean, "low": mean - std, "high": mean + std}
    if geometric:
        columns = {name: np.exp(values) for name, values in columns.items()}
    curve = pd.DataFrame({"step": grid, **columns, "num_seeds": num_seeds})
    enough = max(-(-len(by_seed) // 2), min(2, len(by_seed)))
    return curve.loc[curve["num_seeds"] >= max(1, enough)].reset_index(drop=True)
