"""What the operators of the benchmark cost: time and memory against sequence length, and time per element."""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from palimpsa.analysis.collect.benchmark_columns import OPERATORS
from palimpsa.analysis.draw.canvas import figure_style, heading, length_axis, log_axis, new_figure, origin_line
from palimpsa.analysis.style import MODEL_STYLES, ModelStyle
from palimpsa.config.text import shortened

# Those of the models that are built on them, in the other figures.
OPERATOR_STYLES = dict(
    zip(
        OPERATORS,
        (
            MODEL_STYLES[model]
            for model in (
                *("palimpsa_d", "palimpsa_m", "palimpsa_d_scalar", "palimpsa_d_nometa"),
                *("mamba2", "gla", "gated_deltanet", "transformer"),
            )
        ),
        strict=True,
    )
)
_MARKERS = dict(zip(OPERATORS, "oXPosD^v", strict=True))
_GROUP_WIDTH = 0.8
# Of a legend.
_MAX_COLUMNS = 5
_MAX_SHAPE_NAME = 20


def cost_against_length(rows: pd.DataFrame) -> Figure:
    """Time of a forward, time and peak memory of a forward and backward, against sequence length, both axes
    logarithmic, one line an operator. Without memory (on a CPU) its panel is left out.

    Args:
        rows: of case `lengths`.
    """
    panels = {
        "forward_ms": ("Forward", "ms"),
        "forward_backward_ms": ("Forward and backward", "ms"),
        "peak_memory_mib": ("Peak memory, forward and backward", "MiB beyond the inputs"),
    }
    shown = {column: words for column, words in panels.items() if rows[column].dropna().to_list()}
    with figure_style():
        figure = new_figure(4.4 * len(shown), 4.6)
        for axes, (column, (name, unit)) in zip(panels_in_a_row(figure, len(shown)), shown.items(), strict=True):
            for operator in operators_in(rows):
                own = rows.loc[rows["operator"] == operator].sort_values("T")
                draw_operator_line(axes, own, column, operator)
            length_axis(axes, rows["T"])
            log_axis(axes)
            axes.set_title(name)
            axes.set_ylabel(unit)
        tokens = int((rows["B"] * rows["T"]).iloc[0])
        heading(figure, f"Cost against sequence length, {tokens:,} tokens a call", benchmark_subtitle(rows))
        operator_legend(figure, rows, sizes_text(rows))
    return figure


def time_per_element(rows: pd.DataFrame) -> Figure:
    """Picoseconds an element (B T H K V of them) of the table's shapes, forward and forward with backward, and the
    limit of one reciprocal an element.

    Args:
        rows: of case `table`.
    """
    panels = {
        "forward_ps_per_element": "Forward",
        "forward_backward_ps_per_element": "Forward and backward",
    }
    shapes = list(dict.fromkeys(rows["shape"]))
    operators = operators_in(rows)
    width = _GROUP_WIDTH / len(operators)
    with figure_style():
        # A bar is as wide as the number on it.
        figure = new_figure(max(12.0, 3.2 * len(operators)), 4.8)
        for axes, (column, name) in zip(panels_in_a_row(figure, 2), panels.items(), strict=True):
            for place, operator in enumerate(operators):
                own = rows.loc[rows["operator"] == operator]
                shift = (place - (len(operators) - 1) / 2) * width
                positions = [shapes.index(shape) + shift for shape in own["shape"]]
                style = OPERATOR_STYLES[operator]
                bars = axes.bar(
                    positions,
                    own[column],
                    width=0.92 * width,
                    color=style.color,
                    hatch=style.hatch,
                    edgecolor="white",
                    linewidth=0,
                )
                axes.bar_label(bars, fmt=_two_significant_digits, fontsize=7.5, padding=1)
            axes.set_xticks(range(len(shapes)), [_shape_label(rows, shape) for shape in shapes])
            axes.tick_params(axis="x", length=0, labelsize=8.5)
            log_axis(axes)
            # Bars on a logarithmic axis start where it does: well below the shortest, or it would look like nothing.
            low, high = min(rows[column].to_list()), max(rows[column].to_list())
            axes.set_ylim(low / 2.5, high * 1.6)
            axes.set_title(name)
            axes.set_ylabel("picoseconds an element (B T H K V)")
            limits = rows["limit_ps_per_element"].dropna().to_list()
            if column == "forward_ps_per_element" and limits:
                limit = limits[0]
                axes.axhline(limit, color="#222222", linestyle="--", linewidth=1.2)
                axes.set_ylim(bottom=min(low / 2.5, limit / 1.6))
        heading(figure, "Time per state element and token", benchmark_subtitle(rows))
        limit_line = Line2D([], [], color="#222222", linestyle="--", linewidth=1.2)
        label = "limit of Palimpsa's forward: one reciprocal an element"
        extra = [(limit_line, label)] if rows["limit_ps_per_element"].dropna().to_list() else []
        operator_legend(figure, rows, "Shorter is faster; the axis is logarithmic.", bars=True, extra=extra)
    return figure


