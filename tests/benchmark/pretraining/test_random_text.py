"""Token shards of no text."""

import numpy as np
import pytest

from palimpsa.benchmark.pretraining.random_text import LONGEST, SHORTEST, write_random_text
from palimpsa.text.shards import TokenShards


@pytest.fixture
def shards(tmp_path):
    def make(seed=1, name="text", vocab_size=1_000):
        folder = tmp_path / name
        write_random_text(folder, vocab_size=vocab_size, num_tokens=200_000, num_validation=500, seed=seed)
        return [TokenShards.open(folder / split, verify="hashes") for split in ("train", "validation")]

    return make


def test_documents_are_as_many_in_each_octave_and_words_as_rare_as_zipf_says(shards):
    train, validation = shards()
    assert 200_000 <= train.num_tokens < 200_000 + LONGEST
    assert 500 <= validation.num_tokens < 500 + LONGEST
    lengths = np.diff(train.document_ends, prepend=0)
    assert lengths.min() >= SHORTEST
    assert lengths.max() <= LONGEST
    # The median of a log-uniform law is the geometric mean of its ends, 512; the mean is 1,472.
    assert 250 < np.median(lengths) < 1_100
    tokens = train.tokens(0, train.num_tokens)
    assert np.array_equal(np.flatnonzero(tokens == 999), train.document_ends - 1)
    counts = np.bincount(tokens, minlength=1_000)[:999]
    # In proportion to 1 / (rank + 2.7).
    assert counts[0] / counts[10] == pytest.approx(13.7 / 3.7, rel=0.1)
    assert counts[:100].sum() > 0.5 * counts.sum()
    assert counts[500:].sum() > 0


def test_the_seed_says_what_is_written_and_splits_differ(shards):
    one, same, other = (shards(seed, name) for seed, name in ((1, "one"), (1, "same"), (2, "other")))
    assert [split.digest for split in one] == [split.digest for split in same]
    assert len({one[0].digest, one[1].digest, other[0].digest, other[1].digest}) == 4


def test_two_words_will_do(shards):
    (train, _) = shards(vocab_size=2)
    assert set(train.tokens(0, 1_000).tolist()) == {0, 1}
