"""One picture of one head: what did it keep?"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from palimpsa.analysis.draw.canvas import figure_style, heading, log_axis, new_figure
from palimpsa.analysis.memory.inspection_file import shown_head
from palimpsa.analysis.style import MODEL_STYLES
from palimpsa.config.text import one_line, shortened

BLUE, ORANGE = MODEL_STYLES["palimpsa_d"].color, MODEL_STYLES["palimpsa_m"].color
# Tokens of a line of text, of a short and of a long one, and lines: of what is too long the end is drawn, which shows
# what is left.
PER_LINE, PER_LONG_LINE, MAX_LINES = 32, 48, 6
# Characters of a token.
PIECE = 5


def memory_picture(content: dict[str, Any]) -> Figure:
    """The head of an inspection that it says is shown: its text, what reads from what, its importance and its curves.

    Args:
        content: of `read_inspection`.
    """
    head = shown_head(content)
    details, has_importance = head["details"], content["model"]["has_importance"]
    lines = _lines(len(content["sequence"]["pieces"]))[1]
    with figure_style():
        figure = new_figure(11.6, 7.5 + 0.34 * lines)
        rows = figure.add_gridspec(3, 1, height_ratios=[0.34 * lines + 0.5, 4.3, 2.3])
        _draw_text(figure.add_subplot(rows[0]), content, head)
        maps = rows[1].subgridspec(1, 2)
        _draw_attribution(figure.add_subplot(maps[0]), content, head)
        if has_importance:
            _draw_importance(figure.add_subplot(maps[1]), content, details)
        else:
            _say_nothing(figure.add_subplot(maps[1]), "this model has no importances")
        curves = rows[2].subgridspec(1, 4)
        axes = [figure.add_subplot(curves[i]) for i in range(4)]
        _draw_curves(axes, content, head)
        place = f"layer {head['layer']}, head {head['head']}"
        heading(figure, f"What did {place} of {_label(content)} keep?", _told(content))
    return figure


def _label(content: dict[str, Any]) -> str:
    return shortened(one_line(content["model"]["label"]), 40)


def _told(content: dict[str, Any]) -> str:
    sequence, queries, training = content["sequence"], content["queries"], content["model"]["training"]
    parts = [f"{len(sequence['pieces']):,} tokens"]
    if queries is not None:
        right = sum(a == b for a, b in zip(queries["answers"], queries["labels"], strict=True))
        parts = [f"associative recall, {parts[0]}: {right} of {len(queries['labels'])} queries answered rightly"]
    elif sequence.get("num_cut"):
        parts.append(f"{sequence['num_cut']:,} more cut")
    if training.get("steps"):
        parts.append(f"{training['steps']:,} steps")
    if training.get("scale") == "laptop":
        parts.append("laptop scale, one seed: a demonstration")
    return " · ".join(parts)


def _draw_text(axes: Axes, content: dict[str, Any], head: dict[str, Any]) -> None:
    """Tokens on a ground the darker the more of what is left at the end is theirs."""
    pieces = content["sequence"]["pieces"]
    shares = np.array(head["details"]["consolidation"], dtype=float) * len(pieces)
    width, lines = _lines(len(pieces))
    # A line begins at a multiple of its width.
    first = max(0, -(-len(pieces) // width) - lines) * width
    ground = np.full((lines, width), np.nan)
    ground.flat[: len(pieces) - first] = shares[first:]
    most = max(2.0, float(np.nanmax(shares)))
    image = axes.imshow(ground, cmap="Blues", vmin=0, vmax=most, aspect="auto")
    marks = _marks(content["queries"])
    for i in range(first, len(pieces)):
        place, share = ((i - first) % width, (i - first) // width), shares[i]
        text = shortened(one_line(pieces[i]) or "␣", PIECE)
        axes.text(
            *place,
            f"{text}{marks.get(i, '')}",
            ha="center",
            va="center",
            fontsize=7.5,
            fontweight="bold" if share >= 1 else "normal",
            color="white" if share > 0.55 * most else "#222222",
        )
    axes.set_xticks([])
    axes.set_yticks(range(lines), [str(first + width * i) for i in range(lines)], fontsize=8)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    of_what = "importance" if content["model"]["has_importance"] else "memory"
    more = f"; {first:,} earlier tokens are not drawn" if first else ""
    asked = "; ? asks, ✗ is answered wrongly" if marks else ""
    axes.set_title(
        f"Consolidated tokens: each one's share of the {of_what} left at the end; bold: an equal share and more"
        f"{asked}{more}",
        loc="left",
    )
    bar = axes.figure.colorbar(image, ax=axes, pad=0.01, fraction=0.012, aspect=8)
    ticks = {0: "0", most: f"{most:.1f}"} | ({1: "1"} if most < 5 else {})
    bar.set_ticks(list(ticks), labels=list(ticks.values()))
    bar.set_label("× equal", fontsize=8)


def _lines(num_tokens: int) -> tuple[int, int]:
    """Tokens of a line, and how many lines are drawn."""
    width = PER_LINE if num_tokens <= 2 * PER_LINE else PER_LONG_LINE
    return width, min(MAX_LINES, -(-num_tokens // width))


def _marks(queries: dict[str, Any] | None) -> dict[int, str]:
    """What stands behind a query's token."""
    if queries is None:
        return {}
    found = zip(queries["positions"], queries["answers"], queries["labels"], strict=True)
    return {t: "?" if answer == label else "✗" for t, answer, label in found}


