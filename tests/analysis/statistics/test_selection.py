"""The gap between twins under each way of selecting: what each takes, and what the committed grid gives."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from palimpsa.analysis.recipe.selection_table import PROTOCOLS, selection_table
from palimpsa.analysis.statistics.learning_rate import one_experiment
from palimpsa.analysis.statistics.selection import BEST, BEST_WITHOUT, READINGS, VALIDATION, gap_of, selected_gaps
from palimpsa.config.compose import CONFIG_DIR
from palimpsa.runs.read import read_runs_csv

RESULTS = CONFIG_DIR.parent / "results"


@pytest.fixture(scope="module")
def grid() -> pd.DataFrame:
    return one_experiment(read_runs_csv(RESULTS / "mqar" / "runs.csv"), "mqar_curriculum", "h200")


def test_the_committed_grid_gives_a_gap_without_seeds_5_and_6_alone(grid):
    gaps = selected_gaps(grid, "palimpsa_d", "palimpsa_d_nometa")
    assert list(gaps) == [(128, 32), (256, 64), (512, 128), (1_024, 256)]
    longest = gaps[1_024, 256]
    assert list(longest) == list(READINGS)
    assert [round(100 * longest[reading].mean, 1) for reading in READINGS] == [1.2, 0.6, 3.8]
    assert [longest[reading].num_seeds for reading in READINGS] == [(8, 8), (8, 8), (6, 6)]


def rows_of(accuracies: dict[tuple[str, float, int], tuple[float, float]]) -> pd.DataFrame:
    """Rows of runs.csv by model, rate and seed: accuracies on validation and on the test, of one stage."""
    return pd.DataFrame(
        {"model": model, "label": model, "lr": lr, "seed": seed, "run_seq_len": 0, "status": "finished", "seq_len": 512,
         "num_pairs": 128, "validation_accuracy": validation, "test_accuracy": test}
        for (model, lr, seed), (validation, test) in accuracies.items()
    )  # fmt: skip


def test_each_reading_takes_what_it_says():
    """One rate is better on validation; on the test each rate is better for half of the model's seeds."""
    accuracies = {}
    for seed in range(1, 9):
        for lr in (1e-3, 1e-2):
            is_lucky = (seed % 2 == 0) == (lr == 1e-2)
            outlier = 0.2 if seed in (5, 6) else 0.0
            accuracies["ours", lr, seed] = (0.9 if lr == 1e-2 else 0.5, 0.6 + 0.2 * is_lucky - outlier)
            accuracies["twin", lr, seed] = (0.9 if lr == 1e-2 else 0.5, 0.5)
    rows = rows_of(accuracies)
    (gaps,) = selected_gaps(rows, "ours", "twin").values()
    assert gaps[VALIDATION].mean == pytest.approx(0.7 - 0.05 - 0.5)
    assert gaps[BEST].mean == pytest.approx(0.8 - 0.05 - 0.5)
    assert gaps[BEST_WITHOUT].mean == pytest.approx(0.8 - 0.5)
    # Without one of the eight seeds there is no such reading.
    (fewer,) = selected_gaps(rows.loc[~((rows["model"] == "twin") & (rows["seed"] == 8))], "ours", "twin").values()
    assert list(fewer) == [VALIDATION, BEST]
    assert selected_gaps(rows.loc[rows["model"] == "twin"], "ours", "twin") == {}


def test_an_interval_is_welchs_of_independent_samples():
    generator = np.random.default_rng(0)
    ours, theirs = generator.normal(0.8, 0.1, 8), generator.normal(0.7, 0.1, 8)
    error = np.sqrt(ours.var(ddof=1) / 8 + theirs.var(ddof=1) / 8)
    # Of 14 degrees of freedom where both vary alike, of 7 where one does alone.
    assert gap_of(ours, ours + 0.1).margin == pytest.approx(2.1448 * ours.std(ddof=1) / 2, rel=1e-3)
    assert gap_of(ours, np.full(8, 0.5)).margin == pytest.approx(2.3646 * ours.std(ddof=1) / 8**0.5, rel=1e-3)
    assert 2.1448 * error < gap_of(ours, theirs).margin < 2.3646 * error
    assert np.isnan(gap_of(ours, theirs[:1]).margin)
    # It holds the true difference 95 times of 100, about.
    draws = generator.normal(0, 1, (400, 2, 6))
    holds = [abs(found.mean) <= found.margin for found in (gap_of(*pair) for pair in draws)]
    assert 0.93 < np.mean(holds) < 0.98


@pytest.mark.parametrize("sizes", [(2, 2), (2, 4), (3, 8), (8, 8)], ids=str)
def test_an_interval_is_as_wide_as_scipys(sizes):
    """Of few seeds too, whose degrees of freedom lie between 1 and 2: a whole number would be a fifth off."""
    generator = np.random.default_rng(1)
    for spread in (0.01, 0.05, 0.2):
        ours, theirs = generator.normal(0.8, 0.05, sizes[0]), generator.normal(0.7, spread, sizes[1])
        found, expected = gap_of(ours, theirs), stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
        assert found.margin == pytest.approx((expected.high - expected.low) / 2, rel=1e-4)


