"""What models make of what is far away: loss by position, rare bigrams by age, phonebooks and copies by size."""

import re

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from palimpsa.analysis.draw.canvas import MAX_LABEL, figure_style, heading, new_figure
from palimpsa.analysis.language.evaluation_tables import PANELS
from palimpsa.analysis.style import ModelStyle, family_styles
from palimpsa.config.text import shortened

FIRST = "first"


def long_range_figure(rows: pd.DataFrame, *, title: str, subtitle: str) -> Figure:
    """A panel a measure, a line a model with one standard error up and down.

    Args:
        rows: of evaluation.csv. Of rare bigrams a dotted line is what they cost the first time.
    """
    styles = family_styles(set(rows["name"]))
    with figure_style():
        figure = new_figure(11.0, 7.0)
        for axes, (measure, (name, x, y)) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
            axes.set_title(name)
            axes.set_xlabel(x)
            axes.set_ylabel(y)
            own = rows.loc[rows["measure"] == measure]
            for model in dict.fromkeys(own["name"]):
                _line(axes, own.loc[own["name"] == model], styles[model])
            if own.empty:
                axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center")
            else:
                _size_axis(axes, {upper_end(at) for at in own["at"] if at != FIRST})
        handles, labels = _legend(figure)
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        heading(figure, title, subtitle)
    return figure


def _line(axes: Axes, own: pd.DataFrame, style: ModelStyle) -> None:
    first = own.loc[own["at"] == FIRST, "value"]
    if len(first):
        axes.axhline(float(first.iloc[0]), color=style.color, linestyle=":", linewidth=1)
    own = own.loc[own["at"] != FIRST]
    x = own["at"].map(upper_end).to_numpy(dtype=float)
    order = np.argsort(x)
    values, errors = (own[name].to_numpy(dtype=float)[order] for name in ("value", "stderr"))
    label = shortened(str(own["label"].iloc[0]), MAX_LABEL) if len(own) else ""
    axes.plot(x[order], values, color=style.color, linestyle=style.linestyle, marker="o", markersize=3.5, label=label)
    axes.fill_between(x[order], values - errors, values + errors, color=style.color, alpha=0.2, linewidth=0)


def _size_axis(axes: Axes, sizes: set[int]) -> None:
    """A logarithmic x axis with a tick at every second power of two, or at each where there are few."""
    ticks = sorted(sizes)[:: 2 if len(sizes) > 7 else 1]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{size:,}" for size in ticks])
    axes.xaxis.set_minor_locator(NullLocator())


def upper_end(at: str) -> int:
    """Where a point stands: at the upper end of its bin.

    >>> upper_end("3to4"), upper_end("16")
    (4, 16)
    """
    found = re.fullmatch(r"(?:\d+to)?(\d+)", at)
    if found is None:
        raise ValueError(f"at: got {at!r}, expected a number, or a range like 3to4")
    return int(found[1])


def _legend(figure: Figure) -> tuple[list, list[str]]:
    """Each model once, from whichever panel has it."""
    seen: dict[str, object] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            seen.setdefault(label, handle)
    return list(seen.values()), list(seen)
