"""How well a score tells wrong answers from right ones, with an interval that knows which answers belong together."""

# N queries, C clusters (the sequences that they stand in)

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from palimpsa.analysis.statistics.wilson import Z_95


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its 95% interval; NaN where there is none."""

    value: float
    low: float
    high: float


NO_ESTIMATE = Estimate(math.nan, math.nan, math.nan)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks [N] of values [N], from 1 on; equal values share the mean of theirs.

    >>> ranks(np.array([3.0, 1.0, 3.0, 2.0]))
    array([3.5, 1. , 3.5, 2. ])
    """
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def auroc(scores: np.ndarray, is_wrong: np.ndarray, clusters: np.ndarray) -> Estimate:
    """The probability that a wrong answer has a greater score than a right one, an equal one counting half.

    1 is a score that tells all errors, 0.5 one that tells none. The interval takes queries of one sequence as
    dependent (Obuchowski, Biometrics 53, 1997: DeLong's placements, summed in each cluster), and is symmetric in the
    logit, so that it stays within 0 and 1.

    Args:
        scores: [N], finite: greater where an answer is less sure.
        is_wrong: [N] bool.
        clusters: [N] integers, the sequence of each query.

    Returns:
        NaN for all three where no answer is wrong, or none is right; for the ends where placements do not vary, as
        those of a perfect score do not, or where there is one cluster alone.

    Raises:
        ValueError: for a score that is no finite number.
    """
    if not np.isfinite(scores).all():
        raise ValueError("scores: got a number that is not finite, expected finite ones")
    num_wrong = int(is_wrong.sum())
    num_right = len(is_wrong) - num_wrong
    if num_wrong == 0 or num_right == 0:
        return NO_ESTIMATE
    overall = ranks(scores)
    # Of each wrong answer the share of right ones below it, of each right one the share of wrong ones above it.
    above = (overall[is_wrong] - ranks(scores[is_wrong])) / num_right
    below = 1 - (overall[~is_wrong] - ranks(scores[~is_wrong])) / num_wrong
    value = float(above.mean())
    error = math.sqrt(max(_variance(value, above, below, is_wrong, clusters), 0.0))
    if not 0 < value < 1 or not error > 0:
        return Estimate(value, math.nan, math.nan)
    center, width = math.log(value / (1 - value)), Z_95 * error / (value * (1 - value))
    return Estimate(value, _logistic(center - width), _logistic(center + width))


def _variance(value: float, above: np.ndarray, below: np.ndarray, is_wrong: np.ndarray, clusters: np.ndarray) -> float:
    _, place = np.unique(clusters, return_inverse=True)
    num_clusters = int(place.max()) + 1

    def deviations(placements: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, int]:
        own = place[chosen]
        counts = np.bincount(own, minlength=num_clusters)
        sums = np.bincount(own, weights=placements, minlength=num_clusters)
        return sums - counts * value, int((counts > 0).sum())

    of_wrong, with_wrong = deviations(above, is_wrong)
    of_right, with_right = deviations(below, ~is_wrong)
    if min(with_wrong, with_right, num_clusters) < 2:
        return 0.0
    num_wrong, num_right = len(above), len(below)
    wrong = with_wrong / (with_wrong - 1) * (of_wrong @ of_wrong) / num_wrong**2
    right = with_right / (with_right - 1) * (of_right @ of_right) / num_right**2
    both = num_clusters / (num_clusters - 1) * (of_wrong @ of_right) / (num_wrong * num_right)
    return float(wrong + right + 2 * both)


def spearman(scores: np.ndarray, losses: np.ndarray) -> float:
    """The correlation of the ranks of scores [N] with those of losses [N]; NaN where either does not vary."""
    pairs = [ranks(one) - (len(one) + 1) / 2 for one in (scores, losses)]
    size = math.sqrt((pairs[0] @ pairs[0]) * (pairs[1] @ pairs[1]))
    return float(pairs[0] @ pairs[1] / size) if size > 0 else math.nan


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
