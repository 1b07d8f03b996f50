"""What one head's memory did with a sequence, as plain numbers that a file holds."""

# T time, S time of writing, K key dim, G precisions a head

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from palimpsa.evaluation.memory.attribution import HeadPath
from palimpsa.mixers.layers import windows

# Of a heat map. More rows or columns than these are put together.
MAX_COLUMNS = 80
MAX_ROWS = 32
# A value counts as recalled while its share of what its key recalls is at least this part of what it is at once.
RECALLED = 0.5
# Of each output, the tokens that brought most of it.
NUM_LARGEST = 3
RULES = {
    "columns": f"at most {MAX_COLUMNS} columns, of about as many tokens each: of curves the mean over them, of "
    "importances what there is after the last",
    "entries": f"entries (key channel and group of rows) by their importance at the end, the most important first; at "
    f"most {MAX_ROWS} rows, each the mean of about as many entries",
    "attributions": "a cell is the mean over its outputs of the sum over its written tokens",
}


def edges(length: int, most: int) -> list[int]:
    """0 to `length` in at most `most` parts that differ by one at most.

    >>> edges(5, 2), edges(3, 80)
    ([0, 2, 5], [0, 1, 2, 3])
    """
    count = min(length, most)
    return [length * i // count for i in range(count + 1)]


def rounded(value: Any) -> Any:
    """Numbers of three significant digits, None for what is none; tensors and lists as lists."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.3g}") if math.isfinite(value) else None


def consolidation(path: HeadPath, has_importance: bool) -> Tensor:
    """[S]: the share of all that the tokens left at the end that each token left; 0 where nothing is left.

    has_importance: of what they added to the importance, d_Ts k_s^2 beta_s summed over entries. Otherwise of what they
    wrote, d_Ts |k_s| |v_s|.
    """
    if has_importance:
        left = path.decay[-1, :, 0] * path.written.sum((1, 2))
    else:
        left = (path.decay[-1] * path.k).norm(dim=1) * path.v.norm(dim=1)
    total = left.sum()
    return left / total if total > 0 else left


def recall_by_age(path: HeadPath) -> Tensor:
    """[T]: the mean of `own_recall` over what was stored so many tokens ago: at 0, by the token itself.

    A token counts by the size |k_s| |v_s| of what it wrote. NaN where nothing of this age wrote anything.
    """
    own, sizes = path.own_recall(), path.k.norm(dim=1) * path.v.norm(dim=1)
    means = []
    for age in range(len(own)):
        weights = sizes[: len(own) - age]
        means.append((own.diagonal(-age) * weights).sum() / weights.sum())
    return torch.stack(means)


def recalled_age(by_age: Tensor) -> int | None:
    """The last age up to which the mean is at least `RECALLED` of that at age 0; None where that is not above 0."""
    if not by_age[0] > 0:
        return None
    fails = (~(by_age >= RECALLED * by_age[0])).nonzero()
    return int(fails[0]) - 1 if len(fails) else len(by_age) - 1


def head_summary(path: HeadPath, log_decay: Tensor, has_importance: bool) -> dict[str, Any]:
    """The numbers of a head, of log_decay [T] or [T, K]."""
    end, by_age = path.importance[-1], recall_by_age(path)
    return {
        "window_mean": rounded(windows(log_decay).mean().item()),
        "metaplasticity": rounded(((end.max() - end.min()) / end.min()).item()) if has_importance else None,
        "recall_at_once": rounded(by_age[0].item()),
        "recalled_age": recalled_age(by_age),
        "step_size_end": rounded((1 / end).mean().item()),
        "variance_mean": rounded(path.variance().mean().item()),
    }


def head_details(path: HeadPath, log_decay: Tensor, has_importance: bool) -> dict[str, Any]:
    """The curves and maps of a head; arguments as of `head_summary`."""
    T = len(path.q)
    times = edges(T, MAX_COLUMNS)
    steps = 1 / path.importance.flatten(1)
    shares = path.shares()
    largest = shares.topk(min(NUM_LARGEST, T))
    window = windows(log_decay)
    return {
        "window": _means(window if window.ndim == 1 else window.mean(1), times),
        "step_size": {
            "mean": _means(steps.mean(1), times),
            "least": _means(steps.amin(1), times),
            "most": _means(steps.amax(1), times),
        },
        "variance": _means(path.variance(), times),
        "importance": _entries(path.importance, times) if has_importance else None,
        "consolidation": rounded(consolidation(path, has_importance)),
        "recall_by_age": _means(recall_by_age(path), times),
        "attribution": _cells(shares, times),
        "largest": [
            [[s, one] for s, one in zip(places, values, strict=True) if s <= t]
            for t, (places, values) in enumerate(
                zip(largest.indices.tolist(), rounded(largest.values), strict=True),
            )
        ],
    }


def _means(curve: Tensor, times: list[int]) -> list[float | None]:
    return rounded([curve[start:end].nanmean().item() for start, end in pairwise(times)])


def _entries(importance: Tensor, times: list[int]) -> list[list[float]]:
    last = importance[[end - 1 for end in times[1:]]].flatten(1)
    ordered = last[:, last[-1].argsort(descending=True, stable=True)]
    rows = edges(ordered.shape[1], MAX_ROWS)
    return rounded([ordered[:, start:end].mean(1).tolist() for start, end in pairwise(rows)])


def _cells(shares: Tensor, times: list[int]) -> list[list[float]]:
    """The lower triangle alone: nothing is read from what comes later."""
    parts = list(pairwise(times))
    return [
        rounded([shares[start:end, left:right].sum(1).mean().item() for left, right in parts[: row + 1]])
        for row, (start, end) in enumerate(parts)
    ]
