"""How many pairs the heads of a layer hold, by memory rule and key width: what MQAR asks for, without the learning."""

# B memories, T pairs, H heads, K key dim, V value dim, C candidates

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from palimpsa.kernels import palimpsa
from palimpsa.theory.special_cases import delta_rule, mesanet

KEY_DIMS = (16, 32)
NUMS_PAIRS = (32, 64, 128, 256, 512)


def _linear(k: Tensor, v: Tensor, _: float) -> Tensor:
    return _store(k, v, None)


def _palimpsa(k: Tensor, v: Tensor, beta: float) -> Tensor:
    return _store(k, v, torch.full_like(v, beta))


def _store(k: Tensor, v: Tensor, beta: Tensor | None) -> Tensor:
    # No queries, here and below: the memory is asked when all is stored.
    no_decay, prior = torch.zeros_like(k[..., 0]), torch.ones(k.shape[2], dtype=k.dtype)
    state = palimpsa(torch.zeros_like(k), k, v, beta, no_decay, prior, output_final_state=True).final_state
    assert state is not None
    return state.mean


def _delta(k: Tensor, v: Tensor, beta: float) -> Tensor:
    return delta_rule(torch.zeros_like(k), k, beta * v, torch.full_like(k[..., 0], beta))[1]


def _exact(k: Tensor, v: Tensor, beta: float) -> Tensor:
    no_decay, prior = torch.zeros_like(k[..., 0]), torch.ones(k.shape[2], dtype=k.dtype)
    return mesanet(torch.zeros_like(k), k, v, torch.full_like(no_decay, beta), no_decay, prior)[1].mean


# The memory [B, H, K, V] that a rule makes of k [B, T, H, K] and v [B, T, H, V], and the values of beta to choose from.
# Of the precisions the largest are as good as infinite; the delta rule's step is best in between, and too large a step
# is worse than none.
RULES: dict[str, tuple[Callable[[Tensor, Tensor, float], Tensor], tuple[float, ...]]] = {
    "linear attention": (_linear, (0.0,)),
    "Palimpsa": (_palimpsa, (0.1, 1.0, 10.0, 100.0)),
    "delta rule": (_delta, (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)),
    "full covariance": (_exact, (1.0, 10.0, 100.0)),
}


def capacity(
    *,
    key_dims: tuple[int, ...] = KEY_DIMS,
    nums_pairs: tuple[int, ...] = NUMS_PAIRS,
    num_memories: int = 16,
    num_heads: int = 8,
    V: int = 32,
    num_candidates: int = 4096,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Stores random pairs in the heads of one layer, without forgetting, and asks for each by its keys.

    Keys are random directions, another one in every head; a value is H * V standard normal numbers, of which every
    head stores V. The candidate nearest in direction to what all heads recall together is the answer. The defaults are
    MQAR's at the paper's sizes: 8 heads, V 32, half of the vocabulary as candidates. Everything in float64, so that
    the rows are the same on every machine. The rules are the operator's recurrence without (beta = 0) and with
    importances, and `recurrences.delta_rule` and `recurrences.mesanet`.

    Args:
        key_dims, nums_pairs: K and T, all of their combinations.
        num_memories: B >= 2 independent layers, over which accuracies are averaged.
        num_candidates: C, the values that there are.
        seed: of keys and values; every rule gets the same.

    Returns:
        a row for each rule, K and T: rule, num_heads, K, V, num_candidates, num_pairs, beta (of those in `RULES` the
        one that recalls most, the smallest of equals; the same for every token), accuracy (the share of the pairs
        that are recalled), gain (how much more than linear attention with the same keys and values) and gain_error (its
        standard error over the memories).

    Raises:
        ValueError: num_memories < 2.
    """
    if num_memories < 2:
        raise ValueError(f"num_memories must be at least 2, for a standard error, got {num_memories}")
    rows = []
    for K, num_pairs in itertools.product(key_dims, nums_pairs):
        generator = torch.Generator().manual_seed(seed)
        shape = (num_memories, num_pairs, num_heads)
        k = F.normalize(torch.randn(*shape, K, generator=generator, dtype=torch.float64), dim=-1)
        candidates = torch.randn(num_candidates, num_heads * V, generator=generator, dtype=torch.float64)
        chosen = torch.stack([torch.randperm(num_candidates, generator=generator)[:num_pairs] for _ in k])
        v = candidates[chosen].unflatten(-1, (num_heads, V))
        directions = F.normalize(candidates, dim=-1)
        for rule, (store, betas) in RULES.items():
            found = []
            for beta in betas:
                recalled = torch.einsum("bthk,bhkv->bthv", k, store(k, v, beta)).flatten(2)
                answer = (recalled @ directions.T).argmax(-1)
                found.append(((answer == chosen).double().mean(-1), beta))
            # max() takes the first of equals.
            accuracy, beta = max(found, key=lambda entry: entry[0].mean().item())
            if rule == "linear attention":  # the first
                plain = accuracy
            gain = accuracy - plain
            error = gain.std() / num_memories**0.5
            sizes = {"num_heads": num_heads, "K": K, "V": V, "num_candidates": num_candidates, "num_pairs": num_pairs}
            results = {"accuracy": accuracy.mean(), "gain": gain.mean(), "gain_error": error}
            rows.append({"rule": rule, **sizes, "beta": beta, **{k: round(x.item(), 4) for k, x in results.items()}})
    return rows
