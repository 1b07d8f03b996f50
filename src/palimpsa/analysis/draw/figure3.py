"""Figure 3 of arXiv 2602.09075: memory window, metaplasticity ratio and loss during training; also head by head."""

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from palimpsa.analysis.draw.canvas import MAX_LABEL, figure_style, heading, log_axis, new_figure, ratio_axis
from palimpsa.analysis.statistics.learning_curves import finished_curves, mean_curve
from palimpsa.analysis.style import ModelStyle, model_order, model_styles
from palimpsa.analysis.titles import subtitle, title
from palimpsa.config.text import shortened
from palimpsa.runs.read import head_columns

_CAPTION = (
    "Line: mean over the seeds still training at that step (of windows and ratios the geometric mean); band: ±1 std. A "
    "stage may end early,\nand the loss jumps where a longer one begins. So seeds differ in length: a curve stops "
    "where fewer than half of them, or only one, remain.\nThe ratio is 0 without metaplasticity, and its axis linear "
    "below 1; the other baselines have no importance."
)
_MAX_PANEL_TITLE = 32
_LAYER_DASHES = ["-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1))]
_HEAD_PANELS = {"window/": "$N_t$ (tokens)", "metaplasticity/": "metaplasticity ratio"}


def figure3(rows: pd.DataFrame, curves: pd.DataFrame, chosen: pd.DataFrame, *, task: str, scale: str) -> Figure:
    """Learning dynamics: memory window, metaplasticity ratio and training loss by training step.

    Mean and +-1 std over the finished seeds at each model's chosen learning rate, as far as
    `learning_curves.mean_curve` draws them; of the window the geometric mean, since a head that never forgets
    has one of any size, and of the ratio, which differs by decades as well. Models without the quantity
    have no line in its panel.

    Args:
        rows, curves: rows of runs.csv and curves.csv of one task and scale.
        chosen: `learning_rate.choose_learning_rates(rows)`.
    """
    shown = finished_curves(rows, curves, chosen)
    by_model = chosen.set_index("model")
    models = model_order(shown["model"].unique())
    styles = model_styles(rows["model"].unique())
    panels = {
        "window_mean": ("Memory window", "$N_t$ (tokens), mean over the context"),
        "metaplasticity_mean": (
            "Metaplasticity ratio",
            r"$(I_{\max} - I_{\min})\,/\,I_{\min}$ of the final importance",
        ),
        "loss": ("Training loss", "cross-entropy (nats a query)"),
    }
    with figure_style():
        figure = new_figure(12.5, 4.9)
        for axes, (column, (name, unit)) in zip(figure.subplots(1, 3), panels.items(), strict=True):
            for model in models:
                _draw_curve(axes, shown.loc[shown["model"] == model], column, styles[model], model)
            if column == "window_mean" and axes.lines:
                log_axis(axes)
            elif column == "metaplasticity_mean":
                ratio_axis(axes)
            else:
                axes.set_ylim(bottom=0)
            if not axes.lines:
                axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center")
            axes.set_title(name)
            axes.set_xlabel("training step")
            axes.set_ylabel(unit, parse_math=True)
        heading(figure, f"Learning dynamics: {title(task)}", subtitle(scale))
        handles = [Line2D([], [], color=styles[m].color, linestyle=styles[m].linestyle, linewidth=1.8) for m in models]
        legend = figure.legend(
            handles,
            [f"{shortened(by_model.loc[m, 'label'], MAX_LABEL)} · lr {by_model.loc[m, 'lr']:g}" for m in models],
            loc="outside lower center",
            ncols=min(len(models), 5 if len(models) <= 5 else 4) or 1,
            title=_CAPTION,
            title_fontsize=8.5,
        )
        legend.get_title().set_multialignment("center")
    return figure


def _draw_curve(axes: Axes, own: pd.DataFrame, column: str, style: ModelStyle, model: str) -> None:
    curve = mean_curve(own, column, geometric=column != "loss")
    if curve.empty:
        return
    axes.plot(
        curve["step"],
        curve["mean"],
        color=style.color,
        linestyle=style.linestyle,
        linewidth=1.8,
        label=model,
    )
    band = curve.loc[curve["low"].notna()]
    # None of the three can be below 0.
    axes.fill_between(
        band["step"], np.maximum(band["low"], 0), band["high"], color=style.color, alpha=0.15, linewidth=0
    )


def figure3_heads(rows: pd.DataFrame, curves: pd.DataFrame, chosen: pd.DataFrame, *, task: str, scale: str) -> Figure:
    """Memory window and metaplasticity ratio of every layer and head, mean over seeds, by step.

    Args:
        rows, curves: rows of runs.csv and curves.csv of one task and scale.
        chosen: `learning_rate.choose_learning_rates(rows)`.
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
    present = [p for p in _HEAD_PANELS if shown.loc[:, [c for c in columns if c.startswith(p)]].notna().any(axis=None)]

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
                reason = ""
                if not axes.lines:
                    reason = "no importance\nto measure"
                elif not any(np.any(line.get_ydata()) for line in axes.lines):
                    reason = "0, without\nmetaplasticity"
                if reason:
                    place = {"transform": axes.transAxes, "ha": "center", "va": "center"}
                    axes.text(0.5, 0.5, reason, **place, color="#777777", fontsize=9)
            panel_row[0].set_ylabel(_HEAD_PANELS[prefix], parse_math=True)
            if prefix == "window/":
                log_axis(panel_row[0])
            else:
                ratio_axis(panel_row[0])
        for axes, model in zip(grid[0], models, strict=True):
            label = shortened(by_model.loc[model, "label"], _MAX_PANEL_TITLE)
            axes.set_title(f"{label}\nlr {by_model.loc[model, 'lr']:g}", fontsize=9.5)
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