def panels_in_a_row(figure: Figure, number: int) -> list[Axes]:
    return list(figure.subplots(1, number, squeeze=False)[0])


def operators_in(rows: pd.DataFrame) -> list[str]:
    """The operators that these rows measured, in the order of figures."""
    found = set(rows["operator"])
    return [name for name in OPERATORS if name in found]


def draw_operator_line(axes: Axes, own: pd.DataFrame, column: str, operator: str) -> None:
    """`column` against T, from the rows of one operator."""
    style = OPERATOR_STYLES[operator]
    axes.plot(
        own["T"],
        own[column],
        color=style.color,
        linestyle=style.linestyle,
        marker=_MARKERS[operator],
        markersize=4.5,
        linewidth=1.8,
        label=operator,
    )


def _two_significant_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):,g}"


def sizes_text(rows: pd.DataFrame) -> str:
    """The sizes that a figure against length holds fixed."""
    first = rows.loc[rows["operator"] != "softmax_attention"]
    row = (rows if first.empty else first).iloc[0]
    text = f"H = {row['H']}, K = {row['K']}, V = {row['V']}"
    if "softmax_attention" in set(rows["operator"]):
        text += "; softmax attention: q, k and v all V wide"
    return text


def _shape_label(rows: pd.DataFrame, shape: str) -> str:
    row = rows.loc[rows["shape"] == shape].iloc[0]
    return (
        f"{shortened(shape, _MAX_SHAPE_NAME)}\nB {row['B']}, T {row['T']:,}\nH {row['H']}, K {row['K']}, V {row['V']}"
    )


def benchmark_subtitle(rows: pd.DataFrame) -> str:
    """Where and when these rows were measured."""
    return origin_line(rows["device"].iloc[0], rows["dtype"].iloc[0], rows["date"])


def _legend_handle(style: ModelStyle, operator: str, bars: bool) -> Patch | Line2D:
    if bars:
        return Patch(facecolor=style.color, hatch=style.hatch, edgecolor="white", linewidth=0)
    marker = {"marker": _MARKERS[operator], "markersize": 4.5}
    return Line2D([], [], color=style.color, linestyle=style.linestyle, linewidth=1.8, **marker)


def operator_legend(
    figure: Figure,
    rows: pd.DataFrame,
    caption: str,
    *,
    bars: bool = False,
    extra: list[tuple[Line2D, str]] | None = None,
) -> None:
    """The operators of these rows below the axes, under a caption; `bars` as patches, else as lines; then `extra`."""
    operators = operators_in(rows)
    entries = [(_legend_handle(OPERATOR_STYLES[name], name, bars), OPERATORS[name]) for name in operators] + (
        extra or []
    )
    handles, labels = zip(*entries, strict=True)
    num_rows = math.ceil(len(labels) / _MAX_COLUMNS)
    num_columns = math.ceil(len(labels) / num_rows)
    figure.legend(handles, labels, loc="outside lower center", ncols=num_columns, title=caption, title_fontsize=8.5)
