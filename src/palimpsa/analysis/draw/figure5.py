"""Figure 5 of arXiv 2602.09075: throughput of prefill and decode against sequence length."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from palimpsa.analysis.collect.benchmark_columns import BASELINE, OPERATORS
from palimpsa.analysis.draw.canvas import figure_style, heading, length_axis, log_axis, new_figure
from palimpsa.analysis.draw.operator_speed import (
    OPERATOR_STYLES,
    benchmark_subtitle,
    draw_operator_line,
    operator_legend,
    operators_in,
    panels_in_a_row,
    sizes_text,
)
from palimpsa.analysis.statistics.throughput_limits import with_limits

_LIMIT_LINE = {"linestyle": (0, (3, 2)), "linewidth": 1.0}


def figure5(rows: pd.DataFrame, operators: pd.DataFrame) -> Figure:
    """Thousands of tokens a second against sequence length, prefill and decode, beside what the device could reach with
    Palimpsa, and how many times slower than simple GLA. Decoding a token costs the same after any length: it is
    measured once and drawn as a level line.

    Args:
        rows: of throughput_SLUG.csv. Without simple GLA the ratio is to Palimpsa without metaplasticity.
        operators: of operators_SLUG.csv, which limits come from: see `throughput_limits`.
    """
    prefill, decode = (rows.loc[rows["case"] == case] for case in ("prefill", "decode"))
    present, limits = operators_in(rows), with_limits(rows, operators)
    baseline = BASELINE if BASELINE in present else "palimpsa_without_metaplasticity"
    with figure_style():
        figure = new_figure(13.2, 4.6)
        prefill_axes, decode_axes, ratio_axes = panels_in_a_row(figure, 3)
        for operator in present:
            own = prefill.loc[prefill["operator"] == operator].sort_values("T")
            draw_operator_line(prefill_axes, own, "thousand_tokens_per_s", operator)
            for value in decode.loc[decode["operator"] == operator, "thousand_tokens_per_s"]:
                _draw_level(decode_axes, value, operator, label_at=0.98 - 0.2 * present.index(operator))
            if operator == baseline:
                continue
            base = prefill.loc[prefill["operator"] == baseline].set_index("T")["thousand_tokens_per_s"]
            ratio = own.assign(ratio=own["T"].map(base) / own["thousand_tokens_per_s"])
            draw_operator_line(ratio_axes, ratio, "ratio", operator)
            for value in _decode_ratio(decode, operator, baseline):
                ratio_axes.axhline(value, color=OPERATOR_STYLES[operator].color, linestyle=":", linewidth=1.4)
        _draw_limits(prefill_axes, decode_axes, limits)
        ratio_axes.axhline(1.0, color="#444444", linewidth=0.8)
        decode_title = "Decode" if decode.empty else f"Decode, {int(decode['B'].iloc[0])} sequences at once"
        for axes, name in (
            (prefill_axes, "Prefill"),
            (decode_axes, decode_title),
            (ratio_axes, f"Times slower than {OPERATORS[baseline]}"),
        ):
            length_axis(axes, prefill["T"])
            if axes is ratio_axes:
                axes.set_ylim(0, 1.06 * axes.get_ylim()[1])
            else:
                log_axis(axes)
            axes.set_title(name)
            axes.set_ylabel("ratio of tokens a second" if axes is ratio_axes else "thousand tokens a second")
        heading(figure, "Throughput (Figure 5)", benchmark_subtitle(rows))
        caption = f"{sizes_text(rows)}. Right: solid or dashed is prefill, dotted is decode.{_limits_text(limits)}"
        limited = operators_in(limits)
        lines = [Line2D([], [], color=OPERATOR_STYLES[name].color, **_LIMIT_LINE) for name in limited]
        labels = [f"limit of {OPERATORS[name]}" for name in limited]
        operator_legend(figure, rows, caption, extra=list(zip(lines, labels, strict=True)))
    return figure


def _draw_limits(prefill_axes: Axes, decode_axes: Axes, limits: pd.DataFrame) -> None:
    for operator in operators_in(limits):
        style: Any = {"color": OPERATOR_STYLES[operator].color, "label": f"limit of {operator}", **_LIMIT_LINE}
        own = limits.loc[limits["operator"] == operator].sort_values("T")
        prefill = own.loc[own["case"] == "prefill"]
        if not prefill.empty:
            prefill_axes.plot(prefill["T"], prefill["limit"], **style)
        for value in own.loc[own["case"] == "decode", "limit"]:
            decode_axes.axhline(value, **style)


def _limits_text(limits: pd.DataFrame) -> str:
    """What the limits are, on a line of its own; nothing where there are none."""
    of_prefill = {
        "palimpsa": "one reciprocal an entry of the memory",
        "palimpsa_scalar": "with one precision a head, inputs, output and state at the bandwidth of a copy",
    }
    prefill = [of_prefill[name] for name in operators_in(limits.loc[limits["case"] == "prefill"])]
    parts = [f"Prefill: {'; '.join(prefill)}."] if prefill else []
    if "decode" in set(limits["case"]):
        parts.append("Decode: the state at the bandwidth of a copy.")
    return "\n" + " ".join(["Thin lines, the device's limit.", *parts]) if parts else ""


def _draw_level(axes: Axes, value: float, operator: str, *, label_at: float) -> None:
    style = OPERATOR_STYLES[operator]
    axes.axhline(value, color=style.color, linestyle=style.linestyle, linewidth=1.8, label=operator)
    axes.annotate(
        f"{value:,.4g}",
        (label_at, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        # Levels may be as near to each other as their labels are high.
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
        zorder=5,
    )


def _decode_ratio(decode: pd.DataFrame, operator: str, baseline: str) -> list[float]:
    by_operator = dict(zip(decode["operator"], decode["thousand_tokens_per_s"], strict=True))
    if not {operator, baseline} <= set(by_operator):
        return []
    return [by_operator[baseline] / by_operator[operator]]
