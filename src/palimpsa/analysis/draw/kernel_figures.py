"""Figures of the operator benchmark, from its CSV files alone: cost against length, Figure 5, cost per element."""

import math
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from palimpsa.analysis.collect.benchmarks import read_benchmark_csv
from palimpsa.analysis.collect.operator_columns import BASELINE, COLUMNS, OPERATORS
from palimpsa.analysis.draw.drawing import figure_style, heading, log_axis, new_figure, save_figure
from palimpsa.analysis.style import MODEL_STYLES, ModelStyle
from palimpsa.runs.schema import ResultError

# As the models that are built on them look in the other figures.
OPERATOR_STYLES = dict(
    zip(
        OPERATORS,
        (
            MODEL_STYLES[model]
            for model in ("palimpsa_d", "palimpsa_d_nometa", "mamba2", "gla", "gated_deltanet", "transformer")
        ),
        strict=True,
    )
)
_MARKERS = dict(zip(OPERATORS, "oosD^v", strict=True))
_GROUP_WIDTH = 0.8


def draw_all(folder: Path) -> list[Path]:
    """`draw_device` for every device that has a file in `folder`. Raises ResultError where none has."""
    slugs = {path.stem.partition("_")[2] for kind in COLUMNS for path in folder.glob(f"{kind}_*.csv")}
    if not slugs:
        raise ResultError(f"{folder}: holds no operators_*.csv or throughput_*.csv, expected those of make bench")
    return [path for slug in sorted(slugs) for path in draw_device(folder, slug)]


def draw_device(folder: Path, slug: str) -> list[Path]:
    """Writes the figures that one device's CSV files have rows for, as .png and .svg; returns their paths.

    against_length_SLUG: time and memory against sequence length; figure5_SLUG: throughput; per_element_SLUG: time per
    element of the table's shapes. Raises ResultError: a file is not what `operator_columns` says.
    """
    operators = read_benchmark_csv(folder, "operators", slug)
    throughput = read_benchmark_csv(folder, "throughput", slug)
    lengths, table = (operators.loc[operators["case"] == case] for case in ("lengths", "table"))
    figures = {}
    if not lengths.empty:
        figures["against_length"] = against_length(lengths)
    if not throughput.loc[throughput["case"] == "prefill"].empty:
        figures["figure5"] = figure5(throughput)
    if not table.empty:
        figures["per_element"] = per_element(table)
    return [path for kind, figure in figures.items() for path in save_figure(figure, folder / f"{kind}_{slug}")]


def against_length(rows: pd.DataFrame) -> Figure:
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
        for axes, (column, (name, unit)) in zip(_panels(figure, len(shown)), shown.items(), strict=True):
            for operator in _operators(rows):
                own = rows.loc[rows["operator"] == operator].sort_values("T")
                _line(axes, own, column, operator)
            length_axis(axes, rows["T"])
            log_axis(axes)
            axes.set_title(name)
            axes.set_ylabel(unit)
        tokens = int((rows["B"] * rows["T"]).iloc[0])
        heading(figure, f"Cost against sequence length, {tokens:,} tokens a call", _subtitle(rows))
        _legend(figure, rows, _sizes(rows))
    return figure


def figure5(rows: pd.DataFrame) -> Figure:
    """Thousands of tokens a second against sequence length, prefill and decode, and how many times slower than simple
    GLA. Decoding a token costs the same after any length: it is measured once and drawn as a level line.

    Args:
        rows: of throughput_SLUG.csv. Without simple GLA the ratio is to Palimpsa without metaplasticity.
    """
    prefill, decode = (rows.loc[rows["case"] == case] for case in ("prefill", "decode"))
    present = _operators(rows)
    baseline = BASELINE if BASELINE in present else "palimpsa_without_metaplasticity"
    with figure_style():
        figure = new_figure(13.2, 4.6)
        first, second, third = _panels(figure, 3)
        for operator in present:
            own = prefill.loc[prefill["operator"] == operator].sort_values("T")
            _line(first, own, "thousand_tokens_per_s", operator)
            for value in decode.loc[decode["operator"] == operator, "thousand_tokens_per_s"]:
                _level(second, value, operator, at=0.98 - 0.2 * present.index(operator))
            if operator == baseline:
                continue
            base = prefill.loc[prefill["operator"] == baseline].set_index("T")["thousand_tokens_per_s"]
            ratio = own.assign(ratio=own["T"].map(base) / own["thousand_tokens_per_s"])
            _line(third, ratio, "ratio", operator)
            for value in _decode_ratio(decode, operator, baseline):
                third.axhline(value, color=OPERATOR_STYLES[operator].color, linestyle=":", linewidth=1.4)
        third.axhline(1.0, color="#444444", linewidth=0.8)
        second_title = "Decode" if decode.empty else f"Decode, {int(decode['B'].iloc[0])} sequences at once"
        for axes, name in (
            (first, "Prefill"),
            (second, second_title),
            (third, f"Times slower than {OPERATORS[baseline]}"),
        ):
            length_axis(axes, prefill["T"])
            axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
            axes.set_title(name)
            axes.set_ylabel("ratio of tokens a second" if axes is third else "thousand tokens a second")
        heading(figure, "Throughput (Figure 5)", _subtitle(rows))
        _legend(figure, rows, f"{_sizes(rows)}. Right: solid or dashed is prefill, dotted is decode.")
    return figure


