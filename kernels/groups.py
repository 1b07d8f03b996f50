"""Precisions that serve groups of rows: of G a head, number j is that of the rows j V / G up to (j + 1) V / G.

What computes a precision for every row takes those of groups repeated, and gives them back by what stands here.
"""

# V value dim, G precisions a head, a divisor of V
import torch
from torch import Tensor

from .types import PalimpsaState

# Fewer rows would fill less than half of the smallest matrix product.
_MIN_ROWS = 16


def suits_products(num_rows: int, num_groups: int) -> bool:
    """Whether groups have the rows that the kernels with matrix products want: gpu/grouped.py, README.md."""
    return num_rows // num_groups >= _MIN_ROWS


def num_precisions(v: Tensor, beta: Tensor | None, state: PalimpsaState | None) -> int:
    """G: beta's, or else that of the state; V where there is neither."""
    if beta is not None:
        return beta.shape[-1]
    return v.shape[-1] if state is None else state.importance.shape[-1]


def repeat_for_rows(x: Tensor, num_rows: int) -> Tensor:
    """[..., G] -> [..., V]: every row has what its group has. x itself where each row is a group, else maybe a view."""
    G = x.shape[-1]
    if num_rows == G:
        return x
    # Not flatten: batched gradients of batched gradients have no rule for it.
    return x[..., None].expand(*x.shape, num_rows // G).reshape(*x.shape[:-1], num_rows)


def sum_over_rows(x: Tensor, num_groups: int) -> Tensor:
    """[..., V] -> [..., G]: the gradient of what `repeat_for_rows` repeats."""
    V = x.shape[-1]
    return x if num_groups == V else x.reshape(*x.shape[:-1], num_groups, V // num_groups).sum(-1)


def first_of_rows(x: Tensor, num_groups: int) -> Tensor:
    """[..., V] -> [..., G], of what is the same for all rows of a group."""
    V = x.shape[-1]
    return x if num_groups == V else x[..., :: V // num_groups].contiguous()


def place_in_first_rows(x: Tensor, num_rows: int) -> Tensor:
    """[..., G] -> [..., V], zeros in all rows of a group but the first: the gradient of `first_of_rows`, exactly."""
    G = x.shape[-1]
    if num_rows == G:
        return x
    placed = torch.zeros(*x.shape[:-1], num_rows, dtype=x.dtype, device=x.device)
    placed[..., :: num_rows // G] = x
    return placed
