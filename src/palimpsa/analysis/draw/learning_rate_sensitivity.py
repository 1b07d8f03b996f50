"""How much each model's accuracy depends on the learning rate: every rate and every seed of a sweep."""

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, NullLocator

from palimpsa.analysis.draw.canvas import (
    FAILED_COLOR,
    MAX_LABEL,
    draw_failures,
    failed_mark,
    figure_style,
    heading,
    new_figure,
)
from palimpsa.analysis.statistics.learning_rate import STAGE, choice_text, finished_stages
from palimpsa.analysis.style import ModelStyle, model_order, model_styles
from palimpsa.analysis.titles import subtitle, title
from palimpsa.config.text import shortened

POINT_COLUMNS = ["model", "lr", "seed", *STAGE, "test_accuracy"]

# Widths of panels, in inches: with all models, with one of several, with the only one.
_OVERVIEW, _PANEL, _ALONE = 2.6, 1.3, 5.6
# Below 0 %, where failed runs stand: no finished one can.
_FAILED_AT = -0.09
# Rates nearer than this share of the axis are not both labelled.
_LABEL_GAP = 0.11
_BAND_COLOR = "#E4E4E4"

_CAPTION = (
    "Test accuracy; the rate that the bars of these runs show was {choice}. Means are over the seeds that finished at "
    "a rate, and rates may differ in their number of seeds. A line breaks where every seed failed."
)


def sensitivity_points(rows: pd.DataFrame) -> pd.DataFrame:
    """What the figure draws: one row a run and stage of the figure, sorted.

    Args:
        rows: rows of runs.csv of one task and scale.

    Returns model, lr, seed, seq_len (tokens), num_pairs, test_accuracy (a fraction; NaN for a run that failed). A
    failed run stands at every stage that it was to train, also at those that it ended before it failed.
    """
    finished = finished_stages(rows).loc[:, POINT_COLUMNS]
    stages = rows.loc[rows["test_accuracy"].notna(), STAGE].drop_duplicates()
    failed = rows.loc[rows["status"] != "finished", ["model", "lr", "seed", "run_seq_len"]].drop_duplicates()
    failed = failed.merge(stages, how="cross")
    # Where one run trains one length, it failed at that one only.
    failed = failed.loc[(failed["run_seq_len"] == 0) | (failed["run_seq_len"] == failed["seq_len"])]
    points = pd.concat([finished, failed.assign(test_accuracy=np.nan).loc[:, POINT_COLUMNS]])
    return points.sort_values(POINT_COLUMNS[:-1], ignore_index=True)


def learning_rate_sensitivity(rows: pd.DataFrame, chosen: pd.DataFrame, *, task: str, scale: str) -> Figure:
    """Test accuracy by learning rate (logarithmic): a row of panels a sequence length, a column a model.

    A model's panel has a dot a finished seed, the mean over them with +-1 sample standard deviation (none for a single
    seed; cut at 0%), and below 0% a cross that counts the failed seeds of a rate. The rate that figure2 of the same
    rows shows, chosen by validation accuracy, lies in a grey band: its dots are the dots there. Where there are several
    models and rates, the first column has the means of all models, with a star at that rate.

    Args:
        rows: rows of runs.csv of one task and scale, at least one of them with a test accuracy.
        chosen: `learning_rate.choose_learning_rates(rows)`.
    """
    points = sensitivity_points(rows)
    stages = list(points.loc[:, STAGE].drop_duplicates().sort_values(STAGE).itertuples(index=False, name=None))
    models = model_order(points["model"].unique())
    styles = model_styles(models)
    chosen_lr = dict(zip(chosen["model"], chosen["lr"].to_numpy(dtype=float), strict=True))
    labels = dict(zip(chosen["model"], chosen["label"], strict=True))
    rates = np.unique(points["lr"].to_numpy(dtype=float))
    any_failed = bool(points["test_accuracy"].isna().any())
    overview = len(models) > 1 and len(rates) > 1 and bool(points["test_accuracy"].notna().any())

    with figure_style():
        widths = [_OVERVIEW] * overview + [_PANEL if len(models) > 1 else _ALONE] * len(models)
        figure = new_figure(max(7.0, 0.9 + sum(widths)), 2.4 + 1.9 * len(stages))
        grid = figure.subplots(len(stages), len(widths), sharex=True, sharey=True, squeeze=False, width_ratios=widths)
        _scale_axes(grid, points, any_failed=any_failed)
        for panels, (seq_len, num_pairs) in zip(grid, stages, strict=True):
            here = points.loc[(points["seq_len"] == seq_len) & (points["num_pairs"] == num_pairs)]
            panels[0].set_ylabel(f"L {seq_len:,}, {num_pairs:,} pairs\ntest accuracy")
            for axes, model in zip(panels[-len(models) :], models, strict=True):
                own, lr = here.loc[here["model"] == model], chosen_lr[model]
                axes.set_gid(f"{model}-{seq_len}")
                _draw_model(axes, own, lr, rates, styles[model])
                if overview:
                    _draw_mean(panels[0], own, lr, styles[model])
        for axes, model in zip(grid[0, -len(models) :], models, strict=True):
            axes.set_title(_column_title(labels[model], chosen_lr[model]), fontsize=9)
        if overview:
            grid[0, 0].set_title("all models, means", fontsize=9)
        heading(figure, f"Learning-rate sensitivity: {title(task)}", subtitle(scale))
        caption = _CAPTION.format(choice=choice_text(rows))
        _legend(
            figure,
            caption,
            {m: shortened(labels[m], MAX_LABEL) for m in models} if overview else {},
            styles,
            any_failed=any_failed,
        )
    return figure


