"""Mean learning curves over seeds that do not all train as long."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from palimpsa.analysis.statistics.learning_curves import MAX_POINTS, mean_curve


def frame(**seeds):
    rows = [(int(seed[1:]), *row) for seed, points in seeds.items() for row in points]
    return pd.DataFrame(rows, columns=["seed", "step", "loss"])


def test_mean_curve_is_over_the_seeds_still_training():
    own = frame(
        s1=[(0, 1.0), (10, 2.0), (20, 3.0)],
        s2=[(0, 3.0), (20, 5.0), (30, 6.0)],
        s3=[(0, 5.0), (10, 6.0)],
        s4=[(0, 7.0), (10, np.nan), (20, np.inf)],
    )
    curve = mean_curve(own, "loss")
    # Seed 2 has no record at 10: between its neighbours it is 4. Seed 4 ends at 0. At 30 one seed
    # of four remains: not drawn.
    assert curve["step"].tolist() == [0, 10, 20]
    assert curve["num_seeds"].tolist() == [4, 3, 2]
    assert curve["mean"].tolist() == [4.0, 4.0, 4.0]
    std = [np.std([1, 3, 5, 7], ddof=1), 2, np.sqrt(2)]
    assert (curve["high"] - curve["mean"]).tolist() == pytest.approx(std)
    assert (curve["mean"] - curve["low"]).tolist() == pytest.approx(std)


def test_a_geometric_mean_curve_is_not_the_largest_seeds():
    curve = mean_curve(frame(s1=[(0, 1e3), (10, 1e4)], s2=[(0, 1e3), (10, 1e12)]), "loss", geometric=True)
    assert curve["mean"].tolist() == pytest.approx([1e3, 1e8])
    assert np.log10(curve["high"]).tolist() == pytest.approx([3, 8 + np.std([4, 12], ddof=1)])
    assert np.log10(curve["low"]).tolist() == pytest.approx([3, 8 - np.std([4, 12], ddof=1)])


def test_a_geometric_mean_curve_of_a_ratio_that_is_0_stays_0():
    curve = mean_curve(frame(s1=[(0, 0.0), (10, 0.0)], s2=[(0, 0.0), (10, 0.0)]), "loss", geometric=True)
    assert (curve[["mean", "low", "high"]] == 0).all(axis=None)


def test_mean_curve_ends_where_fewer_than_half_of_the_seeds_remain():
    lengths = {"s1": 40, "s2": 40, "s3": 20, "s4": 10, "s5": 10}
    own = frame(**{seed: [(step, 1.0) for step in range(0, end + 1, 10)] for seed, end in lengths.items()})
    assert mean_curve(own, "loss")[["step", "num_seeds"]].to_numpy().tolist() == [[0, 5], [10, 5], [20, 3]]


def test_mean_curve_of_one_seed_and_of_none():
    curve = mean_curve(frame(s1=[(0, 1.0), (10, 2.0)]), "loss")
    assert curve["mean"].tolist() == [1.0, 2.0]
    assert curve[["low", "high"]].isna().all(axis=None)
    assert mean_curve(frame(s1=[(0, np.nan)]), "loss").empty


def test_mean_curve_of_a_long_run_is_thinned():
    points = [(step, float(step)) for step in range(0, 20_000, 10)]
    curve = mean_curve(frame(s1=points, s2=points), "loss")
    assert MAX_POINTS // 2 < len(curve) <= MAX_POINTS
    assert (curve["mean"] == curve["step"]).all()
