"""Figures 1 and 4, and a layer's capacity: blocks, recall against age and number of pairs, from their files alone."""

import json
from collections import defaultdict
from itertools import cycle, pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import PercentFormatter

from palimpsa.analysis.draw.drawing import figure_style, heading, log_axis, new_figure, save_figure
from palimpsa.analysis.style import MODEL_STYLES
from palimpsa.runs.schema import ResultError

RECALL_COLUMNS: tuple[str, ...] = ("memory", "age", "similarity", "similarity_std", "error", "error_std")
CAPACITY_COLUMNS: tuple[str, ...] = (
    *("rule", "num_heads", "K", "V", "num_candidates", "num_pairs", "beta", "accuracy", "gain", "gain_error"),
)
_BOX_COLORS = {"input": "#FFFFFF", "output": "#FFFFFF", "module": "#DCE9F5", "function": "#F3F3F3"}
_MEMORY_COLOR = MODEL_STYLES["palimpsa_d"].color
_MEMORY_STYLES = (("#222222", ":"), (MODEL_STYLES["palimpsa_m"].color, "--"), (_MEMORY_COLOR, "-"))
_RULE_COLORS = {
    "linear attention": MODEL_STYLES["palimpsa_d_nometa"].color,
    "Palimpsa": _MEMORY_COLOR,
    "delta rule": MODEL_STYLES["gated_deltanet"].color,
    "full covariance": "#222222",
}
_BOX_WIDTH, _BOX_HEIGHT = 0.9, 0.5


def draw_illustrations(folder: Path) -> list[Path]:
    """Writes figure1, figure4 and capacity (.png and .svg) from `folder`/architecture.json and the two .csv.

    Raises ResultError: a file is missing or is not what scripts/illustrate.py writes; OSError: cannot be written.
    """
    blocks = _read_blocks(folder / "architecture.json")
    recall = _read_rows(folder / "recall_by_age.csv", RECALL_COLUMNS)
    capacity = _read_rows(folder / "capacity.csv", CAPACITY_COLUMNS)
    figures = {"figure1": figure1(blocks), "figure4": figure4(recall), "capacity": capacity_figure(capacity)}
    return [path for name, figure in figures.items() for path in save_figure(figure, folder / name)]


def _read_blocks(path: Path) -> list[dict[str, Any]]:
    try:
        blocks = json.loads(path.read_text())
        for block in blocks:
            names = [box["name"] for box in block["boxes"]]
            assert names[0] == "x"
            assert all(one["from"] in names for box in block["boxes"] for one in box["inputs"])
            assert block["label"]
    except FileNotFoundError as error:
        raise ResultError(f"{path}: not there, expected what scripts/illustrate.py writes") from error
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ResultError(f"{path}: {error!r}, expected what scripts/illustrate.py writes") from error
    return blocks