def _column_title(label: str, chosen_lr: float) -> str:
    rate = "no finished run" if np.isnan(chosen_lr) else f"lr {chosen_lr:g}"
    words = shortened(label, MAX_LABEL).replace(" (", "\n(").splitlines()
    return "\n".join([*(textwrap.fill(part, 17) for part in words), rate])


def _scale_axes(grid: np.ndarray, points: pd.DataFrame, *, any_failed: bool) -> None:
    """Shared scales and ticks: a logarithmic axis of the rates that were tried, and one of accuracies."""
    axes = grid[0, 0]
    axes.set_xscale("log")
    # The rates of most models first: they keep their labels.
    num_models = points.loc[:, ["lr", "model"]].drop_duplicates()["lr"].value_counts()
    rates = np.array(sorted(num_models.index, key=lambda rate: (-num_models[rate], rate)))
    low, high = np.log10([rates.min(), rates.max()])
    # A single rate stands in the middle.
    margin = 0.16 * (high - low) or np.log10(2)
    axes.set_xlim(10 ** (low - margin), 10 ** (high + margin))
    labelled = _labelled_rates(rates, _LABEL_GAP * (high - low + 2 * margin))
    axes.xaxis.set_major_locator(FixedLocator(np.sort(rates).tolist()))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:g}" if rate in labelled else "")
    # Room above 100 %, so that dots there are whole.
    axes.set_ylim(2 * _FAILED_AT if any_failed else 0.0, 1.04)
    ticks = {accuracy: f"{accuracy:.0%}" for accuracy in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)}
    if any_failed:
        ticks[_FAILED_AT] = "failed"
    axes.set_yticks(list(ticks), list(ticks.values()))
    for axes in grid[:, 0]:
        for label in axes.get_yticklabels():
            label.set_color(FAILED_COLOR if label.get_text() == "failed" else "black")
    for axes in grid[-1]:
        axes.set_xlabel("learning rate", fontsize=9)
        axes.tick_params(axis="x", labelsize=8, labelrotation=60)


def _labelled_rates(rates: np.ndarray, gap: float) -> set[float]:
    """The rates, the first ones first, whose labels do not run into another's; gap in decades."""
    labelled: list[float] = []
    for rate in rates.tolist():
        if all(abs(np.log10(rate / other)) >= gap for other in labelled):
            labelled.append(rate)
    return set(labelled)


