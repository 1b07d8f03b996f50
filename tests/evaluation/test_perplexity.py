"""Long documents, by models whose answers are known: one that is uniform, one that copies, one that knows bigrams."""

import math
from itertools import pairwise

import numpy as np
import pytest

V = 32
# Of write_shards: it ends every document.
END = V - 1


# Imported late: see conftest.py.
def losses_of(network, documents):
    from palimpsa.evaluation.models.scoring import Scorer
    from palimpsa.evaluation.perplexity import document_losses

    return document_losses(Scorer(network, 3), documents)


def documents(num=5, length=70, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, END, (num, length))


def test_a_uniform_model_loses_the_same_at_every_position(known_network, rules):
    from palimpsa.evaluation.perplexity import loss_by_position

    points = loss_by_position(losses_of(known_network(rules["uniform"](V), V), documents()))
    assert [point.at for point in points] == ["1", "2", "3to4", "5to8", "9to16", "17to32", "33to64", "65to128"]
    # 69 positions are predicted, in each of five documents.
    assert [point.count for point in points] == [5, 5, 10, 20, 40, 80, 160, 25]
    for point in points:
        assert point.value == pytest.approx(math.log(V))
        assert point.stderr == pytest.approx(0, abs=1e-7)


def test_a_copying_model_loses_less_once_it_has_read_what_comes_again(known_network, rules):
    """A document is 16 tokens without a repetition, over and over."""
    from palimpsa.evaluation.perplexity import loss_by_position

    periods = [np.random.default_rng(k).permutation(END)[:16] for k in range(4)]
    read = np.stack([np.tile(one, 4) for one in periods])
    network = known_network(rules["copying"](V, likely=0.9), V)
    points = {point.at: point.value for point in loss_by_position(losses_of(network, read))}
    for at in ("1", "2", "3to4", "5to8"):
        assert points[at] == pytest.approx(math.log(V))
    # What is predicted from 16 tokens is the first of the period, which follows its last token for the first time.
    assert points["9to16"] == pytest.approx(math.log(V))
    for at in ("17to32", "33to64"):
        assert points[at] == pytest.approx(-math.log(0.9))


def test_errors_are_over_documents():
    from palimpsa.evaluation.perplexity import loss_by_position

    losses = np.array([[1.0, 2.0, 2.0, 4.0], [3.0, 2.0, 4.0, 6.0]])
    first, second, third = loss_by_position(losses)
    assert (first.value, first.stderr) == (2.0, 1.0)
    assert (second.value, second.stderr) == (2.0, 0.0)
    # Means of 3 and 5.
    assert (third.value, third.stderr) == (4.0, 1.0)
    assert math.isnan(loss_by_position(losses[:1])[0].stderr)


def test_bigrams_are_counted_within_documents(write_shards, tmp_path, monkeypatch):
    from palimpsa.evaluation.perplexity import count_bigrams

    draw = np.random.default_rng(0)
    texts = [draw.integers(0, 5, length).tolist() for length in (40, 1, 0, 90, 33)]
    shards = write_shards(tmp_path, texts)
    monkeypatch.setattr("palimpsa.evaluation.perplexity.TOKENS_AT_A_TIME", 7)
    codes = np.array([a * V + b for a in range(5) for b in range(6)])
    expected = [sum(pair == (a, b) for one in texts for pair in pairwise(one)) for a in range(5) for b in range(6)]
    assert count_bigrams(shards, codes).tolist() == expected
    assert count_bigrams(shards, codes[:0]).tolist() == []


@pytest.fixture
def with_rare_bigrams(write_shards, tmp_path):
    """Documents in which (1, 2) stands at 10, 14 and 44, and training text that has it twice; all else is common."""
    read = np.zeros((3, 60), np.int64)
    read[:, 10:12] = read[:, 14:16] = read[:, 44:46] = 1, 2
    # Those of a document: 0 0, 0 1, 1 2, 2 0.
    shards = write_shards(tmp_path, [[0, 0, 0, 1], [0, 0, 1], [0, 1, 2, 0], [1, 2, 0], [2, 0]])
    return read, shards


@pytest.mark.parametrize(("max_count", "is_rare"), [(1, False), (2, True)])
def test_a_bigram_is_rare_by_its_count_in_training(max_count, is_rare, with_rare_bigrams, known_network, rules):
    from palimpsa.evaluation.perplexity import rare_bigrams_by_age

    read, shards = with_rare_bigrams
    losses = losses_of(known_network(rules["uniform"](V), V), read)
    points = rare_bigrams_by_age(read, losses, shards, max_count=max_count)
    assert [point.at for point in points] == (["first", "3to4", "17to32"] if is_rare else [])
    assert all(point.value == pytest.approx(math.log(V)) and point.count == 3 for point in points)


def test_a_copying_model_recalls_rare_bigrams_at_any_age_and_a_bigram_model_at_none(
    with_rare_bigrams, known_network, rules
):
    from palimpsa.evaluation.perplexity import rare_bigrams_by_age

    read, shards = with_rare_bigrams
    copied = rare_bigrams_by_age(
        read, losses_of(known_network(rules["copying"](V, likely=0.9), V), read), shards, max_count=2
    )
    assert [point.value for point in copied] == pytest.approx([math.log(V), -math.log(0.9), -math.log(0.9)])
    table = np.log(np.random.default_rng(0).dirichlet(np.ones(V), V))
    known = rare_bigrams_by_age(read, losses_of(known_network(rules["bigram"](table), V), read), shards, max_count=2)
    assert [point.value for point in known] == pytest.approx([-table[1, 2]] * 3)


def test_documents_count_by_their_number_of_places(write_shards, tmp_path):
    """Of the first document two places cost 1 and 2, of the second one costs 6."""
    from palimpsa.evaluation.perplexity import rare_bigrams_by_age

    shards = write_shards(tmp_path, [[9, 9]])
    read = np.array([[1, 2, 1, 2, 1, 2], [1, 2, 1, 2, 3, 4]])
    losses = np.array([[0.0, 0, 1, 0, 2], [0, 0, 6, 0, 0]])
    (point,) = [
        one for one in rare_bigrams_by_age(read[:, :], losses, shards, max_count=0) if one.at == "2" and one.count
    ]
    # (2, 1) comes again in the first document too, at a loss of 0.
    assert (point.value, point.count) == (pytest.approx(9 / 4), 4)
    residuals = np.array([3 - 3 * 9 / 4, 6 - 9 / 4])
    assert point.stderr == pytest.approx(math.sqrt(2 * (residuals**2).sum()) / 4)
