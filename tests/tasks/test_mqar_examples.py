"""The MQAR generator: its layout, its laws, its purity, its errors."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from palimpsa.tasks.mqar_examples import MQARSpec, age_slices, epoch_order, mqar_batch, mqar_examples
from palimpsa.tasks.random import random_bits, random_uniform

SIZES = [(8, 2, 16), (16, 1, 17), (64, 16, 65), (128, 8, 256), (256, 64, 8192)]


def batch_of(spec: MQARSpec, **changes):
    arguments = {"seed": 1, "split": "train", "stage": 0, "step": 0, "batch_size": 32, **changes}
    return mqar_batch(spec, **arguments)


@pytest.mark.parametrize(("seq_len", "num_pairs", "vocab_size"), SIZES)
def test_layout_is_pairs_then_queries_in_slots_and_zeros_elsewhere(seq_len, num_pairs, vocab_size):
    batch = batch_of(MQARSpec(seq_len, num_pairs, vocab_size))
    keys, values = batch.inputs[:, 0 : 2 * num_pairs : 2], batch.inputs[:, 1 : 2 * num_pairs : 2]
    assert batch.inputs.shape == (32, seq_len)
    assert keys.min() >= 1
    assert keys.max() < vocab_size // 2
    assert values.min() >= vocab_size // 2
    assert values.max() < vocab_size
    for row in range(32):
        assert len(set(keys[row].tolist())) == len(set(values[row].tolist())) == num_pairs
        expected = torch.zeros(seq_len, dtype=torch.int64)
        expected[: 2 * num_pairs] = batch.inputs[row, : 2 * num_pairs]
        for key, value, position, label in zip(
            keys[row], values[row], batch.query_positions[row], batch.labels[row], strict=True
        ):
            assert position >= 2 * num_pairs
            assert position % 2 == 0
            assert expected[position] == 0, "two queries in one slot"
            expected[position] = key
            assert label == value
        assert torch.equal(batch.inputs[row], expected)


@pytest.mark.parametrize("seq_len", [8, 32, 128])
def test_a_quarter_of_the_length_in_pairs_uses_every_slot(seq_len):
    batch = batch_of(MQARSpec(seq_len, seq_len // 4, 256))
    slots = torch.arange(seq_len // 2, seq_len, 2).expand(32, -1)
    assert torch.equal(batch.query_positions.sort(dim=1).values, slots)
    # A permutation that differs from row to row, not the identity.
    assert len({tuple(row) for row in batch.query_positions.tolist()}) > 1


@pytest.mark.parametrize("power", [0.01, 0.5, 2.0])
def test_slots_follow_numpys_sequential_draw_without_replacement(power):
    """All ordered outcomes of 2 of 4 slots, against numpy's choice by a two-sample chi-square test."""
    num_samples, spec = 40_000, MQARSpec(12, 2, 64, power)
    assert spec.num_slots == 4
    batch = batch_of(spec, batch_size=num_samples)
    drawn = Counter(map(tuple, ((batch.query_positions - 4) // 2).tolist()))
    law = np.arange(1, 5) ** (power - 1)
    rng = np.random.default_rng(0)
    expected = Counter(
        tuple(rng.choice(4, size=2, replace=False, p=law / law.sum()).tolist()) for _ in range(num_samples)
    )
    outcomes = sorted(drawn | expected)
    assert len(outcomes) == 12
    chi_square = sum((drawn[o] - expected[o]) ** 2 / (drawn[o] + expected[o]) for o in outcomes)
    # 11 degrees of freedom: 35 is the 0.9998 quantile.
    assert chi_square < 35
    uniform = num_samples / 12
    if power != 1:
        assert sum((drawn[o] - uniform) ** 2 / uniform for o in outcomes) > 100, "the test cannot tell the law"


def test_keys_and_values_are_uniform():
    batch = batch_of(MQARSpec(16, 4, 32), batch_size=20_000)
    for tokens, low, high in ((batch.inputs[:, 0:8:2], 1, 16), (batch.labels, 16, 32)):
        for column in tokens.T:
            counts = torch.bincount(column, minlength=high)[low:].double()
            expected = 20_000 / (high - low)
            assert ((counts - expected) ** 2 / expected).sum() < 45


def test_batch_is_a_pure_function_of_its_address():
    spec = MQARSpec(16, 4, 64)
    first = batch_of(spec)
    torch.manual_seed(999)
    assert all(torch.equal(a, b) for a, b in zip(first, batch_of(spec), strict=True))
    for change in ({"seed": 2}, {"split": "test"}, {"split": "validation"}, {"stage": 1}, {"step": 1}):
        assert not torch.equal(first.inputs, batch_of(spec, **change).inputs), change


def test_generator_is_pinned():
    """Published runs name their data by seed: the stream may never change."""
    batch = batch_of(MQARSpec(8, 2, 16), batch_size=2)
    assert batch.inputs.tolist() == PINNED
    assert random_bits(7, torch.tensor([0, 3]), 2).tolist() == PINNED_BITS


def test_generating_leaves_global_randomness_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batch_of(MQARSpec(16, 4, 64))
    assert torch.equal(before, torch.get_rng_state())


def test_splits_seeds_stages_and_steps_never_meet():
    spec, seen = MQARSpec(64, 16, 8192), set()
    num_batches = 0
    for split in ("train", "validation", "test"):
        for seed in (1, 2):
            for stage in (0, 1):
                for step in range(5):
                    rows = batch_of(spec, split=split, seed=seed, stage=stage, step=step).inputs.tolist()
                    seen.update(map(tuple, rows))
                    num_batches += 1
    assert len(seen) == 32 * num_batches


def test_examples_by_index_are_the_rows_of_batches():
    spec = MQARSpec(16, 4, 64)
    second = batch_of(spec, step=1, batch_size=4)
    rows = mqar_examples(spec, seed=1, split="train", stage=0, examples=torch.tensor([6, 4]))
    assert torch.equal(rows.inputs, second.inputs[[2, 0]])


def test_uniform_draws_are_open_and_uniform():
    draws = random_uniform(3, torch.arange(200), 500).flatten()
    assert draws.min() > 0
    assert draws.max() < 1
    assert abs(draws.mean() - 0.5) < 4 / math.sqrt(12 * draws.numel())
    histogram = torch.histc(draws, 20, 0, 1)
    assert ((histogram - 5000) ** 2 / 5000).sum() < 45


def test_epoch_order_is_a_permutation_of_its_own():
    orders = [epoch_order(seed=1, stage=0, epoch=e, num_examples=100, device="cpu") for e in (0, 1)]
    assert not torch.equal(*orders)
    assert all(torch.equal(order.sort().values, torch.arange(100)) for order in orders)


def test_ages_count_tokens_from_value_to_query():
    batch = batch_of(MQARSpec(16, 4, 64))
    for row in range(4):
        for pair in range(4):
            position = int(batch.query_positions[row, pair])
            assert batch.ages()[row, pair] == position - (2 * pair + 1)
    assert age_slices(batch).min() >= 0
    assert age_slices(batch).max() <= 3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((15, 2, 64), "seq_len"),
        ((2, 1, 64), "seq_len"),
        ((16, 5, 64), "num_pairs"),
        ((16, 0, 64), "num_pairs"),
        ((16, 4, 16), "vocab_size"),
        ((16, 4, 64, 0.0), "power"),
        ((16, 4, 64, math.inf), "power"),
    ],
)
def test_impossible_specs_are_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=f"^{named}: got"):
        MQARSpec(*arguments)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"split": "dev"}, "split"), ({"seed": -1}, "seed"), ({"stage": -1}, "stage"), ({"step": -1}, "step")],
)
def test_impossible_addresses_are_refused_by_name(change, named):
    with pytest.raises(ValueError, match=f"^{named}: got"):
        batch_of(MQARSpec(16, 4, 64), **change)


PINNED = [[4, 11, 2, 14, 4, 0, 2, 0], [3, 15, 6, 10, 6, 0, 3, 0]]
PINNED_BITS = [[3331525659724964719, 8660938062213567540], [-4156596581271279248, 1012511594533698319]]