def per_element(rows: pd.DataFrame) -> Figure:
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
    operators = _operators(rows)
    width = _GROUP_WIDTH / len(operators)
    with figure_style():
        figure = new_figure(12.0, 4.8)
        for axes, (column, name) in zip(_panels(figure, 2), panels.items(), strict=True):
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
                axes.bar_label(bars, fmt=_two_digits, fontsize=7.5, padding=1)
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
        heading(figure, "Time per state element and token", _subtitle(rows))
        limit_line = Line2D([], [], color="#222222", linestyle="--", linewidth=1.2)
        label = "limit of Palimpsa's forward: one reciprocal an element"
        extra = [(limit_line, label)] if rows["limit_ps_per_element"].dropna().to_list() else []
        _legend(figure, rows, "Shorter is faster; the axis is logarithmic.", bars=True, extra=extra)
    return figure


def _panels(figure: Figure, number: int) -> list[Axes]:
    return list(figure.subplots(1, number, squeeze=False)[0])


def _operators(rows: pd.DataFrame) -> list[str]:
    found = set(rows["operator"])
    return [name for name in OPERATORS if name in found]


def _line(axes: Axes, own: pd.DataFrame, column: str, operator: str) -> None:
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


def _level(axes: Axes, value: float, operator: str, at: float) -> None:
    style = OPERATOR_STYLES[operator]
    axes.axhline(value, color=style.color, linestyle=style.linestyle, linewidth=1.8, label=operator)
    axes.annotate(
        f"{value:,.4g}",
        (at, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )


def _decode_ratio(decode: pd.DataFrame, operator: str, baseline: str) -> list[float]:
    by_operator = dict(zip(decode["operator"], decode["thousand_tokens_per_s"], strict=True))
    if not {operator, baseline} <= set(by_operator):
        return []
    return [by_operator[baseline] / by_operator[operator]]


def _two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):,g}"


def length_axis(axes: Axes, values: Iterable[int]) -> None:
    """A logarithmic x axis of sequence lengths with a tick at each."""
    lengths = sorted({int(length) for length in values})
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [_short(length) for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    margin = math.sqrt(2) if len(lengths) > 1 else 2
    axes.set_xlim(lengths[0] / margin, lengths[-1] * margin)
    axes.set_xlabel("sequence length T (tokens)")


def _short(length: int) -> str:
    return f"{length // 1024}k" if length >= 1024 and length % 1024 == 0 else f"{length:,}"


def _sizes(rows: pd.DataFrame) -> str:
    first = rows.loc[rows["operator"] != "softmax_attention"]
    row = (rows if first.empty else first).iloc[0]
    text = f"H = {row['H']}, K = {row['K']}, V = {row['V']}"
    if "softmax_attention" in set(rows["operator"]):
        text += "; softmax attention: q, k and v all V wide"
    return text


def _shape_label(rows: pd.DataFrame, shape: str) -> str:
    row = rows.loc[rows["shape"] == shape].iloc[0]
    return f"{shape}\nB {row['B']}, T {row['T']:,}\nH {row['H']}, K {row['K']}, V {row['V']}"


def _subtitle(rows: pd.DataFrame) -> str:
    days = sorted({date[:10] for date in rows["date"]})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{rows['device'].iloc[0]} · {rows['dtype'].iloc[0]} · {when}"


def _handle(style: ModelStyle, operator: str, bars: bool) -> Patch | Line2D:
    if bars:
        return Patch(facecolor=style.color, hatch=style.hatch, edgecolor="white", linewidth=0)
    look = {"marker": _MARKERS[operator], "markersize": 4.5, "linewidth": 1.8}
    return Line2D([], [], color=style.color, linestyle=style.linestyle, **look)


def _legend(
    figure: Figure,
    rows: pd.DataFrame,
    caption: str,
    *,
    bars: bool = False,
    extra: list[tuple[Line2D, str]] | None = None,
) -> None:
    operators = _operators(rows)
    entries = [(_handle(OPERATOR_STYLES[name], name, bars), OPERATORS[name]) for name in operators] + (extra or [])
    handles, labels = zip(*entries, strict=True)
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 5), title=caption, title_fontsize=8.5
    )
