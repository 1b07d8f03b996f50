"""Figure 3 and its panels of single heads: what their axes hold."""

from __future__ import annotations

import numpy as np
import pytest

from palimpsa.analysis.draw.figure3 import figure3, figure3_heads


@pytest.mark.parametrize("draw", [figure3, figure3_heads])
def test_the_laptop_figure_alone_is_a_demonstration(example, draw):
    for scale, text in (("laptop", "demonstrates the pipeline"), ("h200", "h200 scale")):
        figure = draw(*example, task="mqar_curriculum", scale=scale)
        assert text in figure.get_suptitle()
        assert ("demonstrates" in figure.get_suptitle()) == (scale == "laptop")


def test_figure3_panels(example):
    rows, curves, chosen = example
    figure = figure3(rows, curves, chosen, task="mqar_curriculum", scale="laptop")
    window, ratio, loss = figure.axes
    assert [len(axes.lines) for axes in figure.axes] == [2, 1, 2]
    assert [line.get_label() for line in ratio.lines] == ["palimpsa_d"]
    assert (window.get_yscale(), ratio.get_yscale(), loss.get_yscale()) == ("log", "symlog", "linear")
    # Seeds train 300, 400 and 500 steps: two of three remain up to 400. The third of GLA failed:
    # both remain up to 300.
    assert [line.get_xdata()[-1] for line in loss.lines] == [400, 300]


def test_figure3_heads_has_a_line_a_head(example):
    rows, curves, chosen = example
    figure = figure3_heads(rows, curves, chosen, task="mqar_curriculum", scale="laptop")
    assert [len(axes.lines) for axes in figure.axes] == [4, 4, 4, 0]
    assert [text.get_text() for text in figure.axes[3].texts] == ["no importance\nto measure"]


def test_figure3_heads_names_a_ratio_that_is_zero(example):
    """A line along the axis would look like none."""
    rows, curves, chosen = example
    ratios = [name for name in curves if name.startswith("metaplasticity/")]
    none = curves.assign(**{name: curves[name].where(curves[name].isna(), 0.0) for name in ratios})
    figure = figure3_heads(rows, none, chosen, task="mqar_curriculum", scale="laptop")
    notes = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert notes == [[], [], ["0, without\nmetaplasticity"], ["no importance\nto measure"]]


def test_figure3_heads_has_no_line_of_another_scales_heads(example):
    """curves.csv has the columns of all scales, empty where a model has no such head."""
    rows, curves, chosen = example
    more = curves.assign(**{"window/layer7/head9": np.nan, "metaplasticity/layer7/head9": np.nan})
    figure = figure3_heads(rows, more, chosen, task="mqar_curriculum", scale="laptop")
    assert [len(axes.lines) for axes in figure.axes] == [4, 4, 4, 0]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["head 0", "head 1", "layer 0", "layer 1"]