def _draw_model(axes: Axes, own: pd.DataFrame, chosen_lr: float, rates: np.ndarray, style: ModelStyle) -> None:
    """One model at one length: seeds, failures, mean and standard deviation."""
    if own.empty:
        axes.text(0.5, 0.5, "no run", transform=axes.transAxes, ha="center", va="center", color="#777777")
        return
    half = _cloud_width(rates) / 2
    if not np.isnan(chosen_lr):
        band = axes.axvspan(chosen_lr * 10 ** -(1.5 * half), chosen_lr * 10 ** (1.5 * half), color=_BAND_COLOR, lw=0)
        band.set(zorder=0.5, gid=f"chosen-{axes.get_gid()}")
    for lr in np.unique(own["lr"].to_numpy(dtype=float)):
        seeds = own.loc[own["lr"] == lr, "test_accuracy"]
        accuracies = seeds.dropna().to_numpy(dtype=float)
        spread = np.linspace(-half, half, len(accuracies)) if len(accuracies) > 1 else 0.0
        dots = axes.scatter(
            np.full(len(accuracies), lr) * 10**spread,
            accuracies,
            s=13,
            color=style.color,
            edgecolors="black",
            linewidths=0.5,
            zorder=5,
            clip_on=False,
        )
        dots.set_gid(f"seeds-{axes.get_gid()}-{lr:g}")
        draw_failures(axes, (lr, _FAILED_AT), len(seeds) - len(accuracies), beside=True)
    rate, mean, deviation = _statistics(own)
    axes.plot(rate, mean, color=style.color, linestyle=style.linestyle, linewidth=1.6, zorder=3)
    axes.errorbar(
        rate,
        mean,
        # Cut at 0 %: what lies below is for failures.
        yerr=np.array([np.fmin(deviation, mean), deviation]),
        fmt="_",
        color="#222222",
        markersize=8,
        elinewidth=1.1,
        capsize=2.5,
        capthick=1.1,
        zorder=4,
    )


def _cloud_width(rates: np.ndarray) -> float:
    """The width of the dots of one rate, in decades: far less than the distance to the next rate."""
    if len(rates) == 1:
        return 0.06
    places = np.log10(rates)
    return float(min(0.5 * np.diff(places).min(), 0.12 * (places[-1] - places[0])))


def _statistics(own: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rates, means and sample standard deviations of one model at one length (0 for a single seed).

    NaN where every seed failed: a line breaks there.
    """
    rates = np.unique(own["lr"].to_numpy(dtype=float))
    seeds = [own.loc[own["lr"] == lr, "test_accuracy"].dropna().to_numpy(dtype=float) for lr in rates]
    means = [values.mean() if len(values) else np.nan for values in seeds]
    deviations = [
        values.std(ddof=1) if len(values) > 1 else 0.0 * mean for values, mean in zip(seeds, means, strict=True)
    ]
    return rates, np.array(means), np.array(deviations)


def _draw_mean(axes: Axes, own: pd.DataFrame, chosen_lr: float, style: ModelStyle) -> None:
    """One model among all of them."""
    rate, mean, _ = _statistics(own)
    axes.plot(rate, mean, color=style.color, linestyle=style.linestyle, lw=1.6, marker=".", markersize=5, zorder=3)
    at = rate == chosen_lr
    axes.plot(rate[at], mean[at], zorder=6, **_star(style.color))


def _star(color: str) -> dict[str, Any]:
    return {"marker": "*", "markersize": 11, "color": color, "mec": "black", "mew": 0.8, "linestyle": ""}


def _legend(
    figure: Figure, caption: str, names: dict[str, str], styles: dict[str, ModelStyle], *, any_failed: bool
) -> None:
    """The models, where the overview needs them, and beside them the marks, below the panels."""
    lines: list[Any] = [
        Line2D([], [], color=styles[model].color, linestyle=styles[model].linestyle, lw=1.8, marker=".")
        for model in names
    ]
    band = Patch(facecolor=_BAND_COLOR)
    marks: dict[str, Any] = {
        "one seed": Line2D([], [], marker="o", ms=4.5, color="#BBBBBB", mec="black", mew=0.5, linestyle=""),
        "mean ±1 std (dash, whisker)": Line2D([], [], linestyle="", marker="|", color="#222222", ms=11, mew=1.4),
        "chosen rate": (band, Line2D([], [], **_star("white"))) if names else band,
    }
    if any_failed:
        marks["failed seeds (not in the mean)"] = failed_mark()
    # A legend fills its columns from the top: empty entries keep the marks apart.
    fill = -len(lines) % len(marks)
    columns = 2 if not names else (len(lines) + fill) // len(marks) + 1
    legend = figure.legend(
        [*lines, *[Line2D([], [], linestyle="")] * fill, *marks.values()],
        [*names.values(), *[""] * fill, *marks],
        loc="outside lower center",
        ncols=columns,
        title=textwrap.fill(caption, int(12.5 * figure.get_figwidth())),
        title_fontsize=8.5,
        handler_map={tuple: HandlerTuple(ndivide=None)},
    )
    legend.get_title().set_multialignment("center")