def _read_rows(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        rows = pd.read_csv(path)
    except FileNotFoundError as error:
        raise ResultError(f"{path}: not there, expected what scripts/illustrate.py writes") from error
    except ValueError as error:
        raise ResultError(f"{path}: {error}, expected columns {', '.join(columns)}") from error
    missing = [name for name in columns if name not in rows]
    if missing or rows.empty:
        raise ResultError(f"{path}: no {', '.join(missing) or 'rows'}, expected columns {', '.join(columns)}")
    return rows


def figure1(blocks: list[dict[str, Any]]) -> Figure:
    """One panel a block: boxes from the input at the bottom to the output at the top, as the module computes them."""
    with figure_style():
        plans = [_plan(block["boxes"]) for block in blocks]
        spans = [
            max(x for x, _ in plan.place.values()) - min(x for x, _ in plan.place.values()) + 1.2 for plan in plans
        ]
        figure = new_figure(1.25 * sum(spans) + 0.5, 9)
        panels = figure.subplots(1, len(blocks), width_ratios=spans, squeeze=False)[0]
        for axes, block, plan in zip(panels, blocks, plans, strict=True):
            _draw_block(axes, block, plan)
        heading(figure, "Figure 1: the blocks of Palimpsa", "drawn from the modules; in the corners: numbers a token")
    return figure


class _Plan(NamedTuple):
    """place: x and row of every box and bend. edges: the points from one box to the next, and the operator's name."""

    place: dict[str, tuple[float, int]]
    edges: list[tuple[list[str], str]]


def _plan(boxes: list[dict[str, Any]]) -> _Plan:
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
    x = _across(rows)
    for sweep in range(12):
        neighbours, levels = (below, rows) if sweep % 2 == 0 else (above, rows[::-1])
        for level in levels:
            level.sort(key=lambda name: sum(x[other] for other in neighbours[name]) / max(1, len(neighbours[name])))
            x.update(_across([level]))
    return _Plan({name: (x[name], row[name]) for name in row}, edges)


def _across(rows: list[list[str]]) -> dict[str, float]:
    """x of every name in a row, around 0; a bend needs less room than a box."""
    x = {}
    for names in rows:
        room = [0.45 if ":" in name else 1.0 for name in names]
        at = -sum(room) / 2
        for name, width in zip(names, room, strict=True):
            x[name] = at + width / 2
            at += width
    return x


def _draw_block(axes: Axes, block: dict[str, Any], plan: _Plan) -> None:
    columns, rows = zip(*plan.place.values(), strict=True)
    axes.set_xlim(min(columns) - 0.6, max(columns) + 0.6)
    axes.set_ylim(-0.5, max(rows) + 0.5)
    axes.set_axis_off()
    axes.set_title(block["label"])
    for path, name in plan.edges:
        points: list[tuple[float, float]] = [plan.place[point] for point in path]
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
            axes.text(x, y, label, fontsize=8.5, color=_MEMORY_COLOR, ha="center", va="center", bbox=halo, zorder=4)
    for box in block["boxes"]:
        _draw_box(axes, box, *plan.place[box["name"]])


def _draw_box(axes: Axes, box: dict[str, Any], x: float, y: float) -> None:
    is_memory = box["label"] == "Palimpsa"
    color = _MEMORY_COLOR if is_memory else _BOX_COLORS[box["kind"]]
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


def figure4(rows: pd.DataFrame) -> Figure:
    """Error and similarity of recall against age, one line a memory, mean +- 1 std over memories."""
    with figure_style():
        figure = new_figure(9, 4)
        error, similarity = figure.subplots(1, 2)
        names = list(dict.fromkeys(rows["memory"]))
        for name, (color, dashes) in zip(names, _MEMORY_STYLES, strict=False):
            of_memory = rows.loc[rows["memory"] == name].sort_values("age")
            for axes, column in ((error, "error"), (similarity, "similarity")):
                # Sixteen ages a point: one pair alone is noise.
                binned = of_memory.groupby((of_memory["age"] - 1) // 16)[["age", column, f"{column}_std"]].mean()
                mean, std = binned[column], binned[f"{column}_std"]
                # The first above the others: it has the same directions as the second.
                axes.plot(
                    binned["age"], mean, color=color, linestyle=dashes, label=name, zorder=4 if name == names[0] else 3
                )
                axes.fill_between(binned["age"], mean - std, mean + std, color=color, alpha=0.12, linewidth=0)
        error.set_ylabel("squared error of the recalled value\n(1: recalling nothing)")
        log_axis(error)
        error.axhline(1.0, color="#444444", linewidth=0.7)
        similarity.set_ylabel("cosine of recalled and stored value")
        for axes in (error, similarity):
            axes.set_xlabel("age of the pair (pairs stored since)")
        similarity.legend()
        heading(
            figure,
            "Figure 4: what a memory recalls of 512 pairs, against their age",
            "by the operator, one head of 32 keys; mean and std over 64 memories",
        )
    return figure


def capacity_figure(rows: pd.DataFrame) -> Figure:
    """Share of random pairs that a layer recalls against their number, a line for each rule and key width."""
    with figure_style():
        figure = new_figure(6.5, 4.4)
        axes = figure.subplots()
        for (K, dashes), rule in product(zip(sorted(rows["K"].unique()), cycle(("-", "--"))), rows["rule"].unique()):
            own = rows.loc[(rows["rule"] == rule) & (rows["K"] == K)].sort_values("num_pairs")
            label = f"{rule}, {K} keys a head"
            axes.plot(own["num_pairs"], own["accuracy"], dashes, color=_RULE_COLORS[rule], marker=".", label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(sorted(rows["num_pairs"].unique()), [f"{n:,}" for n in sorted(rows["num_pairs"].unique())])
        axes.set_ylim(0, 1.04)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("pairs stored")
        axes.set_ylabel("pairs recalled")
        figure.legend(loc="outside lower center", ncols=2)
        heads, values, candidates = rows.iloc[0][["num_heads", "V", "num_candidates"]]
        sizes = f"{heads} heads of {values} values, {candidates:,} candidates; nothing learnt"
        heading(figure, "What one layer holds of random pairs", sizes)
    return figure
