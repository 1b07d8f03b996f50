"""How well a memory recalls each pair that it stored, against the pair's age: Figure 4 is drawn from it."""

# B memories, T pairs, K key dim, V value dim

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from palimpsa.kernels.reference import palimpsa_reference


class Memory(NamedTuple):
    """beta: the observation precision of every pair, None without metaplasticity. window: N_t in pairs, or inf."""

    name: str
    beta: float | None
    window: float


MEMORIES = (
    Memory("naive", None, math.inf),
    Memory("metaplastic", 1.0, math.inf),
    Memory("metaplastic with forgetting", 1.0, 64.0),
)


def recall_by_age(
    memory: Memory, *, num_memories: int = 64, num_pairs: int = 512, K: int = 32, V: int = 32, seed: int = 0
) -> list[dict[str, Any]]:
    """Stores random pairs one after the other by the operator, then asks it for each by its key.

    Keys are random directions and values standard normal; I_prior is 1. Everything in float64, so that the rows are
    the same on every machine.

    Args:
        memory: what to store into.
        num_memories: B independent memories, over which means and deviations are taken.
        num_pairs: T, far more than a memory of K keys can hold.
        seed: of the pairs; the same for every memory.

    Returns:
        T rows, the youngest pair first: memory, age in pairs, similarity (cosine of recalled and stored value), error
        (mean squared difference over the mean square of the values; 1 is what recalling nothing gives), and the
        standard deviation of both over the memories.
    """
    generator = torch.Generator().manual_seed(seed)
    k = F.normalize(torch.randn(num_memories, num_pairs, 1, K, generator=generator, dtype=torch.float64), dim=-1)
    v = torch.randn(num_memories, num_pairs, 1, V, generator=generator, dtype=torch.float64)
    g = torch.full(k.shape[:3], math.log1p(-1 / memory.window), dtype=torch.float64)
    beta = None if memory.beta is None else torch.full_like(v, memory.beta)
    prior = torch.ones(1, dtype=torch.float64)
    # First every pair is stored, then every key asks: a token without key, value, precision and decay changes nothing.
    o = palimpsa_reference(
        _one_after_the_other(torch.zeros_like(k), k),
        _one_after_the_other(k, torch.zeros_like(k)),
        _one_after_the_other(v, torch.zeros_like(v)),
        None if beta is None else _one_after_the_other(beta, torch.zeros_like(beta)),
        _one_after_the_other(g, torch.zeros_like(g)),
        prior,
        scale=1.0,
    ).o
    recalled = o[:, num_pairs:]
    similarity = _youngest_first(F.cosine_similarity(recalled, v, dim=-1))
    error = _youngest_first((recalled - v).square().sum(-1) / v.square().sum(-1).mean())
    columns = {"similarity": similarity, "error": error}
    return [
        {"memory": memory.name, "age": age + 1}
        | {name: round(x[:, age].mean().item(), 4) for name, x in columns.items()}
        | {f"{name}_std": round(x[:, age].std().item(), 4) for name, x in columns.items()}
        for age in range(num_pairs)
    ]


def _one_after_the_other(first: Tensor, second: Tensor) -> Tensor:
    return torch.cat([first, second], dim=1)


def _youngest_first(x: Tensor) -> Tensor:
    """[B, T, 1] over time -> [B, T] over age."""
    return x.squeeze(-1).flip(1)
