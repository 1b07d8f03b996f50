"""Figure 3, head by head: one column of panels a model, one thin line a head."""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from palimpsa.analysis.draw.drawing import figure_style, heading, log_axis, new_figure, ratio_axis
from palimpsa.analysis.statistics.curves import finished_curves, mean_curve
from palimpsa.analysis.style import model_order
from palimpsa.analysis.tables import subtitle, title
from palimpsa.runs.read import head_columns

_LAYER_DASHES = ["-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1))]
_PANELS = {"window/": "$N_t$ (tokens)", "metaplasticity/": "metaplasticity ratio"}


def figure3_heads(rows: pd.DataFrame, curves: pd.DataFrame, chosen: pd.DataFrame, *, task: str, scale: str) -> Figure:
    """Memory window and metaplasticity ratio of every layer and head, mean over seeds, by step.

    Args:
        rows, curves: rows of runs.csv and curves.csv of one task and scale.
        chosen: `select_lr.choose_learning_rates(rows)`.
    """
    shown = finished_curves(rows, curves, chosen)
    by_model = chosen.set_index("model")
    # curves.csv has the columns of every scale's heads.
    columns = head_columns(shown.dropna(axis="columns", how="all"))
    places = {name: _layer_and_head(name) for name in columns}
    num_layers = max(layer for layer, _ in places.values()) + 1
    num_heads = max(head for _, head in places.values()) + 1
    # The dark two thirds: the map's yellow end cannot be read on white.
    colors = [colormaps["viridis"](0.85 * i / max(1, num_heads - 1)) for i in range(num_heads)]
    models = model_order(shown.loc[shown[columns].notna().any(axis=1), "model"].unique())
    present = [p for p in _PANELS if shown.loc[:, [c for c in columns if c.startswith(p)]].notna().any(axis=None)]

    with figure_style():
        figure = new_figure(max(5.0, 2.0 + 2.4 * len(models)), 1.9 + 2.1 * len(present))
        grid = figure.subplots(len(present), len(models), sharex="col", sharey="row", squeeze=False)
        for panel_row, prefix in zip(grid, present, strict=True):
            for axes, model in zip(panel_row, models, strict=True):
                own = shown.loc[shown["model"] == model]
                for name in (name for name in columns if name.startswith(prefix)):
                    layer, head = places[name]
                    curve = mean_curve(own, name, geometric=True)
                    if curve.empty:
                        continue
                    axes.plot(
                        curve["step"],
                        curve["mean"],
                        color=colors[head],
                        linestyle=_LAYER_DASHES[layer % len(_LAYER_DASHES)],
                        linewidth=1.0,
                    )
                note = ""
                if not axes.lines:
                    note = "no importance\nto measure"
                elif not any(np.any(line.get_ydata()) for line in axes.lines):
                    note = "0, without\nmetaplasticity"
                if note:
                    place = {"transform": axes.transAxes, "ha": "center", "va": "center"}
                    axes.text(0.5, 0.5, note, **place, color="#777777", fontsize=9)
            panel_row[0].set_ylabel(_PANELS[prefix])
            if prefix == "window/":
                log_axis(panel_row[0])
            else:
                ratio_axis(panel_row[0])
        for axes, model in zip(grid[0], models, strict=True):
            axes.set_title(f"{by_model.loc[model, 'label']}\nlr {by_model.loc[model, 'lr']:g}", fontsize=9.5)
        for axes in grid[-1]:
            axes.set_xlabel("training step")
            axes.xaxis.set_major_locator(MaxNLocator(4))
        heading(figure, f"Learning dynamics by head: {title(task)}", subtitle(scale))
        handles = [Line2D([], [], color=color) for color in colors]
        handles += [
            Line2D([], [], color="black", linestyle=_LAYER_DASHES[layer % len(_LAYER_DASHES)])
            for layer in range(num_layers)
        ]
        figure.legend(
            handles,
            [*(f"head {i}" for i in range(num_heads)), *(f"layer {i}" for i in range(num_layers))],
            loc="outside lower center",
            ncols=min(len(handles), max(4, 2 * len(models))),
            title="geometric mean over the seeds still training at that step",
            title_fontsize=8.5,
        )
    return figure


def _layer_and_head(name: str) -> tuple[int, int]:
    """(2, 11) of window/layer2/head11."""
    _, layer, head = name.split("/")
    return int(layer.removeprefix("layer")), int(head.removeprefix("head"))
