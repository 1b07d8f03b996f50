"""The share of wrong answers at each height of a score: what a reliability diagram shows."""

# N queries

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from palimpsa.analysis.statistics.wilson import wilson_interval
from palimpsa.evaluation.calibration.detection import ranks


@dataclass(frozen=True)
class Bin:
    """Queries of neighbouring scores.

    index: from 0, the smallest scores. score: their mean. count: the queries; num_wrong: of them. low, high: the ends
    of Wilson's 95% interval of the share of wrong ones.
    """

    index: int
    score: float
    count: int
    num_wrong: int
    low: float
    high: float


def reliability(scores: np.ndarray, is_wrong: np.ndarray, num_bins: int) -> list[Bin]:
    """Bins of as many queries each, in the order of the scores [N]; equal scores are in one bin.

    Args:
        is_wrong: [N] bool.
        num_bins: at most: ties may leave some without a query.
    """
    place = np.minimum((ranks(scores) - 0.5) / len(scores) * num_bins, num_bins - 1).astype(int)
    counts = np.bincount(place, minlength=num_bins)
    num_wrong, sums = (np.bincount(place, weights=one, minlength=num_bins) for one in (is_wrong, scores))
    filled = np.flatnonzero(counts)
    low, high = wilson_interval(num_wrong[filled], counts[filled])
    return [
        Bin(int(index), float(sums[index] / counts[index]), int(counts[index]), int(num_wrong[index]), *ends)
        for index, *ends in zip(filled, low.tolist(), high.tolist(), strict=True)
    ]


def calibration_error(bins: list[Bin]) -> float:
    """Of scores that are probabilities of being wrong: the mean distance, over queries, of a bin's share from them."""
    total = sum(one.count for one in bins)
    return sum(abs(one.count * one.score - one.num_wrong) for one in bins) / total
