"""Figure 2: what its axes and its legend hold."""

from __future__ import annotations

import pytest
from matplotlib.container import BarContainer

from palimpsa.analysis.collect.result_files import collect
from palimpsa.analysis.draw.figure2 import figure2
from palimpsa.analysis.statistics.learning_rate import choose_learning_rates, one_experiment
from palimpsa.analysis.statistics.summary import summarize


def draw_figure2(rows, chosen, scale="laptop"):
    return figure2(rows, summarize(rows, chosen), chosen, task="mqar_curriculum", scale=scale)


def test_figure2_has_a_bar_a_model_and_length_and_a_dot_a_seed(example):
    (axes,) = draw_figure2(example[0], example[2]).axes
    bars = {c.get_label(): c.patches for c in axes.containers if isinstance(c, BarContainer)}
    assert {model: len(patches) for model, patches in bars.items()} == {"palimpsa_d": 2, "gla": 2}
    assert [bar.get_height() for bar in bars["palimpsa_d"]] == pytest.approx([0.9, 0.88])
    dots = {c.get_gid(): c.get_offsets() for c in axes.collections if c.get_gid()}
    assert {name: len(offsets) for name, offsets in dots.items()} == {
        "seeds-palimpsa_d-32": 3,
        "seeds-palimpsa_d-64": 3,
        "seeds-gla-32": 2,
        "seeds-gla-64": 2,
    }
    assert sorted(dots["seeds-palimpsa_d-64"][:, 1]) == pytest.approx([0.87, 0.88, 0.89])
    # Every dot lies over its own bar.
    bar = bars["palimpsa_d"][1]
    places = dots["seeds-palimpsa_d-64"][:, 0]
    assert bar.get_x() < places.min() < places.max() < bar.get_x() + bar.get_width()
    assert axes.get_ylim() == (0, 1.04)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["32\n8 pairs", "64\n16 pairs"]


def test_figure2_legend_names_state_rate_and_failures(example):
    (legend,) = draw_figure2(example[0], example[2]).legends
    labels = [text.get_text() for text in legend.get_texts() if text.get_text()]
    assert labels == [
        "Palimpsa-D · state 1,024 · lr 0.01",
        "GLA · state 1,024 · lr 0.01",
        "one seed",
        "mean ±1 std (bar, whisker)",
        "median",
        "failed seeds (not in the mean)",
        "chance, 1.6%",
    ]


def test_the_laptop_figure_alone_is_a_demonstration(example):
    rows, _, chosen = example
    assert "demonstrates the pipeline" in draw_figure2(rows, chosen).get_suptitle()
    other = draw_figure2(rows, chosen, scale="h200").get_suptitle()
    assert "h200 scale" in other
    assert "demonstrates" not in other


def test_a_model_without_a_finished_run_is_in_the_legend(add_run, tmp_path):
    add_run(model="gla", status="failed", steps=None)
    add_run(model="mamba2", steps=None)
    rows = one_experiment(collect([tmp_path / "runs"], tmp_path / "out").runs, "mqar_curriculum", "laptop")
    (legend,) = draw_figure2(rows, choose_learning_rates(rows)).legends
    assert "GLA · state 1,024 · no finished run" in [text.get_text() for text in legend.get_texts()]
