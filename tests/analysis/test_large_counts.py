"""Figures and tables of many seeds, rates and models, and of one: numbers stay numbers until they are printed."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from palimpsa.analysis.build import build_experiment
from palimpsa.analysis.statistics import summary as summary_module
from palimpsa.analysis.statistics.learning_curves import mean_curve
from palimpsa.analysis.statistics.learning_rate import choose_learning_rates
from palimpsa.analysis.statistics.summary import bootstrap_interval, summarize
from palimpsa.analysis.tables import print_table, table_cells, to_markdown

EXPERIMENT = {"task": "mqar_curriculum", "scale": "laptop"}


@pytest.fixture
def many(example):
    """many(seeds=..., rates=..., models=...): rows and curves of a run of each, from one run of the example."""
    rows, curves, _ = example

    def make(*, seeds=1, rates=1, models=1):
        one = rows.loc[(rows["model"] == "palimpsa_d") & (rows["seed"] == 1) & (rows["lr"] == 1e-2)]
        curve = curves.loc[(curves["model"] == "palimpsa_d") & (curves["seed"] == 1) & (curves["lr"] == 1e-2)]
        axes = [np.arange(1, seeds + 1), 1e-4 * np.arange(1, rates + 1), [f"m{i}" for i in range(models)]]
        runs = pd.MultiIndex.from_product(axes, names=["seed", "lr", "model"]).to_frame(index=False)
        frames = [runs.merge(frame.drop(columns=list(runs)), how="cross") for frame in (one, curve.iloc[::6])]
        return frames[0].assign(label=frames[0]["model"]), frames[1]

    return make


def printed(rows):
    chosen = choose_learning_rates(rows)
    summary = summarize(rows, chosen)
    console = Console(width=120, file=io.StringIO())
    print_table(summary, **EXPERIMENT, console=console)
    return console.file.getvalue(), summary, chosen


@pytest.mark.parametrize("num_seeds", [1, 999, 1_000, 10_000])
def test_any_number_of_seeds_has_a_table(many, num_seeds):
    """The table of 1,000 seeds was read back from its own text, and '1,000' is no number."""
    rows, _ = many(seeds=num_seeds)
    text, summary, chosen = printed(rows)
    assert f" {num_seeds}/{num_seeds} " in text
    assert {row[6] for row in table_cells(summary, "validation")} == {f"{num_seeds:,}"}
    assert f"| {num_seeds:,} |" in to_markdown(summary, rows, chosen, **EXPERIMENT)


@pytest.mark.parametrize("sizes", [{"rates": 1_000}, {"models": 60}], ids=str)
def test_many_rates_and_models_have_tables(many, sizes):
    rows, _ = many(**sizes)
    text, summary, chosen = printed(rows)
    assert all(model in text for model in rows["model"])
    assert len(to_markdown(summary, rows, chosen, **EXPERIMENT).splitlines()) > 20


def test_lengths_and_failures_of_any_size_are_printed(many):
    rows, _ = many(seeds=2_500)
    failed = rows["seed"] > 1_200
    rows = rows.assign(seq_len=rows["seq_len"] * 4_096, status=rows["status"].mask(failed, "failed"))
    text, _, _ = printed(rows)
    assert " 1200/2500 " in text
    assert " 262144 " in text


@pytest.mark.parametrize(
    "sizes", [{}, {"seeds": 1_000}, {"models": 16}, {"rates": 120, "seeds": 2}, {"models": 3, "rates": 3}], ids=str
)
def test_figures_of_any_counts_are_drawn(many, tmp_path, png_only, sizes):
    rows, curves = many(**sizes)
    report = build_experiment(rows, curves, tmp_path, **EXPERIMENT)
    drawn = {path.stem.removesuffix("_laptop") for path in report.paths}
    assert drawn == {"figure2", "figure3", "figure3_heads", "table"} | ({"sensitivity"} if "rates" in sizes else set())


def test_an_interval_is_the_same_however_its_draws_are_cut(monkeypatch):
    """All at once, the draws of 10,000 seeds took a gigabyte and more."""
    values = np.random.default_rng(1).random(17)
    whole = bootstrap_interval(values)
    for most in (1, 17, 1_000, 17 * 9_999):
        monkeypatch.setattr(summary_module, "_MAX_DRAWS", most)
        assert bootstrap_interval(values) == whole


def test_a_mean_curve_is_of_each_seeds_own_records_in_any_order():
    own = pd.DataFrame({"seed": [2, 1, 2, 1, 2], "step": [4, 0, 0, 2, 2], "loss": [5.0, 1.0, 3.0, 2.0, 4.0]})
    curve = mean_curve(own, "loss")
    assert curve["step"].tolist() == [0, 2]
    assert curve["mean"].tolist() == [2.0, 3.0]
