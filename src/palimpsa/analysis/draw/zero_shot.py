"""Accuracies of zero-shot tasks with their standard errors, beside chance and what others have published."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from palimpsa.analysis.draw.canvas import MAX_LABEL, figure_style, heading, new_figure
from palimpsa.analysis.language.evaluation_tables import TASKS
from palimpsa.analysis.language.published_numbers import PUBLISHED
from palimpsa.analysis.style import family_styles
from palimpsa.config.text import shortened

ACCURACIES = ("acc", "acc_norm")
_MARKERS = "Dsv^<>ph"


def zero_shot_figure(rows: pd.DataFrame, *, title: str, subtitle: str) -> Figure:
    """A column a task, a dot a model with one standard error up and down; what is published is hollow, and says so.

    Args:
        rows: of evaluation.csv.
    """
    shown = rows.loc[rows["metric"].isin(ACCURACIES) & rows["measure"].isin(list(TASKS))]
    names = list(dict.fromkeys(shown["name"]))
    styles = family_styles(names)
    with figure_style():
        figure = new_figure(11.0, 5.0)
        axes = figure.subplots()
        places = {task: i for i, task in enumerate(TASKS)}
        for task, (_, chance) in TASKS.items():
            if chance is not None:
                axes.hlines(chance, places[task] - 0.4, places[task] + 0.4, color="#999999", linestyle=":", linewidth=1)
        handles = [Line2D([], [], color="#999999", linestyle=":", label="guessing")]
        for i, name in enumerate(names):
            own = shown.loc[shown["name"] == name]
            x = own["measure"].map(places) + _offset(i, len(names))
            handles.append(_dots(axes, x, own, styles[name].color))
        for i, one in enumerate(PUBLISHED):
            values = {task: value for (task, metric), value in one.values.items() if metric in ACCURACIES}
            (mark,) = axes.plot(
                [places[task] for task in values],
                list(values.values()),
                _MARKERS[i % len(_MARKERS)],
                mfc="none",
                mec="#444444",
                markersize=6,
                label=shortened(f"published: {one.label}, {one.size}, {one.tokens} tokens", MAX_LABEL),
            )
            handles.append(mark)
        axes.set_xticks(range(len(TASKS)), [text for text, _ in TASKS.values()], rotation=20, ha="right")
        axes.set_ylabel("accuracy (HellaSwag, ARC-c: acc_norm)")
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
        figure.legend(handles=handles, loc="outside lower center", ncols=2)
        heading(figure, title, subtitle)
    return figure


def _offset(i: int, count: int) -> float:
    return 0.0 if count == 1 else 0.5 * (i / (count - 1) - 0.5)


def _dots(axes: Axes, x: pd.Series, own: pd.DataFrame, color: str) -> Line2D:
    places, values, errors = (column.to_numpy(dtype=float) for column in (x, own["value"], own["stderr"]))
    axes.errorbar(places, values, np.nan_to_num(errors), fmt="none", ecolor=color)
    label = shortened(str(own["label"].iloc[0]), MAX_LABEL)
    (mark,) = axes.plot(places, values, "o", color=color, markersize=5, label=label)
    return mark
