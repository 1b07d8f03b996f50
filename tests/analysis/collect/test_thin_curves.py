"""Thinned learning curves: what is kept follows the full curve, and thinning, collecting and merging agree."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

from palimpsa.analysis.collect.result_files import collect, write_collected
from palimpsa.analysis.collect.thin_curves import LOSS_TOLERANCE, MAX_RECORDS, PROBE_TOLERANCE, thin_curves
from palimpsa.runs.read import head_columns, read_curves_csv, read_runs_csv

# Of rounding, as a share of a range of a decade or more.
ROUNDING = 0.004


def collect_full(root) -> tuple[pd.DataFrame, pd.DataFrame]:
    collected = collect([root / "runs"], root / "none", full_curves=True)
    return collected.runs, collected.curves


@pytest.fixture(scope="module")
def long_run(run_writer, tmp_path_factory) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One run of 5,000 steps: a loss that falls and jumps, and windows and ratios that walk at random over decades."""
    root = tmp_path_factory.mktemp("thin")
    run_writer(root)(steps=5_000)
    runs, curves = collect_full(root)
    random = np.random.default_rng(0)
    steps = curves["step"].to_numpy()
    loss = 9 * np.exp(-steps / 300) + np.where(steps > 3_000, 1.0, 0.0) + 0.01 * random.random(len(steps))
    curves = curves.assign(loss=np.where(curves["loss"].notna(), loss, np.nan))
    probed = curves["window_mean"].notna()
    for name in ["window_mean", "metaplasticity_mean", *head_columns(curves)]:
        curves.loc[probed, name] = 10 ** (4 + np.cumsum(random.normal(size=probed.sum())) / 5)
    return runs, curves


def distances(curves: pd.DataFrame, thinned: pd.DataFrame, column: str) -> np.ndarray:
    """Of every record of a column from the straight lines between the kept ones."""
    whole, kept = (frame.loc[frame[column].notna(), ["step", column]].to_numpy() for frame in (curves, thinned))
    return np.abs(whole[:, 1] - np.interp(whole[:, 0], *kept.T))


def test_straight_lines_between_the_kept_records_follow_the_full_curve(long_run):
    runs, curves = long_run
    thinned = thin_curves(runs, curves)
    assert len(thinned) < len(curves) / 3
    assert distances(curves, thinned, "loss").max() <= LOSS_TOLERANCE * np.ptp(curves["loss"].dropna()) + 5e-4
    squares = []
    for prefix in ("window", "metaplasticity"):
        columns = [name for name in curves if name.startswith(prefix)]
        assert len(columns) == 5
        whole, kept = (frame.assign(**np.log10(1 + frame[columns])) for frame in (curves, thinned))
        spread = np.nanmax(whole[columns]) - np.nanmin(whole[columns])
        squares += [(distances(whole, kept, name) / spread) ** 2 for name in columns]
    assert np.sqrt(np.mean(squares, axis=0)).max() <= PROBE_TOLERANCE + ROUNDING
    # Fewer would not: without every second of the kept records the lines leave the curve.
    assert distances(curves, thinned.iloc[[0, *range(1, len(thinned), 2), -1]], "loss").max() > 0.1


def test_first_last_least_and_greatest_are_kept_and_the_loss_beside_each_probe(long_run):
    runs, curves = long_run
    thinned = thin_curves(runs, curves)
    for column in ("loss", "window_mean"):
        whole, kept = curves[["step", column]].dropna(), thinned[["step", column]].dropna()
        assert kept["step"].iloc[[0, -1]].tolist() == whole["step"].iloc[[0, -1]].tolist()
    assert thinned["loss"].max() == pytest.approx(curves["loss"].max(), rel=1e-3)
    assert thinned["loss"].min() == pytest.approx(curves["loss"].min(), rel=1e-3)
    beside = thinned.loc[thinned["window_mean"].notna() & (thinned["step"] > 0), "loss"]
    assert len(beside) > 10
    assert beside.notna().all()


def test_a_curve_of_noise_keeps_no_more_than_the_most(long_run):
    runs, curves = long_run
    noise = np.random.default_rng(1).random(len(curves))
    thinned = thin_curves(runs, curves.assign(loss=np.where(curves["loss"].notna(), noise, np.nan)))
    assert thinned["loss"].notna().sum() == MAX_RECORDS


