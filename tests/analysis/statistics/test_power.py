"""The power of a paired t-test, against what it finds in drawn pairs and against tables."""

import numpy as np
import pytest

from palimpsa.analysis.statistics.power import critical_value, detectable_effect, power_of, rejection_rate


@pytest.mark.parametrize(("num_pairs", "expected"), [(2, 12.7062), (3, 4.3027), (4, 3.1824), (8, 2.3646), (30, 2.0452)])
def test_the_critical_values_are_students(num_pairs, expected):
    assert critical_value(num_pairs) == pytest.approx(expected, rel=1e-4)
    assert rejection_rate(0.0, critical_value(num_pairs), num_pairs) == pytest.approx(0.05, abs=1e-5)


@pytest.mark.parametrize(("num_pairs", "effect"), [(3, 2.0), (4, 1.0), (4, 2.1279), (8, 0.5)])
def test_power_is_how_often_drawn_pairs_show_a_difference(num_pairs, effect):
    drawn = np.random.default_rng(0).normal(effect, 1.0, (200_000, num_pairs))
    t = drawn.mean(axis=1) / drawn.std(axis=1, ddof=1) * num_pairs**0.5
    found = np.mean(np.abs(t) > critical_value(num_pairs))
    assert power_of(effect, num_pairs) == pytest.approx(found, abs=0.004)


def test_what_is_detectable_is_found_with_the_power_that_was_asked_for():
    for num_pairs in (2, 3, 4, 10):
        assert power_of(detectable_effect(num_pairs), num_pairs) == pytest.approx(0.8, abs=1e-6)
    assert detectable_effect(4) < detectable_effect(3)
