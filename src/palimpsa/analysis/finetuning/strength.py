"""strength.csv, a row a measured number of a model at a strength of its importances: read, added to, drawn."""

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from palimpsa.analysis.collect.csv_columns import read_csv_columns
from palimpsa.analysis.draw.canvas import MAX_LABEL, figure_style, heading, log_axis, new_figure, save_figure
from palimpsa.analysis.style import ModelStyle, family_styles
from palimpsa.config.text import shortened, to_cell
from palimpsa.runs.files import write_atomic
from palimpsa.runs.schema import ResultError

FILE = "strength.csv"
# at: the stage, by its context. metric: as the task names it, and variance: the mean predictive variance.
COLUMNS = ("name", "label", "task", "strength", "at", "metric", "value", "device", "git_revision", "date")
TEXT = {*COLUMNS} - {"strength", "value"}
KEYS = ["name", "strength", "at", "metric"]
# What a model is asked: what it is measured by, and what stands over that. Beside each stands the variance of its runs.
ASKED = {"recall": ("accuracy", "queries answered rightly"), "language": ("perplexity", "perplexity, validation")}
VARIANCE = "variance"
# The strength at which an axis of powers of ten goes on to 0 as a straight line.
LINEAR_BELOW = 1e-3


def read_strengths(folder: Path) -> pd.DataFrame:
    """The rows of a folder's strength.csv, none where there is none. Raises ResultError naming the file."""
    path = folder / FILE
    if not path.exists():
        return pd.DataFrame(columns=list(COLUMNS))
    rows = read_csv_columns(path, COLUMNS, TEXT)
    if len(rows[["strength", "value"]].dropna()) < len(rows):
        raise ResultError(f"{path}: strength or value is empty in a row, expected numbers")
    if rows.duplicated(KEYS).any():
        twice = rows.loc[rows.duplicated(KEYS)].iloc[0]
        raise ResultError(f"{path}: got {twice['metric']} of {twice['name']} at strength {twice['strength']} twice")
    return rows


def add_strengths(folder: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Puts the rows of one model into strength.csv, in the place of those of its name.

    Raises:
        ResultError: for a file that is there and is none of this version.
        OSError: it cannot be written.
    """
    cells = [{key: to_cell(v) if isinstance(v, str) else v for key, v in row.items()} for row in rows]
    new = pd.DataFrame(cells, columns=list(COLUMNS))
    path = folder / FILE
    if path.exists():
        read_strengths(folder)
        # As text, so that the rows of other models stay as they are.
        old = pd.read_csv(path, dtype=str, keep_default_na=False)
        text = pd.read_csv(io.StringIO(new.to_csv(index=False)), dtype=str, keep_default_na=False)
        new = pd.concat([old.loc[~old["name"].isin(text["name"])], text]).sort_values("name", kind="stable")
    return write_atomic(path, new.to_csv(index=False, lineterminator="\n"))


def build_strengths(folder: Path) -> list[Path]:
    """Draws a folder's strength.csv: strength.png and .svg, none where there is no such file; returns the paths.

    Raises:
        ResultError, OSError: see `read_strengths`.
    """
    rows = read_strengths(folder)
    return [] if rows.empty else [save_figure(strength_figure(rows), folder / "strength")[0]]


def strength_panels(rows: pd.DataFrame) -> list[dict[str, pd.DataFrame]]:
    """Rows of what is drawn side by side, by the titles of the panels: none of those that were not measured."""
    groups = []
    for asked, (measure, title) in ASKED.items():
        own = rows.loc[rows["name"].isin(rows.loc[rows["metric"] == measure, "name"])]
        metrics = {title: measure, f"mean predictive variance, {asked}": VARIANCE}
        groups.append({words: own.loc[own["metric"] == metric] for words, metric in metrics.items()})
    return [kept for group in groups if (kept := {words: own for words, own in group.items() if len(own)})]


def run_labels(rows: pd.DataFrame) -> dict[str, str]:
    """What each name is called: its label, with the seed at the name's end where several have the label."""
    labels = dict(zip(rows["name"], rows["label"], strict=True))
    shared = {label for label, count in Counter(labels.values()).items() if count > 1}
    return {
        name: f"{label}, seed {name.rpartition('_seed_')[2]}" if label in shared else label
        for name, label in labels.items()
    }


def strength_figure(rows: pd.DataFrame) -> Figure:
    """`strength_panels` from strength 0 to 1: a line a run and length, a colour a model, whichever the seed."""
    groups = strength_panels(rows)
    with figure_style():
        figure = new_figure(11, 0.8 + 4.2 * len(groups))
        for part, panels in zip(figure.subfigures(len(groups), 1, squeeze=False).flat, groups, strict=True):
            names = {
                label: name for own in panels.values() for label, name in zip(own["label"], own["name"], strict=True)
            }
            styles = family_styles(names.values())
            all_axes = list(part.subplots(1, 2).flat)
            for axes, (title, own) in zip(all_axes, panels.items(), strict=False):
                for label, lines in own.groupby("label", sort=False):
                    _draw(axes, lines, str(label), styles[names[str(label)]])
                axes.set_title(title)
                axes.set_xlabel("strength of the importances")
                axes.set_xscale("symlog", linthresh=LINEAR_BELOW)
                ticks = [0, *(10.0**k for k in range(-3, 1))]
                axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
                axes.set_xlim(-LINEAR_BELOW / 4, 1.3)
                if set(own["metric"]) == {VARIANCE} and bool(np.all(own["value"] > 0)):
                    log_axis(axes)
            for axes in all_axes[len(panels) :]:
                axes.remove()
            handles, labels = part.axes[0].get_legend_handles_labels()
            part.legend(handles, labels, loc="outside lower center", ncols=4)
        told = "the same weights, every precision multiplied by the strength: 0 has no importances, 1 is as trained"
        heading(figure, "From the model without importances to the metaplastic one", told)
    return figure


def _draw(axes: Axes, lines: pd.DataFrame, label: str, style: ModelStyle) -> None:
    """Those of one model: lengths are told by their markers."""
    for i, (at, runs) in enumerate(lines.groupby("at", sort=False)):
        for j, (_, line) in enumerate(runs.groupby("name", sort=False)):
            line = line.sort_values("strength")
            axes.plot(
                line["strength"],
                line["value"],
                color=style.color,
                linestyle=style.linestyle,
                marker="osD^vP"[i % 6],
                markersize=4,
                label=None if j else shortened(f"{label}, {at}", MAX_LABEL),
            )