@pytest.mark.parametrize("change", ["none", "noise", "infinite", "one-record", "no-probe"])
def test_thinning_twice_is_thinning_once(long_run, change):
    runs, curves = long_run
    memory = ["window_mean", "metaplasticity_mean", *head_columns(curves)]
    if change == "noise":
        curves = curves.assign(loss=curves["loss"] + np.random.default_rng(2).random(len(curves)))
    if change == "infinite":
        curves = curves.assign(
            **{"window/layer0/head0": curves["window/layer0/head0"].where(curves["step"] < 900, np.inf)}
        )
    if change == "one-record":
        curves = curves.iloc[:1]
    if change == "no-probe":
        curves = curves.assign(**dict.fromkeys(memory, np.nan)).drop(columns=head_columns(curves))
    thinned = thin_curves(runs, curves)
    assert len(thinned) > 0
    pd.testing.assert_frame_equal(thin_curves(runs, thinned), thinned)


def test_the_runs_kept_are_those_of_figure_3(add_run, tmp_path):
    for lr, accuracy in ((1e-3, 0.5), (1e-2, 0.9)):
        for seed in (1, 2, 3):
            failed = (lr, seed) == (1e-2, 3)
            add_run(lr=lr, seed=seed, validation=[accuracy, accuracy], status="failed" if failed else "finished")
    for length in (32, 64):
        add_run(task="mqar_scratch", lengths=[length], validation=[0.5], steps=100)
    thinned = thin_curves(*collect_full(tmp_path))
    kept = thinned[["task", "run_seq_len", "lr", "seed"]].drop_duplicates()
    assert list(kept.itertuples(index=False, name=None)) == [
        ("mqar_curriculum", 0, 1e-2, 1),
        ("mqar_curriculum", 0, 1e-2, 2),
        ("mqar_scratch", 64, 1e-3, 1),
    ]


def test_columns_of_heads_that_no_kept_run_has_go(add_run, tmp_path):
    add_run()
    add_run(lr=2e-3, validation=[0.1, 0.1], num_heads=3)
    _, curves = collect_full(tmp_path)
    assert "window/layer1/head2" in curves
    assert [name for name in thin_curves(*collect_full(tmp_path)) if name.endswith("head2")] == []


def test_merging_step_by_step_gives_the_bytes_of_merging_at_once(add_run, tmp_path):
    for seed in (1, 2, 3):
        add_run(folder=f"{'ab'[seed % 2]}/{seed}", seed=seed, steps=1_000)
        add_run(folder=f"{'ab'[seed % 2]}/other{seed}", model="gla", seed=seed, steps=2_000)

    def gather(*roots: str) -> bytes:
        out = tmp_path / "mqar"
        write_collected(collect([tmp_path / root for root in roots], out), out)
        return (out / "curves.csv").read_bytes()

    at_once = gather("a", "b")
    assert gather("a", "b") == at_once
    shutil.rmtree(tmp_path / "mqar")
    gather("b")
    assert gather("a") == at_once
    # From the files alone.
    curves = read_curves_csv(tmp_path / "mqar" / "curves.csv")
    pd.testing.assert_frame_equal(thin_curves(read_runs_csv(tmp_path / "mqar" / "runs.csv"), curves), curves)


def test_a_rate_that_is_chosen_later_has_its_curves_from_its_run_directories(add_run, tmp_path):
    def rates_with_curves() -> list[float]:
        out = tmp_path / "mqar"
        write_collected(collect([tmp_path / "runs"], out), out)
        return read_curves_csv(out / "curves.csv")["lr"].unique().tolist()

    add_run(lr=1e-3, seed=1, validation=[0.8, 0.8])
    add_run(lr=1e-2, seed=1, validation=[0.7, 0.7])
    assert rates_with_curves() == [1e-3]
    add_run(lr=1e-3, seed=2, validation=[0.1, 0.1])
    add_run(lr=1e-2, seed=2, validation=[0.9, 0.9])
    assert rates_with_curves() == [1e-2]
