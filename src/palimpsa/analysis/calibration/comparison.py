"""What the scores of a model come to over its seeds, and whether the variance tells errors better than the softmax."""

import math
from typing import NamedTuple

import pandas as pd

from palimpsa.analysis.calibration.rows import LOAD
from palimpsa.analysis.statistics.power import critical_value
from palimpsa.analysis.statistics.wilson import wilson_interval
from palimpsa.analysis.style import model_order

# Of the signals of evaluation.calibration.queries: what is asked about, and what it is compared with.
ASKED, BASELINE = ("variance", "sum"), ("confidence", "")


class Mean(NamedTuple):
    """The mean over seeds, the ends of Student's 95% interval of it, and the seeds. NaN: none, or one alone."""

    value: float
    low: float
    high: float
    num_seeds: int


def mean_over_seeds(values: pd.Series) -> Mean:
    """Of a value a seed; seeds without one, as of runs without an error, are left out."""
    known = values.dropna().to_numpy(dtype=float)
    n = len(known)
    mean = float(known.mean()) if n else math.nan
    half = critical_value(n) * float(known.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Mean(mean, mean - half, mean + half, n)


class LoadResult(NamedTuple):
    """One model at one load: means over its seeds.

    auroc, spearman: by (signal, layer). difference: AUROC of the variance, summed over layers, minus the confidence's,
    seed by seed.
    """

    scale: str
    model: str
    label: str
    seq_len: int
    num_pairs: int
    accuracy: Mean
    auroc: dict[tuple[str, str], Mean]
    spearman: dict[tuple[str, str], Mean]
    calibration_error: Mean
    difference: Mean


def load_results(rows: pd.DataFrame) -> list[LoadResult]:
    """Of calibration.csv: a result a scale, task, model, rate and load, in the order of the figures."""
    found = []
    for scale, task, lr in rows[["scale", "task", "lr"]].drop_duplicates().itertuples(index=False, name=None):
        of_task = rows.loc[(rows["scale"] == scale) & (rows["task"] == task) & (rows["lr"] == lr)]
        for model in model_order(of_task["model"]):
            own = of_task.loc[of_task["model"] == model]
            loads = own[list(LOAD)].drop_duplicates().sort_values(list(LOAD))
            for length, pairs in loads.itertuples(index=False, name=None):
                at_load = own.loc[(own["seq_len"] == length) & (own["num_pairs"] == pairs)]
                found.append(_of_load(scale, model, int(length), int(pairs), at_load))
    return found


def _of_load(scale: str, model: str, length: int, pairs: int, rows: pd.DataFrame) -> LoadResult:
    auroc = _by_seed(rows, "auroc")
    spearman = _by_seed(rows, "spearman")
    accuracy, error = (_by_seed(rows, column)[BASELINE] for column in ("accuracy", "calibration_error"))
    return LoadResult(
        scale=scale,
        model=model,
        label=str(rows["label"].iloc[0]),
        seq_len=length,
        num_pairs=pairs,
        accuracy=mean_over_seeds(accuracy),
        auroc={score: mean_over_seeds(values) for score, values in auroc.items()},
        spearman={score: mean_over_seeds(values) for score, values in spearman.items()},
        calibration_error=mean_over_seeds(error),
        difference=mean_over_seeds(auroc[ASKED] - auroc[BASELINE]),
    )


def _by_seed(rows: pd.DataFrame, column: str) -> dict[tuple[str, str], pd.Series]:
    """The value a seed of each (signal, layer)."""
    scores = rows[["signal", "layer"]].drop_duplicates().itertuples(index=False, name=None)
    found = {}
    for signal, layer in scores:
        own = rows.loc[(rows["signal"] == signal) & (rows["layer"] == layer)]
        found[signal, layer] = pd.Series(own[column].to_numpy(dtype=float), index=own["seed"])
    return found


def pooled_bins(bins: pd.DataFrame) -> pd.DataFrame:
    """The bins of one model, load and score over its seeds: a row a bin, with `share` of wrong ones, low and high.

    Counts are added and Wilson's interval is of their sum: it takes queries as independent, and is too narrow where
    seeds differ.
    """
    sums = pd.DataFrame({name: bins.groupby("bin")[name].sum() for name in ("count", "num_wrong")})
    n = sums["count"].to_numpy(dtype=float)
    share = sums["num_wrong"].to_numpy(dtype=float) / n
    low, high = wilson_interval(sums["num_wrong"].to_numpy(dtype=float), n)
    return sums.assign(share=share, low=low, high=high).reset_index()
