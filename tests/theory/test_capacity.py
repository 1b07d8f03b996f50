"""How many pairs a layer holds, by memory rule and key width."""

import pytest

from palimpsa.theory.capacity import RULES, capacity


def accuracies(**sizes):
    """By rule, K and number of pairs."""
    rows = capacity(num_memories=2, num_heads=2, V=8, num_candidates=64, **sizes)
    return {(row["rule"], row["K"], row["num_pairs"]): row["accuracy"] for row in rows}


def test_what_a_layer_holds():
    found = accuracies(key_dims=(8, 16), nums_pairs=(2, 16, 32))
    assert set(found) == {(rule, K, num_pairs) for rule in RULES for K in (8, 16) for num_pairs in (2, 16, 32)}
    for rule in RULES:
        assert found[rule, 16, 2] == 1
        assert 1 / 64 < found[rule, 8, 32] < found[rule, 8, 16] < 1
        assert found[rule, 16, 32] > found[rule, 8, 32]
    # With everything that keys have in common, and with what their coordinates have.
    assert found["full covariance", 8, 16] > found["Palimpsa", 8, 16] >= found["linear attention", 8, 16]


def test_gains_are_over_linear_attention_with_the_same_pairs():
    rows = capacity(key_dims=(8,), nums_pairs=(16,), num_memories=3, num_heads=2, V=8, num_candidates=64)
    plain = rows[0]
    assert (plain["rule"], plain["gain"], plain["gain_error"]) == ("linear attention", 0, 0)
    for row in rows[1:]:
        assert row["gain"] == pytest.approx(row["accuracy"] - plain["accuracy"], abs=2e-4)
    assert rows[-1]["gain_error"] > 0
    # Every accuracy is a number of pairs out of 3 * 16.
    assert all(abs(row["accuracy"] * 48 - round(row["accuracy"] * 48)) < 0.01 for row in rows)


def test_capacity_needs_memories_to_compare():
    with pytest.raises(ValueError, match="num_memories must be at least 2"):
        capacity(num_memories=1)


def test_capacity_is_of_the_seed_alone():
    sizes = {"key_dims": (4,), "nums_pairs": (8,)}
    assert accuracies(**sizes) == accuracies(**sizes)
    assert accuracies(**sizes) != accuracies(**sizes, seed=1)
