"""How many pairs the heads of a layer hold, by memory rule and key width: associative recall without the learning."""

# B memories, T pairs, H heads, K key dim, V value dim, C candidates; one precision a head

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from palimpsa.kernels.reference import palimpsa_reference
from palimpsa.theory.special_cases import delta_rule, mesanet

KEY_DIMS = (16, 32)
NUMS_PAIRS = (32, 64, 128, 256, 512)


class Rule(NamedTuple):
    """How a memory is made, the values of beta to choose from, and what it has to keep.

    store: (k [B, T, H, K], v [B, T, H, V], beta) -> the memory [B, H, K, V] after the last pair.
    betas: precisions, the largest as good as infinite; of the delta rule steps, the best of which lies in between.
    more_state: K -> the numbers that a head keeps beside its memory.
    """

    store: Callable[[Tensor, Tensor, float], Tensor]
    betas: tuple[float, ...]
    more_state: Callable[[int], int]


# No queries in what follows: the memory is asked when all is stored.
def _linear_attention(k: Tensor, v: Tensor, _: float) -> Tensor:
    return _palimpsa_mean(k, v, None)


def _palimpsa(k: Tensor, v: Tensor, beta: float) -> Tensor:
    # The rows of a head all have the same precision here, which one says as well.
    return _palimpsa_mean(k, v, torch.full_like(v[..., :1], beta))


def _palimpsa_mean(k: Tensor, v: Tensor, beta: Tensor | None) -> Tensor:
    no_decay, prior = torch.zeros_like(k[..., 0]), torch.ones(k.shape[2], dtype=k.dtype)
    q = torch.zeros_like(k)
    state = palimpsa_reference(q, k, v, beta, no_decay, prior, output_final_state=True).final_state
    assert state is not None
    return state.mean


def _delta_rule(k: Tensor, v: Tensor, beta: float) -> Tensor:
    return delta_rule(torch.zeros_like(k), k, beta * v, torch.full_like(k[..., 0], beta))[1]


def _full_covariance(k: Tensor, v: Tensor, beta: float) -> Tensor:
    no_decay, prior = torch.zeros_like(k[..., 0]), torch.ones(k.shape[2], dtype=k.dtype)
    return mesanet(torch.zeros_like(k), k, v, torch.full_like(no_decay, beta), no_decay, prior)[1].mean


# What gains are over comes first.
RULES = {
    "linear attention": Rule(_linear_attention, (0.0,), lambda K: 0),
    "Palimpsa": Rule(_palimpsa, (0.1, 1.0, 10.0, 100.0), lambda K: K),
    "delta rule": Rule(_delta_rule, (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0), lambda K: 0),
    "full covariance": Rule(_full_covariance, (1.0, 10.0, 100.0), lambda K: K * K),
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
    the sizes of the paper's recall task: 8 heads, V 32, half of the vocabulary as candidates. Everything in float64, so
    that the rows are the same on every machine. The rules are the operator's recurrence without (beta = 0) and with
    importances, and `special_cases.delta_rule` and `special_cases.mesanet`.

    Args:
        key_dims, nums_pairs: K and T, all of their combinations.
        num_memories: B >= 2 independent layers, over which accuracies are averaged.
        num_candidates: C, the values that there are.
        seed: of keys and values; every rule gets the same.

    Returns:
        a row for each rule, K and T: rule, num_heads, K, V, num_candidates, num_pairs, state (the numbers that the
        layer keeps from pair to pair; of Palimpsa with one precision a head), beta (of those in `RULES` the one that
        recalls most, the smallest of equals; the same for every token), accuracy (the share of the pairs that are
        recalled), gain (how much more than linear attention with the same keys and values) and gain_error (its standard
        error over the memories).

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
        sizes = {"num_heads": num_heads, "K": K, "V": V, "num_candidates": num_candidates, "num_pairs": num_pairs}
        baseline = None
        for name, rule in RULES.items():
            accuracy, beta = _best_beta(rule, k, v, chosen, directions)
            baseline = accuracy if baseline is None else baseline
            gain = accuracy - baseline
            results = {"accuracy": accuracy.mean(), "gain": gain.mean(), "gain_error": gain.std() / num_memories**0.5}
            rounded = {column: round(x.item(), 4) for column, x in results.items()}
            state = num_heads * (K * V + rule.more_state(K))
            rows.append({"rule": name, **sizes, "state": state, "beta": beta, **rounded})
    return rows


def _best_beta(rule: Rule, k: Tensor, v: Tensor, chosen: Tensor, directions: Tensor) -> tuple[Tensor, float]:
    """The share of the pairs that each memory recalls, [B], at the beta that recalls most, and that beta.

    Args:
        chosen: [B, T], which candidate each value is.
        directions: [C, H V], the candidates' directions.
    """
    found = []
    for beta in rule.betas:
        recalled = torch.einsum("bthk,bhkv->bthv", k, rule.store(k, v, beta)).flatten(2)
        answer = (recalled @ directions.T).argmax(-1)
        accuracy = (answer == chosen).double().mean(-1)
        found.append((accuracy, beta))
        if accuracy.min() == 1:
            # No other recalls more, and the first of equals counts.
            break
    # max() takes the first of equals.
    return max(found, key=lambda entry: entry[0].mean().item())
