"""Figure 1 of arXiv 2602.09075: the blocks of Palimpsa, as their modules compute them."""

from collections import defaultdict
from itertools import pairwise
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from palimpsa.analysis.draw.canvas import MAX_LABEL, figure_style, heading, new_figure
from palimpsa.analysis.style import MODEL_STYLES
from palimpsa.config.text import shortened

_BOX_COLORS = {"input": "#FFFFFF", "output": "#FFFFFF", "module": "#DCE9F5", "function": "#F3F3F3"}
_OPERATOR_COLOR = MODEL_STYLES["palimpsa_d"].color
_BOX_WIDTH, _BOX_HEIGHT = 0.9, 0.5


def figure1(blocks: list[dict[str, Any]]) -> Figure:
    """One panel a block: boxes from the input at the bottom to the output at the top, as the module computes them."""
    with figure_style():
        layouts = [_layout(block["boxes"]) for block in blocks]
        spans = [
            max(x for x, _ in layout.place.values()) - min(x for x, _ in layout.place.values()) + 1.2
            for layout in layouts
        ]
        figure = new_figure(1.25 * sum(spans) + 0.5, 9)
        panels = figure.subplots(1, len(blocks), width_ratios=spans, squeeze=False)[0]
        for axes, block, layout in zip(panels, blocks, layouts, strict=True):
            _draw_block(axes, block, layout)
        heading(figure, "Figure 1: the blocks of Palimpsa", "drawn from the modules; in the corners: numbers a token")
    return figure


class _Layout(NamedTuple):
    """place: x and row of every box and bend. edges: the points from one box to the next, and the operator's name."""

    place: dict[str, tuple[float, int]]
    edges: list[tuple[list[str], str]]


def _layout(boxes: list[dict[str, Any]]) -> _Layout:
    """A layered drawing: a box stands one row above the highest of its inputs, and an edge over several rows gets a
    bend in each, so that it finds its way between the boxes."""
    row: dict[str, int] = {}
    for box in boxes:
        row[box["name"]] = 1 + max((row[one["from"]] for one in box["inputs"]), default=-1)
    edges = []
    for box in boxes:
        for i, one in enumerate(box["inputs"]):
            bends = range(row[one["from"]] + 1, row[box["name"]])
            path = [one["from"], *(f"{box['name']}:{i}:{level}" for level in bends), box["name"]]
            row.update(zip(path[1:-1], bends, strict=True))
            edges.append((path, one["as"]))
    rows: list[list[str]] = [[] for _ in range(1 + max(row.values()))]
    for name, level in row.items():
        rows[level].append(name)
    below, above = defaultdict(list), defaultdict(list)
    for path, _ in edges:
        for low, high in pairwise(path):
            below[high].append(low)
            above[low].append(high)
    x = _positions_in_rows(rows)
    for sweep in range(12):
        neighbours, levels = (below, rows) if sweep % 2 == 0 else (above, rows[::-1])
        for level in levels:
            level.sort(key=lambda name: sum(x[other] for other in neighbours[name]) / max(1, len(neighbours[name])))
            x.update(_positions_in_rows([level]))
    return _Layout({name: (x[name], row[name]) for name in row}, edges)


def _positions_in_rows(rows: list[list[str]]) -> dict[str, float]:
    """x of every name in a row, around 0; a bend needs less room than a box."""
    x = {}
    for names in rows:
        room = [0.45 if ":" in name else 1.0 for name in names]
        at = -sum(room) / 2
        for name, width in zip(names, room, strict=True):
            x[name] = at + width / 2
            at += width
    return x


def _draw_block(axes: Axes, block: dict[str, Any], layout: _Layout) -> None:
    columns, rows = zip(*layout.place.values(), strict=True)
    axes.set_xlim(min(columns) - 0.6, max(columns) + 0.6)
    axes.set_ylim(-0.5, max(rows) + 0.5)
    axes.set_axis_off()
    axes.set_title(shortened(block["label"], MAX_LABEL))
    for path, name in layout.edges:
        points: list[tuple[float, float]] = [layout.place[point] for point in path]
        points[0] = (points[0][0], points[0][1] + _BOX_HEIGHT / 2)
        points[-1] = (points[-1][0], points[-1][1] - _BOX_HEIGHT / 2)
        # Straight up past the boxes of a row, aslant between the rows.
        bent = [points[0]]
        for x, y in points[1:-1]:
            bent += [(x, y - _BOX_HEIGHT / 2), (x, y + _BOX_HEIGHT / 2)]
        axes.plot(*zip(*bent, strict=True), color="#888888", linewidth=0.8, zorder=1)
        arrow = {"arrowstyle": "-|>", "color": "#888888", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", points[-1], bent[-1], arrowprops=arrow, zorder=1)
        if name:
            x, y = (0.45 * start + 0.55 * end for start, end in zip(bent[-1], points[-1], strict=True))
            label = {"beta": "β"}.get(name, name)
            halo = {"boxstyle": "round,pad=0.1", "facecolor": "#FFFFFF", "edgecolor": "none"}
            axes.text(x, y, label, fontsize=8.5, color=_OPERATOR_COLOR, ha="center", va="center", bbox=halo, zorder=4)
    for box in block["boxes"]:
        _draw_box(axes, box, *layout.place[box["name"]])


def _draw_box(axes: Axes, box: dict[str, Any], x: float, y: float) -> None:
    is_memory = box["label"] == "Palimpsa"
    color = _OPERATOR_COLOR if is_memory else _BOX_COLORS[box["kind"]]
    ink = "#FFFFFF" if is_memory else "#222222"
    corner = (x - _BOX_WIDTH / 2, y - _BOX_HEIGHT / 2)
    shape = FancyBboxPatch(corner, _BOX_WIDTH, _BOX_HEIGHT, boxstyle="round,pad=0,rounding_size=0.06")
    shape.set(facecolor=color, edgecolor="#444444", linewidth=0.8, zorder=2)
    axes.add_patch(shape)
    middle = {"ha": "center", "va": "center", "zorder": 3}
    if box["kind"] == "module":
        axes.text(x, y + 0.11, box["name"], fontsize=6.8, color=ink, **middle)
        axes.text(x, y - 0.05, box["label"], fontsize=5.8, color="#444444", **middle)
    else:
        axes.text(x, y + 0.03, box["label"], fontsize=7.5, color=ink, **middle)
    if box["width"] is not None:
        at = (x + _BOX_WIDTH / 2 - 0.04, corner[1] + 0.03)
        axes.text(*at, str(box["width"]), fontsize=5, color="#777777", ha="right", va="bottom", zorder=3)
