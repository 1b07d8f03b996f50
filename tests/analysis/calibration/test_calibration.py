"""calibration.csv and reliability.csv: what is said of them is their arithmetic, and what is wrong in them is named."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from palimpsa.analysis.calibration.build import build_calibration
from palimpsa.analysis.calibration.comparison import load_results, mean_over_seeds, pooled_bins
from palimpsa.analysis.calibration.rows import (
    BIN_COLUMNS,
    COLUMNS,
    add_calibration,
    forget_scale,
    read_bins,
    read_calibration,
)
from palimpsa.analysis.calibration.tables import NOT_MEASURED, calibration_summary
from palimpsa.runs.schema import ResultError

SCORES = (("variance", "0"), ("variance", "1"), ("variance", "sum"), ("confidence", ""), ("age", ""))


def auroc_of(signal: str, layer: str, seed: int) -> float:
    return {"variance": 0.5, "confidence": 0.9, "age": 0.6}[signal] + 0.01 * seed * (layer == "sum")


def rows_of(model: str, seed: int, *, scale: str = "laptop", label: str = "Palimpsa-D", loads=((16, 4), (32, 8))):
    """What was measured of a run: the rows of both files."""
    run = {"scale": scale, "task": "t", "model": model, "lr": 0.001, "seed": seed}
    shared = {
        **{"label": label, "config_hash": "0" * 16, "steps": 9, "num_queries": 100, "accuracy": 0.8, "loss": 1.5},
        **{"num_examples": 10, "num_bins": 2, "device": "CPU", "git_revision": "abc", "date": "2026-11-30"},
    }
    rows, bins = [], []
    for length, pairs in loads:
        for signal, layer in SCORES:
            place = {**run, "seq_len": length, "num_pairs": pairs, "signal": signal, "layer": layer}
            found = {"auroc": auroc_of(signal, layer, seed), "auroc_low": 0.4, "auroc_high": math.nan, "spearman": 0.1}
            ece = {"calibration_error": 0.02 if signal == "confidence" else math.nan}
            rows.append({**place, **shared, **found, **ece})
            bins += [
                {**place, "bin": i, "score": 0.5 + i, "count": 50, "num_wrong": 5 + 10 * i, "low": 0.0, "high": 1.0}
                for i in range(2)
            ]
    return rows, bins


@pytest.fixture
def folder(tmp_path):
    """results/calibration of two models and three seeds."""
    place = tmp_path / "calibration"
    for model, label in (("palimpsa_d", "Palimpsa-D"), ("palimpsa_m", "Palimpsa-M")):
        for seed in (3, 1, 2):
            add_calibration(place, *rows_of(model, seed, label=label))
    return place


def test_columns_are_those_that_are_measured():
    rows, bins = rows_of("palimpsa_d", 1)
    assert set(rows[0]) == set(COLUMNS)
    assert set(bins[0]) == set(BIN_COLUMNS)


def test_what_is_added_is_read_back_in_one_order_and_replaces_its_run(folder):
    rows = read_calibration(folder)
    assert len(rows) == 2 * 3 * 2 * len(SCORES)
    assert rows["seed"].drop_duplicates().tolist() == [1, 2, 3]
    assert rows.loc[rows["signal"] == "age", "layer"].eq("").all()
    before = (folder / "calibration.csv").read_text()
    add_calibration(folder, *rows_of("palimpsa_d", 2))
    assert (folder / "calibration.csv").read_text() == before
    changed, bins = rows_of("palimpsa_d", 2)
    add_calibration(folder, [{**row, "accuracy": 0.25} for row in changed], bins)
    after = read_calibration(folder)
    assert len(after) == len(rows)
    assert set(after.loc[after["accuracy"] == 0.25, "seed"]) == {2}


def test_a_rate_keeps_all_of_its_digits_and_a_formula_stays_text(tmp_path):
    rows, bins = rows_of("palimpsa_d", 1, label="=1+1")
    lr = 10 ** (-8 / 3)
    for one in (*rows, *bins):
        one["lr"] = lr
    add_calibration(tmp_path, rows, bins)
    assert set(read_calibration(tmp_path)["lr"]) == {lr}
    assert set(read_calibration(tmp_path)["label"]) == {"=1+1"}
    assert "'=1+1" in (tmp_path / "calibration.csv").read_text()


def test_means_and_differences_are_over_seeds(folder):
    results = load_results(read_calibration(folder))
    assert [(one.model, one.seq_len) for one in results] == [
        *(("palimpsa_d", 16), ("palimpsa_d", 32)),
        *(("palimpsa_m", 16), ("palimpsa_m", 32)),
    ]
    one = results[0]
    assert one.auroc["variance", "sum"].value == pytest.approx(0.52)
    assert one.auroc["variance", "1"].value == pytest.approx(0.5)
    # 0.51, 0.52 and 0.53 minus 0.9.
    differences = np.array([-0.39, -0.38, -0.37])
    assert one.difference.value == pytest.approx(-0.38)
    expected = stats.t.interval(0.95, 2, loc=differences.mean(), scale=stats.sem(differences))
    assert (one.difference.low, one.difference.high) == pytest.approx(expected, rel=1e-3)


def test_a_seed_without_errors_is_left_out_and_one_seed_has_no_interval():
    assert mean_over_seeds(pd.Series([0.5, math.nan]))[:1] == (0.5,)
    alone = mean_over_seeds(pd.Series([0.5, math.nan]))
    assert alone.num_seeds == 1
    assert math.isnan(alone.low)
    assert math.isnan(mean_over_seeds(pd.Series([math.nan])).value)


def test_pooled_bins_add_counts_and_have_wilsons_interval(folder):
    bins = read_bins(folder)
    own = bins.loc[(bins["model"] == "palimpsa_d") & (bins["seq_len"] == 16) & (bins["signal"] == "age")]
    pooled = pooled_bins(own)
    assert pooled["count"].tolist() == [150, 150]
    assert pooled["num_wrong"].tolist() == [15, 45]
    for _, one in pooled.iterrows():
        expected = stats.binomtest(int(one["num_wrong"]), 150).proportion_ci(method="wilson")
        assert (one["low"], one["high"]) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_a_folder_is_drawn_and_told_scale_by_scale(folder):
    add_calibration(folder, *rows_of("palimpsa_d", 1, scale="h200", label="<b>D</b>"))
    paths = build_calibration(folder)
    assert [path.name for path in paths] == [
        *("calibration_h200.png", "calibration_h200.md", "calibration_laptop.png", "calibration_laptop.md")
    ]
    table = (folder / "calibration_laptop.md").read_text()
    aurocs = "0.520 | 0.500 | 0.500 | 0.900 | 0.600 | -0.380 (-0.405 to -0.355)"
    assert f"| Palimpsa-M | 32 | 8 | 3 | 80.0 | {aurocs} |" in table
    summary = calibration_summary(folder.parent)
    assert summary.index("h200 scale") < summary.index("laptop scale")
    assert "&lt;b&gt;D&lt;/b&gt;" in summary
    first = {path: path.read_bytes() for path in paths}
    build_calibration(folder)
    assert {path: path.read_bytes() for path in paths} == first


def test_a_scale_is_forgotten_alone(folder):
    add_calibration(folder, *rows_of("palimpsa_d", 1, scale="h200"))
    forget_scale(folder, "laptop")
    assert set(read_calibration(folder)["scale"]) == set(read_bins(folder)["scale"]) == {"h200"}
    forget_scale(folder, "h200")
    assert read_calibration(folder).empty
    assert build_calibration(folder) == []
    assert calibration_summary(folder.parent) == NOT_MEASURED


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.replace("auroc_low", "low"), "its columns are not those of this version"),
        (lambda text: text.replace(",0.8,", ",,", 1), "accuracy is empty in a row, expected a number"),
        (lambda text: text + text.splitlines()[-1] + "\n", "twice, expected it once"),
        (lambda text: text.replace(",0.8,", ",much,", 1), "accuracy holds something else than numbers"),
        (lambda text: text.splitlines()[0] + "\n", "holds no row"),
    ],
)
def test_a_damaged_file_is_named(change, told, folder):
    path = folder / "calibration.csv"
    path.write_text(change(path.read_text()))
    for read in (build_calibration, lambda place: add_calibration(place, *rows_of("palimpsa_d", 9))):
        with pytest.raises(ResultError, match=told) as caught:
            read(folder)
        assert str(caught.value).startswith(str(path))


def test_bins_that_are_missing_are_named(folder):
    (folder / "reliability.csv").unlink()
    with pytest.raises(ResultError, match=r"reliability\.csv: got no row of scale laptop"):
        build_calibration(folder)


@pytest.mark.parametrize("value", [0.7, math.nan], ids=["measured", "all_alike"])
def test_the_figure_of_one_run_shows_its_heading_whole_and_says_where_there_is_no_auroc(value, tmp_path):
    from palimpsa.analysis.calibration.figure import calibration_figure

    rows, bins = rows_of("palimpsa_d", 1)
    add_calibration(tmp_path, [{**row, "auroc": value} for row in rows], bins)
    figure = calibration_figure(read_calibration(tmp_path), read_bins(tmp_path))
    figure.draw_without_rendering()
    heading = figure._suptitle
    assert "one seed a model" in heading.get_text()
    assert heading.get_window_extent().x0 >= 0
    told = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert any(text.startswith("no AUROC") for text in told) == math.isnan(value)
