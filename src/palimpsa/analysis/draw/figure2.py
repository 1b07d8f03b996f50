"""Figure 2 of arXiv 2602.09075: test accuracy of every model by sequence length."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from palimpsa.analysis.draw.canvas import MAX_LABEL, draw_failures, failed_mark, figure_style, heading, new_figure
from palimpsa.analysis.statistics.learning_rate import STAGE, at_chosen_rates, choice_text, finished_stages
from palimpsa.analysis.statistics.summary import VALIDATION
from palimpsa.analysis.style import ModelStyle, model_order, model_styles
from palimpsa.analysis.titles import subtitle, title
from palimpsa.config.text import shortened

_GROUP_WIDTH = 0.84
_WIDEST = 0.2
# A lower line could not be told from the axis.
_LOWEST_VISIBLE_CHANCE = 0.005


def figure2(rows: pd.DataFrame, summary: pd.DataFrame, chosen: pd.DataFrame, *, task: str, scale: str) -> Figure:
    """Test accuracy by sequence length: one bar a model, at its chosen learning rate.

    Bars are means over seeds with +-1 sample standard deviation (none for a single seed), every
    finished seed is a black dot, the median a white line; failed seeds are counted by a cross.

    Args:
        rows: rows of runs.csv of one task and scale.
        summary: `summary.summarize(rows, chosen)`.
        chosen: `learning_rate.choose_learning_rates(rows)`.
    """
    shown = summary.loc[summary["rule"] == VALIDATION]
    dots = finished_stages(at_chosen_rates(rows, chosen))
    stages = list(shown.loc[:, STAGE].drop_duplicates().sort_values(STAGE).itertuples(index=False, name=None))
    models = model_order(shown["model"].unique())
    styles = model_styles(models)
    width = min(_WIDEST, _GROUP_WIDTH / len(models))

    with figure_style():
        figure = new_figure(min(13.0, max(7.0, 2.0 + 0.36 * len(models) * len(stages))), 5.2)
        axes = figure.add_subplot()
        handles, labels = [], []
        for place, model in enumerate(models):
            own = shown.loc[shown["model"] == model]
            shift = (place - (len(models) - 1) / 2) * width
            positions = [stages.index(stage) + shift for stage in _stages_of(own)]
            _draw_bars(axes, own, positions, width, styles[model])
            for row, position in zip(own.to_dict("records"), positions, strict=True):
                at = (dots["seq_len"] == row["seq_len"]) & (dots["num_pairs"] == row["num_pairs"])
                seeds = dots.loc[at & (dots["model"] == model)].sort_values("seed")["test_accuracy"]
                _draw_seeds(axes, row, seeds.to_numpy(dtype=float), position, width)
            handles.append(_legend_patch(styles[model]))
            labels.append(_legend_label(own))
        chance = _draw_chance(axes, rows)
        axes.set_xticks(range(len(stages)), [f"{length:,}\n{pairs} pairs" for length, pairs in stages])
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.55, len(stages) - 0.45)
        # Room above 100 %, so that dots there are whole.
        axes.set_ylim(0, 1.04)
        axes.set_yticks(np.linspace(0, 1, 6))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("sequence length L (tokens)")
        axes.set_ylabel("test accuracy over the queries")
        heading(figure, title(task), subtitle(scale))
        any_failed = bool(shown["num_failed"].gt(0).any())
        caption = f"state: recurrent floats a layer and sequence; lr: learning rate, {choice_text(rows)}"
        _legend(figure, caption, handles, labels, *_mark_legend(any_failed, chance))
    return figure


def _stages_of(own: pd.DataFrame) -> list[tuple[int, int]]:
    return list(own.loc[:, STAGE].itertuples(index=False, name=None))


def _legend_patch(style: ModelStyle) -> Patch:
    return Patch(facecolor=style.color, hatch=style.hatch, edgecolor="white", linewidth=0)


def _legend_label(own: pd.DataFrame) -> str:
    sizes = sorted({int(size) for size in own["state_size"].dropna()})
    # 0: no state of a fixed size, as of attention.
    state = f"state {' to '.join(f'{size:,}' if size else 'grows' for size in sizes[:: max(1, len(sizes) - 1)])}"
    rates = own["lr"].dropna().unique()
    rate = f"lr {rates[0]:g}" if len(rates) else "no finished run"
    return " · ".join([shortened(own["label"].iloc[0], MAX_LABEL), *([state] if sizes else []), rate])


def _draw_bars(axes: Axes, own: pd.DataFrame, positions: list[float], width: float, style: ModelStyle) -> None:
    bars = axes.bar(
        positions,
        own["mean"],
        width=0.9 * width,
        color=style.color,
        hatch=style.hatch,
        edgecolor="white",
        linewidth=0,
    )
    bars.set_label(own["model"].iloc[0])
    # Dark on white: whiskers lie on dark bars too.
    for color, extra in (("white", 1.6), ("#222222", 0.0)):
        axes.errorbar(
            positions,
            own["mean"],
            yerr=own["std"].fillna(0.0),
            fmt="none",
            ecolor=color,
            elinewidth=1.2 + extra,
            capsize=3.0,
            capthick=1.2 + extra,
            zorder=3,
        )


def _draw_seeds(axes: Axes, row: dict, accuracies: np.ndarray, position: float, width: float) -> None:
    """The dots, the median and the failures of one bar."""
    half = 0.27 * width if len(accuracies) > 1 else 0.0
    spread = np.linspace(-half, half, len(accuracies))
    dots = axes.scatter(
        position + spread,
        accuracies,
        s=15,
        color="black",
        edgecolors="white",
        linewidths=0.5,
        zorder=5,
        clip_on=False,
    )
    dots.set_gid(f"seeds-{row['model']}-{row['seq_len']}")
    if len(accuracies):
        ends = [position - 0.43 * width, position + 0.43 * width]
        for color, thickness in (("black", 3.0), ("white", 1.4)):
            axes.plot(ends, [row["median"]] * 2, color=color, linewidth=thickness, zorder=4)
    draw_failures(axes, (position, 0.02), row["num_failed"])


def _draw_chance(axes: Axes, rows: pd.DataFrame) -> float | None:
    """A line at the accuracy of guessing any of the V/2 values, where V is known and it shows."""
    vocab_sizes = rows["vocab_size"].dropna().unique()
    if len(vocab_sizes) != 1 or 2 / vocab_sizes[0] < _LOWEST_VISIBLE_CHANCE:
        return None
    axes.axhline(2 / vocab_sizes[0], color="#555555", linewidth=1.0, linestyle=(0, (4, 3)), zorder=2.5)
    return float(2 / vocab_sizes[0])


def _mark_legend(any_failed: bool, chance: float | None) -> tuple[list, list[str]]:
    dot = Line2D([], [], linestyle="", marker="o", color="black", markersize=4)
    whisker = Line2D([], [], linestyle="", marker="|", color="#222222", markersize=11, mew=1.4)
    median = Patch(facecolor="white", edgecolor="black", linewidth=0.9)
    handles, labels = [dot, whisker, median], ["one seed", "mean ±1 std (bar, whisker)", "median"]
    if any_failed:
        handles, labels = [*handles, failed_mark()], [*labels, "failed seeds (not in the mean)"]
    if chance is not None:
        line = Line2D([], [], color="#555555", linewidth=1.0, linestyle=(0, (4, 3)))
        handles, labels = [*handles, line], [*labels, f"chance, {chance:.1%}"]
    return handles, labels


def _legend(
    figure: Figure, caption: str, handles: list, labels: list[str], mark_handles: list, mark_labels: list[str]
) -> None:
    """Models in one or two columns, the marks in a column of their own, below the axes."""
    columns = 1 if len(handles) <= 5 else 2
    height = max(-(-len(handles) // columns), len(mark_handles))
    # A legend fills its columns from the top: empty entries keep the marks apart.
    space = Line2D([], [], linestyle="")
    fill = columns * height - len(handles)
    rest = height - len(mark_handles)
    figure.legend(
        [*handles, *[space] * fill, *mark_handles, *[space] * rest],
        [*labels, *[""] * fill, *mark_labels, *[""] * rest],
        loc="outside lower center",
        ncols=columns + 1,
        title=caption,
        title_fontsize=8.5,
    )
