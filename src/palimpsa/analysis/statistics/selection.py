"""The gap between a model and its twin under each way of selecting: which learning rates, and which seeds, count."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from palimpsa.analysis.statistics.learning_rate import (
    STAGE,
    at_chosen_rates,
    best_per_seed,
    choose_learning_rates,
    finished_stages,
)
from palimpsa.analysis.statistics.power import student_quantile
from palimpsa.analysis.statistics.summary import mean_difference

# The readings, in the order of a table. The last one is of eight seeds alone.
VALIDATION = "chosen on validation"
BEST = "best rate of each seed on the test"
BEST_WITHOUT = "the same without seeds 5 and 6"
READINGS = (VALIDATION, BEST, BEST_WITHOUT)
ALL_SEEDS = frozenset(range(1, 9))
LEFT_OUT = frozenset({5, 6})


class Gap(NamedTuple):
    """A model's mean test accuracy minus its twin's, a fraction of the queries.

    margin: half of its 95% interval; NaN where one of them has one seed. num_seeds: of the model and of its twin.
    """

    mean: float
    margin: float
    num_seeds: tuple[int, int]


def selected_gaps(rows: pd.DataFrame, model: str, twin: str) -> dict[tuple[int, int], Mapping[str, Gap]]:
    """The gap at each stage of the figure that both have finished runs of, by reading.

    Args:
        rows: of one task and scale, from `learning_rate.one_experiment`.

    Returns:
        (seq_len, num_pairs) -> reading -> gap, sorted; `BEST_WITHOUT` where both have the eight seeds.
    """
    own = rows.loc[rows["model"].isin([model, twin])]
    dots = {
        VALIDATION: finished_stages(at_chosen_rates(own, choose_learning_rates(own))),
        BEST: best_per_seed(own),
        BEST_WITHOUT: best_per_seed(own.loc[~own["seed"].isin(LEFT_OUT)]),
    }
    gaps: dict[tuple[int, int], Mapping[str, Gap]] = {}
    finished = finished_stages(own)
    for seq_len, num_pairs in sorted(set(finished[STAGE].itertuples(index=False, name=None))):
        all_rates = finished.loc[(finished["seq_len"] == seq_len) & (finished["num_pairs"] == num_pairs)]
        seeds = [set(all_rates.loc[all_rates["model"] == name, "seed"]) for name in (model, twin)]
        if not all(seeds):
            continue
        found = {}
        for reading in READINGS if seeds == [ALL_SEEDS, ALL_SEEDS] else READINGS[:2]:
            at = dots[reading].loc[dots[reading]["seq_len"].eq(seq_len) & dots[reading]["num_pairs"].eq(num_pairs)]
            samples = [at.loc[at["model"] == name, "test_accuracy"].to_numpy(dtype=float) for name in (model, twin)]
            # The rate that validation chose may have been run to the end of another stage alone.
            if all(map(len, samples)):
                found[reading] = gap_of(*samples)
        gaps[int(seq_len), int(num_pairs)] = found
    return gaps


def gap_of(ours: np.ndarray, theirs: np.ndarray) -> Gap:
    """The gap between two independent samples, a number a seed each.

    Its interval is Welch's, of samples whose variances may differ: of two seeds a bootstrap would be far too narrow.

    >>> gap = gap_of(np.array([0.9, 0.7]), np.array([0.8, 0.6]))
    >>> round(gap.mean, 3), round(gap.margin, 3), gap.num_seeds
    (0.1, 0.608, (2, 2))
    """
    num_seeds = len(ours), len(theirs)
    if min(num_seeds) < 2:
        return Gap(float(ours.mean() - theirs.mean()), float("nan"), num_seeds)
    mean, error = mean_difference(ours, theirs)
    return Gap(mean, student_quantile(_degrees(ours, theirs)) * error, num_seeds)


def _degrees(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Welch's and Satterthwaite's degrees of freedom: from those of the smaller sample to those of both together."""
    own = [sample.var(ddof=1) / len(sample) for sample in (ours, theirs)]
    parts = [variance**2 / (len(sample) - 1) for variance, sample in zip(own, (ours, theirs), strict=True)]
    # Of samples that do not vary at all, whose interval is a point.
    return float(sum(own) ** 2 / sum(parts)) if sum(parts) else min(len(ours), len(theirs)) - 1
