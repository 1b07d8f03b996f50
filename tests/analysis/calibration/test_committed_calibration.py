"""What docs/calibration.md says in words of the committed rows holds in them, and they are whole."""

from pathlib import Path

import pytest

from palimpsa.analysis.calibration.comparison import ASKED, BASELINE, load_results
from palimpsa.analysis.calibration.rows import RUN, SHARED, read_bins, read_calibration

FOLDER = Path(__file__).resolve().parents[3] / "results/calibration"
ROWS = read_calibration(FOLDER)
VARIANTS = {"palimpsa_d", "palimpsa_d_scalar", "palimpsa_m", "palimpsa_m_scalar"}


@pytest.mark.parametrize("scale", sorted(set(ROWS["scale"])))
def test_a_scale_has_every_variant_on_four_seeds_from_one_revision(scale):
    own = ROWS.loc[ROWS["scale"] == scale]
    assert set(own["model"]) == VARIANTS
    assert own.groupby("model")["seed"].nunique().eq(4).all()
    assert len(own[list(SHARED)].drop_duplicates()) == 1
    bins = read_bins(FOLDER)
    runs = [set(rows[list(RUN)].itertuples(index=False, name=None)) for rows in (own, bins.loc[bins["scale"] == scale])]
    assert runs[0] == runs[1]
    assert bins["count"].sum() == ROWS["num_queries"].sum()


@pytest.mark.parametrize(
    "one", load_results(ROWS.loc[ROWS["scale"] == "laptop"]), ids=lambda one: f"{one.model}-{one.seq_len}"
)
def test_at_laptop_scale_the_softmax_tells_errors_and_the_variance_does_not(one):
    assert one.auroc[BASELINE].value > 0.8
    # Better than the confidence by no seed's chance, and where there are errors enough no better than chance by much.
    assert one.difference.high < 0
    if one.accuracy.value < 0.99:
        assert one.auroc[ASKED].value < 0.56
        if one.model.startswith("palimpsa_d"):
            assert one.auroc[ASKED].high < 0.5
