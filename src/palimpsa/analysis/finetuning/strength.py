"""strength.csv, a row a measured number of a model at a strength of its importances: read, added to, drawn."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from palimpsa.analysis.collect.csv_columns import read_csv_columns
from palimpsa.analysis.draw.canvas import MAX_LABEL, figure_style, heading, new_figure, save_figure
from palimpsa.analysis.style import family_styles
from palimpsa.config.text import shortened, to_cell
from palimpsa.runs.files import write_atomic
from palimpsa.runs.schema import ResultError

FILE = "strength.csv"
# at: the stage, by its context. metric: as the task names it, and variance: the mean predictive variance.
COLUMNS = ("name", "label", "task", "strength", "at", "metric", "value", "device", "git_revision", "date")
TEXT = {*COLUMNS} - {"strength", "value"}
KEYS = ["name", "strength", "at", "metric"]
# Panels, and what stands at their y axes.
PANELS = {
    "accuracy": "queries answered rightly",
    "perplexity": "perplexity, validation",
    "variance": "mean predictive variance",
}
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


def strength_figure(rows: pd.DataFrame) -> Figure:
    """A panel for each metric of `PANELS` that was measured, a line a model and length, from strength 0 to 1."""
    measured = set(rows["metric"])
    metrics = [metric for metric in PANELS if metric in measured]
    styles = family_styles(set(rows["name"]))
    with figure_style():
        figure = new_figure(4.2 * max(len(metrics), 2), 4.2)
        for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False).flat, metrics, strict=True):
            axes.set_title(PANELS[metric])
            axes.set_xlabel("strength of the importances")
            own = rows.loc[rows["metric"] == metric]
            for i, ((name, at), line) in enumerate(own.groupby(["name", "at"], sort=False)):
                _draw(axes, line, f"{line['label'].iloc[0]}, {at}", styles[str(name)], i)
            axes.set_xscale("symlog", linthresh=LINEAR_BELOW)
            ticks = [0, *(10.0**k for k in range(-3, 1))]
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.set_xlim(-LINEAR_BELOW / 4, 1.3)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        told = "the same weights, every precision multiplied by the strength: 0 has no importances, 1 is as trained"
        heading(figure, "From the model without importances to the metaplastic one", told)
    return figure


def _draw(axes: Axes, line: pd.DataFrame, label: str, style: Any, place: int) -> None:
    line = line.sort_values("strength")
    # Lengths of one model share its colour.
    marker = "osD^vP"[place % 6]
    axes.plot(
        line["strength"],
        line["value"],
        color=style.color,
        linestyle=style.linestyle,
        marker=marker,
        markersize=4,
        label=shortened(label, MAX_LABEL),
    )