def _draw_attribution(axes: Axes, content: dict[str, Any], head: dict[str, Any]) -> None:
    triangle, edges = head["details"]["attribution"], content["sequence"]["edges"]
    columns = len(triangle)
    cells = np.full((columns, columns), np.nan)
    for row, values in enumerate(triangle):
        cells[row, : row + 1] = values
    image = axes.pcolormesh(edges, edges, cells, cmap="RdBu", norm=Normalize(-0.6, 0.6), rasterized=True)
    axes.invert_yaxis()
    axes.grid(False)
    axes.set_xlabel("written by token")
    axes.set_ylabel("read by token")
    title = "Who reads from whom: each token's share of an output"
    queries = content["queries"]
    if queries is not None:
        boxes = zip(queries["positions"], queries["stored"], queries["last_writer"], strict=True)
        outlines = [
            [(value, t), (last + 1, t), (last + 1, t + 1), (value, t + 1), (value, t)] for t, (_, value), last in boxes
        ]
        axes.add_collection(LineCollection(outlines, colors=ORANGE, linewidths=1.1))
        own = head["own_pair"]["share"]
        title += f"\n{own:.0%} of queries read their own pair (outlined); {queries['chance']:.0%} would by chance"
    axes.set_title(title, loc="left")
    _color_bar(axes, image).ax.yaxis.set_major_formatter(PercentFormatter(1))


def _draw_importance(axes: Axes, content: dict[str, Any], details: dict[str, Any]) -> None:
    rows, edges = np.array(details["importance"], dtype=float), content["sequence"]["edges"]
    low, high = float(rows.min()), float(rows.max())
    norm = LogNorm(low, high) if 0 < low < high else Normalize(low, high)
    image = axes.pcolormesh(edges, range(len(rows) + 1), rows, cmap="cividis", norm=norm, rasterized=True)
    axes.invert_yaxis()
    axes.grid(False)
    axes.set_yticks([])
    axes.set_xlabel("after token")
    axes.set_ylabel("entries, the most important at the end first")
    axes.set_title("Importance of the memory's entries", loc="left")
    bar = _color_bar(axes, image)
    if isinstance(norm, LogNorm):
        log_axis(bar.ax)


def _color_bar(axes: Axes, image: ScalarMappable) -> Colorbar:
    bar = axes.figure.colorbar(image, ax=axes, pad=0.015, fraction=0.046)
    bar.ax.tick_params(labelsize=8)
    return bar


def _say_nothing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", color="#666666")
    axes.set_axis_off()


def _draw_curves(axes: list[Axes], content: dict[str, Any], head: dict[str, Any]) -> None:
    details, edges = head["details"], content["sequence"]["edges"]
    middle = [(start + end - 1) / 2 for start, end in pairwise(edges)]
    window, step, variance, recall = axes
    for one, curve, title in (
        (window, details["window"], "Memory window $N_t$ (tokens)"),
        (variance, details["variance"], "Variance of the output"),
    ):
        values = _numbers(curve)
        one.plot(middle, values, color=BLUE, linewidth=1.3)
        one.set_title(title, loc="left", parse_math=True)
        if np.nanmin(np.append(values, np.inf)) > 0 and np.isfinite(values).any():
            log_axis(one)
    least, mean, most = (_numbers(details["step_size"][key]) for key in ("least", "mean", "most"))
    step.fill_between(middle, least, most, color=BLUE, alpha=0.2, linewidth=0, label="least to most")
    step.plot(middle, mean, color=BLUE, linewidth=1.3, label="mean")
    step.set_title("Step size 1 / importance", loc="left")
    step.set_ylim(bottom=0)
    step.legend()
    values = _numbers(details["recall_by_age"])
    known = np.isfinite(values)
    recall.plot(np.array(middle)[known], values[known], color=BLUE, linewidth=1.3)
    if head["recall_at_once"] is not None:
        half = content["recalled"] * head["recall_at_once"]
        recall.axhline(half, color="#666666", linewidth=0.9, linestyle="--")
    recall.set_ylim(bottom=min(0.0, float(np.nanmin(np.append(values, 0.0)))))
    recall.set_title(_recall_title(head["recalled_age"]), loc="left")
    for one, label in ((window, "token"), (step, "token"), (variance, "token"), (recall, "age (tokens)")):
        one.set_xlabel(label)
        one.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    recall.set_ylabel("own share of the answer")


def _recall_title(age: int | None) -> str:
    return "Recall by age: none at once" if age is None else f"Recall halves after age {age:,}"


def _numbers(curve: list[float | None]) -> np.ndarray:
    return np.array([np.nan if one is None else one for one in curve], dtype=float)
