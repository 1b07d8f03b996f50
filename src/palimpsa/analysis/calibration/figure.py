"""Errors and what should foretell them: AUROC at each load above, reliability diagrams below, a column a model."""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from palimpsa.analysis.calibration.comparison import LoadResult, load_results, pooled_bins
from palimpsa.analysis.draw.canvas import MAX_LABEL, figure_style, heading, new_figure
from palimpsa.analysis.titles import subtitle
from palimpsa.config.text import shortened

# (signal, layer) -> its label, colour, marker and line: Okabe and Ito's colours, and no two lines alike without them.
SCORES = {
    ("variance", "sum"): ("variance, all layers", "#0072B2", "o", "-"),
    ("relative_variance", "sum"): ("relative variance, all layers", "#56B4E9", "^", "--"),
    ("confidence", ""): ("softmax: 1 - greatest probability", "#D55E00", "s", "-"),
    ("entropy", ""): ("softmax: entropy", "#E69F00", "D", "--"),
    ("age", ""): ("age of the pair, which no model is told", "#8C8C8C", "v", ":"),
}
# Of single layers: thin lines of the variance's colour.
LAYER_STYLES = ("-.", (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 3)))


def calibration_figure(rows: pd.DataFrame, bins: pd.DataFrame) -> Figure:
    """Of one scale: of calibration.csv and reliability.csv its rows."""
    results = load_results(rows)
    models = list(dict.fromkeys((one.model, one.label) for one in results))
    hardest = max((one.seq_len, one.num_pairs) for one in results)
    scale = results[0].scale
    with figure_style():
        # What the heading needs, at least.
        figure = new_figure(max(3.3 * len(models), 11.5), 7.6)
        panels = figure.subplots(2, len(models), squeeze=False, sharey="row")
        for (model, label), above, below in zip(models, panels[0], panels[1], strict=True):
            above.set_title(shortened(label, MAX_LABEL))
            _draw_auroc(above, [one for one in results if one.model == model])
            at_load = bins.loc[(bins["seq_len"] == hardest[0]) & (bins["num_pairs"] == hardest[1])]
            _draw_reliability(below, at_load.loc[at_load["model"] == model])
        panels[0][0].set_ylabel("AUROC of errors (0.5: chance)")
        panels[1][0].set_ylabel(f"wrong answers, L {hardest[0]:,}, {hardest[1]:,} pairs")
        panels[1][0].yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        num_seeds = len(set(rows["seed"]))
        seeds = "one seed" if num_seeds == 1 else f"{num_seeds} seeds"
        told = f"{subtitle(scale)}; {seeds} a model; 95% intervals: above Student's of the seeds, below Wilson's"
        heading(figure, "Does a memory's variance know its errors of recall?", told)
    return figure


def _draw_auroc(axes: Axes, results: list[LoadResult]) -> None:
    places = range(len(results))
    layers = [score for score in results[0].auroc if score[0] == "variance" and score[1] != "sum"]
    axes.axhline(0.5, color="#444444", linewidth=0.8)
    for i, score in enumerate(layers):
        values = [one.auroc[score].value for one in results]
        style = LAYER_STYLES[i % len(LAYER_STYLES)]
        label = f"variance, layer {int(score[1]) + 1}"
        axes.plot(places, values, color="#0072B2", linewidth=1.0, linestyle=style, alpha=0.7, label=label)
    for score, (label, color, marker, line) in SCORES.items():
        if score not in results[0].auroc:
            continue
        means = [one.auroc[score] for one in results]
        drawn = {"color": color, "marker": marker, "linestyle": line, "markersize": 4, "label": label}
        axes.plot(places, [mean.value for mean in means], **drawn)
        for place, mean in zip(places, means, strict=True):
            if not math.isnan(mean.low):
                axes.plot([place, place], [mean.low, mean.high], color=color, linewidth=1.0, alpha=0.5)
    names = [f"{one.seq_len:,}\n{one.num_pairs:,} pairs" for one in results]
    axes.set_xticks(list(places), names)
    if all(math.isnan(mean.value) for one in results for mean in one.auroc.values()):
        why = "no AUROC: all answers\nare right, or all are wrong"
        axes.text(0.5, 0.75, why, ha="center", va="center", transform=axes.transAxes)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0.0, 1.02)


def _draw_reliability(axes: Axes, bins: pd.DataFrame) -> None:
    for score, (_, color, marker, line) in SCORES.items():
        own = pooled_bins(bins.loc[(bins["signal"] == score[0]) & (bins["layer"] == score[1])])
        if own.empty:
            continue
        number = own["bin"] + 1
        axes.vlines(number, own["low"], own["high"], color=color, linewidth=1.0)
        axes.plot(number, own["share"], color=color, marker=marker, linestyle=line, markersize=4)
    axes.set_xlabel("bin of the score, the surest first")
    axes.set_ylim(-0.02, 1.02)
