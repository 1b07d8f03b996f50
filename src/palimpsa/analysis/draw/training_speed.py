"""What a training step of each model costs, from the CSV file of the training benchmark."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from palimpsa.analysis.draw.canvas import (
    MAX_LABEL,
    figure_style,
    heading,
    length_axis,
    log_axis,
    new_figure,
    origin_line,
)
from palimpsa.analysis.style import model_order, model_styles
from palimpsa.config.text import shortened

_MARKERS = "os^Dv<>pP*X"


def training_speed(rows: pd.DataFrame) -> Figure:
    """Time of a training step against sequence length, both axes logarithmic, one line a model; where it was measured,
    the GPU's busy share beside it.

    Args:
        rows: of steps_SLUG.csv.
    """
    panels = {"ms_per_step": ("A training step", "ms"), "busy_share": ("GPU busy", "share of the time")}
    shown = {column: words for column, words in panels.items() if rows[column].dropna().to_list()}
    models = model_order(rows["model"])
    with figure_style():
        figure = new_figure(3.4 + 4.2 * len(shown), 5.0)
        for axes, (column, (name, unit)) in zip(
            figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True
        ):
            for model in models:
                _draw_line(axes, rows, column, model)
            length_axis(axes, rows["seq_len"])
            axes.set_title(name)
            axes.set_ylabel(unit)
            if column == "busy_share":
                axes.set_ylim(0, max(1.0, *rows[column].dropna()) * 1.02)
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            else:
                log_axis(axes)
        subtitle = origin_line(rows["device"].iloc[0], rows["precision"].iloc[0], rows["date"])
        heading(figure, f"Training speed at scale {rows['scale'].iloc[0]}", subtitle)
        labels = dict(zip(rows["model"], rows["label"], strict=True))
        figure.legend(
            [_legend_handle(model, models) for model in models],
            [shortened(labels[model], MAX_LABEL) for model in models],
            loc="outside lower center",
            ncols=min(len(models), 4),
            title=_caption(rows),
            title_fontsize=8.5,
        )
    return figure


def _draw_line(axes: Axes, rows: pd.DataFrame, column: str, model: str) -> None:
    own = rows.loc[rows["model"] == model].sort_values("seq_len")
    line = _legend_handle(model, model_order(rows["model"]))
    axes.plot(
        own["seq_len"],
        own[column],
        color=line.get_color(),
        linestyle=line.get_linestyle(),
        marker=line.get_marker(),
        markersize=4.5,
        linewidth=1.8,
        label=model,
    )


def _legend_handle(model: str, models: list[str]) -> Line2D:
    style = model_styles(models)[model]
    marker = _MARKERS[models.index(model) % len(_MARKERS)]
    return Line2D([], [], color=style.color, linestyle=style.linestyle, marker=marker, markersize=4.5, linewidth=1.8)


def _caption(rows: pd.DataFrame) -> str:
    return (
        f"Mean of {int(rows['num_steps'].iloc[0]):,} steps of {_tokens_text(rows)} tokens, with the logging, probes, "
        "validations and checkpoints among them."
    )


def _tokens_text(rows: pd.DataFrame) -> str:
    sizes = sorted({int(size) for size in rows["tokens_per_step"]})
    return f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
