"""Phonebooks and copies, by models whose answers are known."""

import math
from itertools import pairwise

import numpy as np
import pytest

V = 257


# Imported late: see conftest.py.
def gained(network, contrasts, **options):
    from palimpsa.evaluation.models.scoring import Scorer
    from palimpsa.evaluation.recall import nats_gained

    return nats_gained(Scorer(network, 8), contrasts, "here", **options)


def books(byte_codec, size, num=4):
    from palimpsa.evaluation.recall import phonebook

    return [phonebook(byte_codec, size, np.random.default_rng((size, k))) for k in range(num)]


def copies(length, num=4):
    from palimpsa.evaluation.recall import repeat_copy

    return [repeat_copy(np.arange(V), length, np.random.default_rng((length, k))) for k in range(num)]


def test_a_phonebook_asks_for_a_number_that_is_in_both_books(byte_codec):
    for true, shuffled in books(byte_codec, 5):
        texts = [bytes(one.tokens).decode() for one in (true, shuffled)]
        answer = texts[0][-8:]
        assert true.num_targets == shuffled.num_targets == len(f" {answer}")
        (asked,) = {text.splitlines()[-1].partition(":")[0] for text in texts}
        entries = [dict(line.split(": ") for line in text.splitlines()[:-1]) for text in texts]
        assert list(entries[0]) == list(entries[1])
        assert len(entries[0]) == 5
        assert sorted(entries[0].values()) == sorted(entries[1].values())
        assert entries[0][asked] == answer
        # No name keeps its number.
        assert all(entries[0][name] != entries[1][name] for name in entries[0])


@pytest.mark.parametrize("size", [2, 7])
def test_a_uniform_model_gains_nothing(size, byte_codec, known_network, rules):
    network = known_network(rules["uniform"](V), V)
    for contrasts in (books(byte_codec, size), copies(size)):
        point = gained(network, contrasts, per_token=True)
        assert (point.at, point.value, point.stderr, point.count) == ("here", 0, 0, 4)


def test_a_model_that_looks_names_up_gains_what_a_number_costs(byte_codec, known_network, rules):
    """It finds the last ten bytes, the end of a name and what is known of the number, in the book."""
    likely = 0.99
    network = known_network(rules["copying"](V, likely=likely, width=10), V)
    point = gained(network, books(byte_codec, 3), per_token=False)
    wrong = math.log(likely) - math.log((1 - likely) / (V - 1))
    blind = math.log(likely) + math.log(V)
    # In the shuffled book the first digit is taken from another number, and from there on nothing is found; by chance
    # two numbers begin alike, and the second digit is the wrong one.
    assert point.value == pytest.approx(wrong + 6 * blind, rel=0.2)
    assert point.value > 6 * blind


def test_a_copying_model_gains_what_a_token_costs(known_network, rules):
    likely = 0.9
    network = known_network(rules["copying"](V, likely=likely), V)
    contrasts = copies(30)
    point = gained(network, contrasts, per_token=True)
    wrong = -math.log((1 - likely) / (V - 1))
    expected = []
    for true, shuffled in contrasts:
        assert len(set(true.tokens)) == 30
        assert list(true.tokens[:30]) == list(true.tokens[30:]) == list(shuffled.tokens[30:])
        assert sorted(shuffled.tokens[:30]) == sorted(true.tokens[:30])
        first = list(shuffled.tokens[:30])
        pairs = set(pairwise(first))
        # The last of the shuffled tokens is followed by the first of the others.
        pairs.add((first[-1], true.tokens[30]))
        kept = sum(pair in pairs for pair in pairwise(true.tokens[30:]))
        expected.append((29 - kept) / 29 * (wrong + math.log(likely)))
    assert point.value == pytest.approx(np.mean(expected))
    assert point.stderr == pytest.approx(np.std(expected, ddof=1) / 2)


def test_a_seed_says_what_is_drawn(byte_codec):
    assert books(byte_codec, 4) == books(byte_codec, 4) != books(byte_codec, 3)
    assert copies(4) == copies(4)
