"""What all figures share: legends that fit, axes that have labels, styles."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from palimpsa.analysis.draw.canvas import log_axis, new_figure, save_figure
from palimpsa.analysis.style import MODEL_STYLES, model_styles


def test_a_figure_is_as_wide_as_its_legend(tmp_path):
    figure = new_figure(4.0, 3.0)
    figure.add_subplot()
    labels = [f"a model with a long name, number {i}" for i in range(6)]
    figure.legend([Line2D([], []) for _ in labels], labels, loc="outside lower center", ncols=3)
    save_figure(figure, tmp_path / "figure")
    box, (width, _) = figure.legends[0].get_window_extent(), figure.canvas.get_width_height()
    assert -1 <= box.x0 < box.x1 <= width + 1
    narrow = new_figure(4.0, 3.0)
    narrow.legend([Line2D([], [])], ["short"], loc="outside lower center")
    save_figure(narrow, tmp_path / "narrow")
    assert narrow.get_figwidth() == 4.0


@pytest.mark.parametrize("high", [3e3, 9e4, 2e8, 5e20])
def test_a_logarithmic_axis_has_labels_whatever_it_spans(high):
    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([0, 1], [2e3, high])
    log_axis(axes)
    figure.draw_without_rendering()
    low, top = axes.get_ylim()
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    assert 2 <= len([label for at, label in ticks if low <= at <= top and label.get_text()]) <= 15


def test_colours_are_fixed_and_distinct():
    some, more = (
        model_styles(["gla", "mine"]),
        model_styles(["palimpsa_d_nometa_k2", "mine", "gla", "mamba2"]),
    )
    assert some["gla"] == more["gla"] == MODEL_STYLES["gla"]
    assert some["mine"] == more["mine"]
    for styles in (more, model_styles(MODEL_STYLES)):
        assert len({style.color for style in styles.values()}) == len(styles)
