"""Language models on the page: zero-shot tables, long-range measures, and what conversion did to trained models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsa.analysis.collect.evaluation_files import read_evaluation_csv
from palimpsa.analysis.dashboard.committed import Problems
from palimpsa.analysis.dashboard.files import rounded
from palimpsa.analysis.dashboard.speed import chart, looks_of_names
from palimpsa.analysis.finetuning.comparison import Comparison, compare
from palimpsa.analysis.finetuning.pairs import FILE, read_pairs
from palimpsa.analysis.finetuning.strength import read_strengths, run_labels, strength_panels
from palimpsa.analysis.finetuning.tables import MEASURES
from palimpsa.analysis.language.evaluation_tables import PANELS, caption, table_cells

COMPARISON_COLUMNS = (
    *("demonstration", "model", "measure", "at", "pairs", "trained", "trained on", "converted", "difference"),
    *("95% interval, bootstrap", "detectable with 80% power"),
)


def describe_language(results: Path, problems: Problems) -> dict[str, Any]:
    """caption, table and charts of the evaluation; published numbers stand in the table without one of ours."""
    folder = results / "commonsense"
    rows = problems.attempt("language", lambda: read_evaluation_csv(folder), pd.DataFrame())
    if rows.empty:
        missing = f"{folder / 'evaluation.csv'}: no model of ours has been evaluated yet"
        problems.add("language", missing, "make pretrain && make evaluate")
        rows = pd.DataFrame(columns=["name", "measure", "metric"])
    header, cells = table_cells(rows)
    looks = looks_of_names(set(rows["name"])) if len(rows) else {}
    charts = [_long_range(rows, measure, *words, looks) for measure, words in PANELS.items()]
    return {
        "caption": caption(rows) if len(rows) else "",
        "table": {"title": "Zero-shot tasks", "columns": header, "rows": cells},
        "charts": [one for one in charts if one["lines"]],
    }


def _long_range(rows: pd.DataFrame, measure: str, title: str, x: str, y: str, looks: dict[str, Any]) -> dict[str, Any]:
    """A line a model; bins stand in the order of the file, with their names as ticks."""
    own = rows.loc[rows["measure"] == measure]
    lines = []
    for name, line in own.groupby("name", sort=False):
        label = str(line["label"].iloc[0])
        at = [str(one).replace("to", " to ") for one in line["at"]]
        lines.append({"label": label, **looks[str(name)], "x": at, "y": rounded(line["value"])})
    return {
        "title": title,
        "x": {"title": x, "scale": "category"},
        "y": {"title": y, "scale": "linear"},
        "lines": lines,
    }


def describe_finetuning(results: Path, problems: Problems) -> dict[str, Any]:
    """table of the pairs and charts of the strengths; both empty where nothing was measured."""
    folder = results / "finetuning"
    pairs = problems.attempt("finetuning", lambda: compare(read_pairs(folder)), [])
    strengths = problems.attempt("finetuning", lambda: read_strengths(folder), pd.DataFrame())
    if not pairs:
        missing = f"{folder / FILE}: no pair of a converted model and one trained on as it was is measured yet"
        problems.add("finetuning", missing, "python scripts/demonstrate.py")
    if strengths.empty:
        missing = f"{folder / 'strength.csv'}: no strength of importances is measured yet"
        problems.add("finetuning", missing, "python scripts/vary_strength.py")
    return {
        "table": {
            "title": "Converted, minus trained on as it was",
            "columns": list(COMPARISON_COLUMNS),
            "rows": [_pair_cells(one) for one in pairs],
        },
        "charts": _strength_charts(strengths),
    }


def _pair_cells(one: Comparison) -> list[Any]:
    words, factor = MEASURES.get(one.measure, (one.measure, 1))
    low, high = (end * factor for end in one.bootstrap)
    interval = "" if math.isnan(low) else f"{low:+.3g} to {high:+.3g}"
    numbers = rounded([value * factor for value in (one.source, one.continued, one.converted, one.difference)], 4)
    detectable = rounded([one.detectable * factor], 3)
    return [one.demonstration, one.label, words, one.at, one.num_pairs, *numbers, interval, *detectable]


def _strength_charts(rows: pd.DataFrame) -> list[dict[str, Any]]:
    charts = []
    for panels in strength_panels(rows) if len(rows) else []:
        for title, own in panels.items():
            looks, labels = looks_of_names(set(own["name"])), run_labels(own)
            lines = [
                (f"{labels[name]}, {at}", looks[name], line.sort_values("strength"))
                for name, runs in ((str(name), runs) for name, runs in own.groupby("name", sort=False))
                for at, line in runs.groupby("at", sort=False)
            ]
            axis = {"title": "strength of the importances", "scale": "linear"}
            charts.append(chart(title, title, axis, lines, "strength", "value", "linear"))
    return charts
