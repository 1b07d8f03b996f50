"""Multi-query associative recall (Zoology, arXiv 2312.04927), generated on the device that trains.

One example with L = 16, n = 4 (a, b, c, d are keys, 1 to 4 their values, . the token 0):

    inputs   a 1 b 2 c 3 d 4 | c . a . d . b .
    labels   - - - - - - - - | 3 - 1 - 4 - 2 -

The n pairs come first; the rest is divided into slots of two tokens, and each pair's query stands at the start of a
slot of its own. Loss and accuracy look at the queries only.
"""

# B batch, L sequence length, n pairs, S slots, V vocabulary

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from palimpsa.tasks.random import derive_key, random_bits, random_uniform
from palimpsa.tasks.task import SPLITS

NUM_AGE_SLICES = 4


class MQARBatch(NamedTuple):
    """inputs [B, L] int64; query_positions [B, n] int64, of each pair's query; labels [B, n] int64, its value."""

    inputs: Tensor
    query_positions: Tensor
    labels: Tensor

    def ages(self) -> Tensor:
        """[B, n] int64: tokens from each pair's value to its query, in 1..L-1."""
        num_pairs = self.labels.shape[1]
        stored_at = 2 * torch.arange(num_pairs, device=self.labels.device) + 1
        return self.query_positions - stored_at


@dataclass(frozen=True)
class MQARSpec:
    """One difficulty of the task.

    Args:
        seq_len: L, tokens, even.
        num_pairs: n key-value pairs, 1 <= n <= L / 4.
        vocab_size: V > L tokens: 0 is the filler, keys lie in [1, V/2), values in [V/2, V).
        power: a > 0 of the law p(i) ~ i^(a-1) by which slot i = 1..S is drawn, S = (L - 2n) / 2.

    Raises:
        ValueError: naming the argument that is out of range.
    """

    seq_len: int
    num_pairs: int
    vocab_size: int
    power: float = 0.01

    def __post_init__(self) -> None:
        for name in ("seq_len", "num_pairs", "vocab_size"):
            if not isinstance(getattr(self, name), int):
                raise TypeError(f"{name}: got {getattr(self, name)!r}, expected an int")
        if self.seq_len < 4 or self.seq_len % 2:
            raise ValueError(f"seq_len: got {self.seq_len}, expected an even number >= 4")
        if not 1 <= self.num_pairs <= self.seq_len // 4:
            raise ValueError(
                f"num_pairs: got {self.num_pairs}, expected 1 <= num_pairs <= seq_len / 4 = {self.seq_len // 4}: "
                "every pair takes two tokens, and its query a slot of two more"
            )
        if self.vocab_size <= self.seq_len:
            raise ValueError(
                f"vocab_size: got {self.vocab_size}, expected more than seq_len = {self.seq_len}, so that keys and "
                "values can be distinct"
            )
        if not (self.power > 0 and math.isfinite(self.power)):
            raise ValueError(f"power: got {self.power}, expected a finite number > 0")

    @property
    def num_slots(self) -> int:
        """S, the slots that a query can take."""
        return (self.seq_len - 2 * self.num_pairs) // 2

    @property
    def plateau_loss(self) -> float:
        """Cross-entropy in nats of a model that knows only that the answer is some value: log(V/2)."""
        return math.log(self.vocab_size - self.vocab_size // 2)


def mqar_examples(spec: MQARSpec, *, seed: int, split: str, stage: int, examples: Tensor) -> MQARBatch:
    """Generates examples by index: a pure function of (seed, split, stage, index), the same on every device.

    Args:
        spec: the difficulty.
        seed: the run's seed, >= 0.
        split: "train", "validation" or "test": disjoint streams of random numbers.
        stage: the stage of a curriculum, >= 0.
        examples: [B] int64 indices; the result lies on their device.

    Raises:
        ValueError: for an unknown split or a negative seed or stage.
    """
    if split not in SPLITS:
        raise ValueError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}")
    for name, value in (("seed", seed), ("stage", stage)):
        if value < 0:
            raise ValueError(f"{name}: got {value}, expected >= 0")
    address = (SPLITS.index(split), seed, stage, spec.seq_len, spec.num_pairs, spec.vocab_size)
    num_pairs, first_value = spec.num_pairs, spec.vocab_size // 2

    def distinct(stream: int, low: int, high: int) -> Tensor:
        # The positions of the n largest of independent draws are n distinct indices in uniformly random order.
        bits = random_bits(derive_key(*address, stream), examples, high - low)
        return low + bits.topk(num_pairs, dim=1).indices

    keys = distinct(0, 1, first_value)
    values = distinct(1, first_value, spec.vocab_size)

    # An exponential race with rates p(i) finishes in the order of sequential draws without replacement by p.
    rank = torch.arange(1, spec.num_slots + 1, device=examples.device, dtype=torch.float64)
    uniform = random_uniform(derive_key(*address, 2), examples, spec.num_slots)
    arrival = -torch.log(uniform) / rank ** (spec.power - 1)
    slots = arrival.topk(num_pairs, dim=1, largest=False).indices

    query_positions = 2 * num_pairs + 2 * slots
    inputs = torch.zeros(examples.shape[0], spec.seq_len, dtype=torch.int64, device=examples.device)
    inputs[:, 0 : 2 * num_pairs : 2] = keys
    inputs[:, 1 : 2 * num_pairs : 2] = values
    inputs.scatter_(1, query_positions, keys)
    return MQARBatch(inputs, query_positions, values)


def mqar_batch(
    spec: MQARSpec,
    *,
    seed: int,
    split: str,
    stage: int,
    step: int,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> MQARBatch:
    """The batch of one step: a pure function of (seed, split, stage, step); see `mqar_examples`.

    >>> spec = MQARSpec(seq_len=16, num_pairs=4, vocab_size=32)
    >>> batch = mqar_batch(spec, seed=1, split="train", stage=0, step=0, batch_size=2)
    >>> batch.inputs.shape, batch.labels.shape
    (torch.Size([2, 16]), torch.Size([2, 4]))
    """
    if step < 0:
        raise ValueError(f"step: got {step}, expected >= 0")
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, expected >= 1")
    examples = torch.arange(step * batch_size, (step + 1) * batch_size, device=device)
    return mqar_examples(spec, seed=seed, split=split, stage=stage, examples=examples)


def epoch_order(*, seed: int, stage: int, epoch: int, num_examples: int, device: torch.device | str) -> Tensor:
    """[num_examples] int64: a permutation of a fixed training set, a pure function of (seed, stage, epoch)."""
    key = derive_key(len(SPLITS), seed, stage, epoch)
    bits = random_bits(key, torch.zeros(1, dtype=torch.int64, device=device), num_examples)
    return bits[0].argsort()


def age_slices(batch: MQARBatch) -> Tensor:
    """[B, n] int64 in 0..3: which quarter of the context length lies between a pair and its query."""
    seq_len = batch.inputs.shape[1]
    return batch.ages() * NUM_AGE_SLICES // seq_len
