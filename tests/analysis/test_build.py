"""What a folder of results becomes when runs failed or rates have too few seeds."""

from __future__ import annotations

import pytest

from palimpsa.analysis.build import build_all
from palimpsa.analysis.collect.collect import collect, write_collected


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "beside-a-finished-model"])
def test_runs_that_failed_half_way_are_drawn_as_failed(add_run, tmp_path, others):
    add_run(model="gla", status="failed", validation=[0.9], lengths=[32], steps=100)
    add_run(model="gla", seed=2, status="failed", steps=100)
    for _ in range(others):
        add_run(model="mamba2", steps=100)
    out = tmp_path / "mqar"
    write_collected(collect([tmp_path / "runs"], out), out)
    (report,) = build_all(out)
    gla = report.summary.loc[report.summary["model"] == "gla"]
    assert gla["num_seeds"].eq(0).all()
    assert gla["mean"].isna().all()
    assert (out / "table_laptop.md").exists()


def test_rates_that_are_not_compared_are_in_the_notes(add_run, tmp_path):
    for lr, seeds in ((5e-3, 3), (1e-2, 3), (4.64e-3, 1)):
        for seed in range(1, seeds + 1):
            add_run(lr=lr, seed=seed, steps=None)
    out = tmp_path / "mqar"
    write_collected(collect([tmp_path / "runs"], out), out)
    (report,) = build_all(out)
    assert "Palimpsa-D: lr 0.00464 not compared (1 seed)" in report.notes
