"""Multi-query associative recall (Zoology, arXiv 2312.04927), generated on the device that trains.

One example with L = 16, n = 4 (a, b, c, d are keys, 1 to 4 their values, . the token 0):

    inputs   a 1 b 2 c 3 d 4 | c . a . d . b .
    labels   - - - - - - - - | 3 - 1 - 4 - 2 -

The n pairs come first; the rest is divided into slots of two tokens, and each pair's query stands at the start of a
slot of its own. Loss and accuracy look at the queries only.

With interference (`InterferenceSpec`) some keys are written again with another value, which is the one that counts,
some pairs are queried often and others seldom, and some never. What a key's number says of it: the greatest are never
queried, and of the others in an example the smaller one more often.

    inputs   a 1 z 2 b 3 a 4 | . . a . b . a .
    labels   - - - - - - - - | - - 4 - 3 - 4 -
"""

# B batch, L sequence length, n pairs, m of them written twice, S slots, V vocabulary

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


class InterferenceBatch(NamedTuple):
    """inputs [B, L] int64; query_positions, labels [B, n] int64, of each query; kinds [B, n] int64 in 0..3, which of
    `InterferenceSpec.slice_names` it is of.
    """

    inputs: Tensor
    query_positions: Tensor
    labels: Tensor
    kinds: Tensor


