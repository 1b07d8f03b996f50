"""The paired differences of a demonstration, a panel a measure: a dot a seed, the mean, its bootstrap interval."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from palimpsa.analysis.draw.canvas import MAX_LABEL, figure_style, heading, new_figure
from palimpsa.analysis.finetuning.comparison import HIGHER_IS_BETTER, Comparison, compare
from palimpsa.analysis.finetuning.pairs import CONTINUED, CONVERTED
from palimpsa.analysis.finetuning.tables import MEASURES
from palimpsa.analysis.style import family_styles
from palimpsa.config.text import shortened


def pairs_figure(rows: pd.DataFrame) -> Figure:
    """Of the rows of one demonstration. A grey bar is what would have been found with 80% probability."""
    comparisons = compare(rows)
    measures = [name for name in MEASURES if any(one.measure == name for one in comparisons)]
    names = {one.model: one.model.rpartition("/")[2] for one in comparisons}
    styles = family_styles(set(names.values()))
    demonstration = comparisons[0].demonstration
    with figure_style():
        num_columns, num_rows = min(2, len(measures)), (len(measures) + 1) // 2
        figure = new_figure(max(8.5, 5.5 * num_columns), 1.2 + 3.0 * num_rows)
        panels = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
        for axes in panels[len(measures) :]:
            axes.remove()
        for axes, measure in zip(panels, measures, strict=False):
            own = [one for one in comparisons if one.measure == measure]
            places = list(dict.fromkeys(one.at for one in own))
            for i, model in enumerate(names):
                shown = [one for one in own if one.model == model]
                shift = 0.5 * ((i + 0.5) / len(names) - 0.5)
                _draw(axes, shown, rows, places, shift, styles[names[model]].color)
            words, factor = MEASURES[measure]
            axes.axhline(0, color="#444444", linewidth=0.8)
            axes.set_xticks(range(len(places)), places, rotation=0 if len(places) < 8 else 45)
            better = "higher" if measure in HIGHER_IS_BETTER else "lower"
            axes.set_title(f"{words}: {better} is better")
            axes.set_ylabel("converted minus trained on")
            axes.yaxis.set_major_formatter(lambda value, _, factor=factor: f"{value * factor:+g}")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        pairs = max(one.num_pairs for one in comparisons)
        told = f"{pairs} pairs a model: a dot each, the mean, its 95% bootstrap interval; grey: what is detectable"
        heading(figure, f"Converted or not, trained on for the same steps: {demonstration}", told)
    return figure


def _draw(
    axes: Axes, shown: Sequence[Comparison], rows: pd.DataFrame, places: Sequence[str], shift: float, color: str
) -> None:
    for number, one in enumerate(shown):
        x = places.index(one.at) + shift
        mine = rows.loc[(rows["model"] == one.model) & (rows["measure"] == one.measure) & (rows["at"] == one.at)]
        by_arm = mine.pivot(index="seed", columns="arm", values="value").dropna(subset=[CONTINUED, CONVERTED])
        dots = by_arm[CONVERTED] - by_arm[CONTINUED]
        if one.num_pairs > 1:
            # Of equal differences NaN, which draws nothing.
            axes.plot([x, x], [-one.detectable, one.detectable], color="#CCCCCC", linewidth=7, solid_capstyle="butt")
            axes.plot([x, x], one.bootstrap, color=color, linewidth=1.8)
        axes.plot([x] * len(dots), dots, "o", color=color, alpha=0.45, markersize=4)
        label = shortened(one.label, MAX_LABEL) if number == 0 else None
        axes.plot([x], [one.difference], "D", color=color, markersize=6, label=label)
