"""AUROC, correlation and reliability on scores whose answer is known, and against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from palimpsa.evaluation.calibration.detection import auroc, ranks, spearman
from palimpsa.evaluation.calibration.reliability import calibration_error, reliability


def queries(seed: int, *, num_clusters: int = 40, size: int = 8, shift: float = 1.0, shared: float = 0.0):
    """Normal scores, greater by `shift` where an answer is wrong, and what queries of a cluster share."""
    generator = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(num_clusters), size)
    is_wrong = generator.random(len(clusters)) < 0.3
    common = generator.normal(size=num_clusters)[clusters]
    return generator.normal(size=len(clusters)) + shift * is_wrong + shared * common, is_wrong, clusters


def test_a_perfect_score_has_1_a_reversed_one_0_and_a_constant_one_a_half():
    is_wrong = np.array([True, False, True, False, False, True])
    clusters = np.array([0, 0, 1, 1, 2, 2])
    assert auroc(is_wrong.astype(float), is_wrong, clusters).value == 1
    assert auroc(-is_wrong.astype(float), is_wrong, clusters).value == 0
    constant = auroc(np.ones(6), is_wrong, clusters)
    assert constant.value == 0.5
    # Nothing varies, from which an interval could be told.
    assert math.isnan(constant.low)
    assert math.isnan(constant.high)


def test_a_random_score_has_a_half_within_its_interval():
    inside = 0
    for seed in range(200):
        scores, is_wrong, clusters = queries(seed, shift=0.0)
        estimate = auroc(scores, is_wrong, clusters)
        assert estimate.low < estimate.value < estimate.high
        inside += estimate.low <= 0.5 <= estimate.high
    # Of 200 intervals of 95%: 190, give or take three standard deviations.
    assert 181 <= inside <= 199


@pytest.mark.parametrize("digits", [None, 0], ids=["no ties", "many ties"])
def test_auroc_is_mann_whitneys_u_over_all_pairs(digits):
    scores, is_wrong, clusters = queries(1)
    scores = scores if digits is None else scores.round(digits)
    u = stats.mannwhitneyu(scores[is_wrong], scores[~is_wrong]).statistic
    expected = u / (is_wrong.sum() * (~is_wrong).sum())
    assert auroc(scores, is_wrong, clusters).value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shared", [0.0, 2.0], ids=["independent queries", "dependent queries"])
def test_the_interval_holds_the_true_value_where_queries_of_a_sequence_are_alike(shared):
    """Of normal scores it is known: Phi(shift / sqrt(2 (1 + shared^2)))."""
    expected = stats.norm.cdf(1.0 / math.sqrt(2 * (1 + shared**2)))
    inside = 0
    for seed in range(300):
        estimate = auroc(*queries(seed, shared=shared))
        inside += estimate.low <= expected <= estimate.high
    assert 270 <= inside <= 298


def test_queries_taken_as_independent_would_make_it_too_narrow_or_too_wide():
    """That the clusters count: the same queries, each a cluster of its own, have another interval."""
    generator = np.random.default_rng(0)
    clusters = np.repeat(np.arange(30), 10)
    # Whole sequences are wrong, with greater scores.
    hard = generator.random(30) < 0.4
    is_wrong = generator.random(300) < np.where(hard, 0.9, 0.1)[clusters]
    scores = generator.normal(size=300) + generator.normal(size=30)[clusters] + 0.5 * hard[clusters]
    together, apart = auroc(scores, is_wrong, clusters), auroc(scores, is_wrong, np.arange(300))
    assert together.value == apart.value
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


@pytest.mark.parametrize("wrong", [0, 6], ids=["no error", "errors alone"])
def test_without_both_kinds_of_answers_there_is_no_auroc(wrong):
    estimate = auroc(np.arange(6.0), np.arange(6) < wrong, np.arange(6))
    assert all(map(math.isnan, (estimate.value, estimate.low, estimate.high)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="scores: got a number that is not finite"):
        auroc(np.array([0.0, bad]), np.array([True, False]), np.array([0, 1]))


def test_ranks_and_correlation_are_scipys():
    generator = np.random.default_rng(2)
    scores = generator.normal(size=200).round(1)
    losses = scores + generator.normal(size=200).round(1)
    np.testing.assert_array_equal(ranks(scores), stats.rankdata(scores))
    assert spearman(scores, losses) == pytest.approx(stats.spearmanr(scores, losses).statistic, abs=1e-12)
    assert spearman(scores, scores) == pytest.approx(1)
    assert spearman(scores, -scores) == pytest.approx(-1)
    assert math.isnan(spearman(np.ones(200), losses))


def test_bins_have_as_many_queries_each_in_the_order_of_the_scores():
    generator = np.random.default_rng(3)
    probabilities = generator.random(10_000)
    bins = reliability(probabilities, generator.random(10_000) < probabilities, 10)
    assert [one.index for one in bins] == list(range(10))
    assert {one.count for one in bins} == {1_000}
    # Of a calibrated score: every tenth is wrong as often as it says.
    assert [one.score for one in bins] == pytest.approx([0.05 + 0.1 * i for i in range(10)], abs=0.02)
    assert sum(one.low <= one.score <= one.high for one in bins) >= 8
    assert calibration_error(bins) < 0.02
    # One that always says 0.9, of which a half is wrong.
    (alone,) = reliability(np.full(100, 0.9), np.arange(100) < 50, 10)
    assert (alone.count, alone.num_wrong) == (100, 50)
    assert calibration_error([alone]) == pytest.approx(0.4)


def test_equal_scores_are_in_one_bin():
    scores = np.array([0.0] * 70 + [1.0] * 30)
    bins = reliability(scores, scores > 0, 10)
    assert [(one.score, one.count, one.num_wrong) for one in bins] == [(0.0, 70, 0), (1.0, 30, 30)]