AnyBatch = MQARBatch | InterferenceBatch


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
    def slice_names(self) -> tuple[str, ...]:
        """The kinds of queries that recall is also measured of one by one."""
        return tuple(f"age{i}" for i in range(NUM_AGE_SLICES))

    @property
    def plateau_loss(self) -> float:
        """Cross-entropy in nats of a model that knows only that the answer is some value: log(V/2)."""
        return math.log(self.vocab_size - self.vocab_size // 2)


@dataclass(frozen=True)
class InterferenceSpec(MQARSpec):
    """A difficulty with interference, of n queries: see the module.

    Args:
        num_overwrites: m of the n keys, any of them, are written a second time, with another value.
        num_distractors: of the n keys, from the last quarter of all keys, never queried; fewer than n.
        zipf: z >= 0: of the queries, each on its own, a share ~ rank^-z is for the key of that rank among the queried.

    Raises:
        ValueError: naming the argument that is out of range.
    """

    num_overwrites: int = 0
    num_distractors: int = 0
    zipf: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        n = self.num_pairs
        if not 0 <= self.num_overwrites <= n:
            raise ValueError(f"num_overwrites: got {self.num_overwrites}, expected 0 <= num_overwrites <= {n} pairs")
        if not 0 <= self.num_distractors < n:
            raise ValueError(f"num_distractors: got {self.num_distractors}, expected 0 <= num_distractors < {n} pairs")
        if not 0 <= self.zipf < math.inf:
            raise ValueError(f"zipf: got {self.zipf}, expected a finite number >= 0")
        if self.num_slots < n:
            raise ValueError(
                f"num_pairs: got {n}, of which {self.num_overwrites} are written twice, expected what leaves room for "
                f"{n} queries: 4 num_pairs + 2 num_overwrites <= seq_len = {self.seq_len}"
            )
        fits = self.num_queried < self.first_distractor and self.num_distractors <= self.vocab_size // 8
        if not (fits and n + self.num_overwrites <= self.vocab_size - self.vocab_size // 2):
            raise ValueError(
                f"vocab_size: got {self.vocab_size}, expected enough for {self.num_queried} keys that are queried "
                f"among {self.first_distractor - 1}, {self.num_distractors} that are not among {self.vocab_size // 8}, "
                f"and {n + self.num_overwrites} values among the second half"
            )

    @property
    def num_queried(self) -> int:
        """Of the pairs, those that queries may ask for."""
        return self.num_pairs - self.num_distractors

    @property
    def first_distractor(self) -> int:
        """The smallest key that is never queried: keys of three quarters of all may be."""
        return self.vocab_size // 2 - self.vocab_size // 8

    @property
    def num_slots(self) -> int:
        return (self.seq_len - 2 * (self.num_pairs + self.num_overwrites)) // 2

    @property
    def num_often(self) -> int:
        """The ranks that count as often queried: the first quarter."""
        return math.ceil(self.num_queried / 4)

    @property
    def slice_names(self) -> tuple[str, ...]:
        return ("often", "often_overwritten", "rare", "rare_overwritten")


def mqar_examples(spec: MQARSpec, *, seed: int, split: str, stage: int, examples: Tensor) -> AnyBatch:
    """Generates examples by index: a pure function of (seed, split, stage, index), the same on every device.

    Args:
        spec: the difficulty; with interference it gives an `InterferenceBatch`.
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
    if isinstance(spec, InterferenceSpec):
        return _interference(spec, (*address, spec.num_overwrites, spec.num_distractors), examples)
    num_pairs, first_value = spec.num_pairs, spec.vocab_size // 2
    keys = _distinct((*address, 0), examples, num_pairs, 1, first_value)
    values = _distinct((*address, 1), examples, num_pairs, first_value, spec.vocab_size)
    query_positions = 2 * num_pairs + 2 * _slots(spec, (*address, 2), examples)
    return MQARBatch(_inputs(spec, keys, values, query_positions, keys), query_positions, values)


def _distinct(address: tuple[int, ...], examples: Tensor, number: int, low: int, high: int) -> Tensor:
    """[B, number] int64: distinct ones of low..high-1."""
    # The positions of the n largest of independent draws are n distinct indices in uniformly random order.
    bits = random_bits(derive_key(*address), examples, high - low)
    return low + bits.topk(number, dim=1).indices


def _slots(spec: MQARSpec, address: tuple[int, ...], examples: Tensor) -> Tensor:
    """[B, n] int64: distinct ones of 0..S-1, drawn one after the other by the law of `MQARSpec`."""
    # An exponential race with rates p(i) finishes in the order of sequential draws without replacement by p.
    rank = torch.arange(1, spec.num_slots + 1, device=examples.device, dtype=torch.float64)
    uniform = random_uniform(derive_key(*address), examples, spec.num_slots)
    arrival = -torch.log(uniform) / rank ** (spec.power - 1)
    return arrival.topk(spec.num_pairs, dim=1, largest=False).indices


def _inputs(spec: MQARSpec, keys: Tensor, values: Tensor, query_positions: Tensor, queries: Tensor) -> Tensor:
    """[B, L] int64: keys and values [B, number of writes] in turn, then queries [B, n] at their positions."""
    end = 2 * keys.shape[1]
    inputs = torch.zeros(keys.shape[0], spec.seq_len, dtype=torch.int64, device=keys.device)
    inputs[:, 0:end:2] = keys
    inputs[:, 1:end:2] = values
    return inputs.scatter_(1, query_positions, queries)


def _interference(spec: InterferenceSpec, address: tuple[int, ...], examples: Tensor) -> InterferenceBatch:
    n, m, first_value = spec.num_pairs, spec.num_overwrites, spec.vocab_size // 2
    first, num_queried = spec.first_distractor, spec.num_queried
    # In the order of their ranks, then those that are never queried.
    queried = _distinct((*address, 0), examples, num_queried, 1, first).sort(dim=1).values
    distractors = _distinct((*address, 1), examples, spec.num_distractors, first, first_value)
    keys = torch.cat([queried, distractors], dim=1)
    twice = _distinct((*address, 2), examples, m, 0, n)
    ranks = torch.arange(n, device=examples.device).expand(len(examples), n)
    # Which pair each write is of, in an order of their own.
    order = _distinct((*address, 3), examples, n + m, 0, n + m)
    written = torch.cat([ranks, twice], dim=1).gather(1, order)
    values = _distinct((*address, 4), examples, n + m, first_value, spec.vocab_size)
    places = torch.arange(n + m, device=examples.device).expand(len(examples), n + m)
    last = torch.zeros_like(keys).scatter_reduce(1, written, places, "amax")
    is_twice = torch.zeros_like(keys).scatter(1, twice, 1)

    law = torch.arange(1, num_queried + 1, device=examples.device, dtype=torch.float64) ** -spec.zipf
    uniform = random_uniform(derive_key(*address, 5), examples, n)
    bounds = law.cumsum(0) / law.sum()
    # Rounding may leave the last bound below 1.
    asked = torch.searchsorted(bounds, uniform).clamp(max=num_queried - 1)
    query_positions = 2 * (n + m) + 2 * _slots(spec, (*address, 6), examples)
    inputs = _inputs(spec, keys.gather(1, written), values, query_positions, keys.gather(1, asked))
    labels = values.gather(1, last.gather(1, asked))
    kinds = 2 * (asked >= spec.num_often).long() + is_twice.gather(1, asked)
    return InterferenceBatch(inputs, query_positions, labels, kinds)


def mqar_batch(
    spec: MQARSpec,
    *,
    seed: int,
    split: str,
    stage: int,
    step: int,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> AnyBatch:
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


def age_slices(batch: AnyBatch) -> Tensor:
    """[B, n] int64 in 0..3: which of the spec's `slice_names` each query is of; ages are quarters of the context."""
    if isinstance(batch, InterferenceBatch):
        return batch.kinds
    seq_len = batch.inputs.shape[1]
    return batch.ages() * NUM_AGE_SLICES // seq_len