def test_a_protocol_has_rows_once_it_has_runs_and_its_command_before(tmp_path):
    for folder in ("mqar", "recipe"):
        (tmp_path / folder).mkdir()
    text = (RESULTS / "mqar" / "runs.csv").read_text()
    (tmp_path / "mqar" / "runs.csv").write_text(text)
    before = selection_table(tmp_path)
    assert "`recipe_f`" in before
    assert "| curriculum, L 1,024 | Palimpsa-D minus D w/o Meta | 8 | 1.2 ± 6.6 | 0.6 ± 4.2 | 3.8 ± 3.6 |" in before
    forced = text.replace("mqar_curriculum", "mqar_forced")
    (tmp_path / "recipe" / "runs.csv").write_text(forced)
    after = selection_table(tmp_path)
    assert "`recipe_f`" not in after
    assert "| curriculum, A and d's bias decay by 0.1, L 512 | Palimpsa-M minus Mamba-2" in after


def test_a_protocol_of_which_runs_are_missing_says_how_many_there_are(tmp_path):
    (tmp_path / "recipe").mkdir()
    header, *lines = (RESULTS / "mqar" / "runs.csv").read_text().splitlines()
    columns = header.split(",")
    model, lr, seed = (columns.index(name) for name in ("model", "lr", "seed"))
    kept = [
        line.replace("mqar_curriculum", "mqar_forced")
        for line in lines
        if line.startswith("mqar_curriculum,h200,")
        and line.split(",")[model] in ("palimpsa_d", "palimpsa_d_nometa")
        and (line.split(",")[lr], line.split(",")[seed]) in (("0.00464", "1"), ("0.00464", "2"))
    ]
    (tmp_path / "recipe" / "runs.csv").write_text("\n".join([header, *kept]) + "\n")
    text = selection_table(tmp_path)
    assert "| curriculum, A and d's bias decay by 0.1, L 512 | Palimpsa-D minus D w/o Meta | 2 |" in text
    assert "Only some of their runs: `recipe_f` (4 of 24)." in text
    diverged = [line.replace(",finished,", ",diverged,") if ",0.00464,2," in line else line for line in kept]
    (tmp_path / "recipe" / "runs.csv").write_text("\n".join([header, *diverged]) + "\n")
    text = selection_table(tmp_path)
    assert "| curriculum, A and d's bias decay by 0.1, L 512 | Palimpsa-D minus D w/o Meta | 1 |" in text
    assert "Only some of their runs: `recipe_f` (2 of 24, 2 failed)." in text


def test_another_pair_than_an_experiments_own_has_rows_and_counts_for_none(tmp_path):
    """As configs/experiment/recipe_e.yaml offers; recipe_a and recipe_c are pairs of one task."""
    (tmp_path / "recipe").mkdir()
    header, *lines = (RESULTS / "mqar" / "runs.csv").read_text().splitlines()
    model = header.split(",").index("model")
    kept = [
        line.replace("mqar_curriculum", task)
        for line in lines
        if line.startswith("mqar_curriculum,h200,") and line.split(",")[model] in ("palimpsa_m", "mamba2")
        for task in ("mqar_bf16", "mqar_authors")
    ]
    (tmp_path / "recipe" / "runs.csv").write_text("\n".join([header, *kept]) + "\n")
    text = selection_table(tmp_path)
    assert text.count("| curriculum, all in bf16, L 512 | Palimpsa-M minus Mamba-2") == 1
    assert text.count("| scratch by their recipe, 20 epochs, L 512 | Palimpsa-M minus Mamba-2") == 1
    not_run = text.partition("Not run yet")[2]
    assert "`recipe_e`" in not_run
    assert "`recipe_a`" in not_run
    assert "`recipe_c`" not in text


def test_no_protocol_is_called_by_the_row_above():
    """Which may not be there."""
    assert not [protocol.label for protocol in PROTOCOLS if "the same" in protocol.label]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.experiment)
def test_every_protocol_is_what_its_experiment_runs(protocol, tmp_path, monkeypatch):
    from palimpsa.sweeps.plan import plan_command_line

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    one_of_many = [] if protocol.num_runs is not None else ["model=palimpsa_d", "seed=1"]
    sweep = plan_command_line([f"+experiment={protocol.experiment}", *one_of_many], multirun=False)
    assert {job.config["task"]["name"] for job in sweep.jobs} == {protocol.task}
    if protocol.num_runs is not None:
        assert {job.config["model"]["name"] for job in sweep.jobs} == set(protocol.models)
        # All seeds at one rate of each model, and at the others those that choose it.
        cells = {(job.config["model"]["name"], job.config["optimizer"]["lr"], job.config["seed"]) for job in sweep.jobs}
        rates = len({lr for _, lr, _ in cells}) - 1
        assert protocol.num_runs == len({(model, seed) for model, _, seed in cells}) + rates * len(protocol.models)
    where = Path("results") if protocol.folder == "mqar" else Path("results") / protocol.folder
    assert sweep.directory == where / "runs"
