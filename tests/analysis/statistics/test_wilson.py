"""Wilson's interval against scipy's."""

import numpy as np
import pytest
from scipy import stats

from palimpsa.analysis.statistics.wilson import wilson_interval


@pytest.mark.parametrize(("num_found", "count"), [(0, 10), (10, 10), (3, 17), (500, 1000)])
def test_it_is_scipys(num_found, count):
    expected = stats.binomtest(num_found, count).proportion_ci(method="wilson")
    low, high = wilson_interval(np.array([num_found]), np.array([count]))
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high), abs=1e-9)
