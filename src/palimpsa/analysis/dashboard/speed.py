"""What kernels and training steps cost: the benchmarks' CSV files as charts and tables."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsa.analysis.collect.benchmark_columns import (
    OPERATOR_COLUMNS,
    OPERATORS,
    PRETRAINING_COLUMNS,
    TRAINING_COLUMNS,
)
from palimpsa.analysis.collect.benchmark_files import (
    device_slugs,
    read_operator_csv,
    read_pretraining_csv,
    read_training_csv,
)
from palimpsa.analysis.dashboard.committed import Problems
from palimpsa.analysis.dashboard.experiments import look_of, model_looks
from palimpsa.analysis.dashboard.files import rounded
from palimpsa.analysis.draw.operator_speed import OPERATOR_STYLES
from palimpsa.analysis.style import family_styles

LENGTHS = {"title": "sequence length T (tokens)", "scale": "log2"}
# column: title, y axis. Of operators_*.csv, of throughput_*.csv and of steps_*.csv.
AGAINST_LENGTH = {
    "forward_ms": ("Forward", "ms"),
    "forward_backward_ms": ("Forward and backward", "ms"),
    "peak_memory_mib": ("Peak memory, forward and backward", "MiB beyond the inputs"),
}
STEPS = {"ms_per_step": ("A training step", "ms"), "tokens_per_s": ("Training throughput", "tokens a second")}
# What tables show of a CSV file, and in which words.
OPERATOR_TABLE = {
    **{"case": "case", "shape": "shape", "operator": "operator", "B": "B", "T": "T", "H": "H", "K": "K", "V": "V"},
    **{"dtype": "dtype", "forward_ms": "forward, ms", "forward_backward_ms": "with backward, ms"},
    **{"forward_device_ms": "forward, of the device alone, ms", "peak_memory_mib": "peak memory, MiB"},
    **{"bandwidth_share": "share of a copy's bandwidth", "error_forward": "error, forward"},
    **{"error_backward": "error, backward", "git_revision": "git revision"},
}
THROUGHPUT_TABLE = {
    **{"case": "case", "operator": "operator", "B": "B", "T": "T", "dtype": "dtype", "ms": "ms"},
    **{"thousand_tokens_per_s": "1,000 tokens a second", "slowdown": "times as slow as simple GLA"},
    **{"git_revision": "git revision"},
}
STEPS_TABLE = {
    **{"label": "model", "seq_len": "length", "batch_size": "batch", "ms_per_step": "ms a step"},
    **{"tokens_per_s": "tokens a second", "busy_share": "GPU busy", "peak_memory_mib": "peak memory, MiB"},
    **{"first_step_s": "first step, s", "precision": "precision", "git_revision": "git revision"},
}
PRETRAINING_TABLE = {
    **{"label": "model", "num_parameters": "parameters", "context": "context", "tokens_per_step": "tokens a step"},
    **{"tokens_per_s": "tokens a second", "mfu": "share of the peak", "peak_memory_gib": "peak memory, GiB"},
    **{"git_revision": "git revision"},
}


def describe_speed(results: Path, problems: Problems) -> list[dict[str, Any]]:
    """The benchmarks, one entry a device and kind: title, subtitle, charts and tables."""
    kernels, training = results / "kernels", results / "training"
    found = []
    for slug in device_slugs(kernels, list(OPERATOR_COLUMNS)):
        found += problems.attempt("speed", lambda slug=slug: _operators(kernels, slug), [])
    for slug in device_slugs(training, list(TRAINING_COLUMNS)):
        found += problems.attempt("speed", lambda slug=slug: _steps(training, slug), [])
    for slug in device_slugs(training, list(PRETRAINING_COLUMNS)):
        found += problems.attempt("speed", lambda slug=slug: _pretraining(training, slug), [])
    if not found:
        problems.add("speed", f"no benchmark in {kernels} and {training}", "make bench")
    return found


def _operators(folder: Path, slug: str) -> list[dict[str, Any]]:
    operators, throughput = read_operator_csv(folder, "operators", slug), read_operator_csv(folder, "throughput", slug)
    lengths = operators.loc[operators["case"] == "lengths"]
    charts = [_operator_chart(lengths, column, *words) for column, words in AGAINST_LENGTH.items()]
    prefill = throughput.loc[throughput["case"] == "prefill"]
    charts.append(_operator_chart(prefill, "thousand_tokens_per_s", "Prefill throughput", "1,000 tokens a second"))
    tables = [
        table("Operators", operators, OPERATOR_TABLE, {"operator": OPERATORS}),
        table("Throughput", throughput, THROUGHPUT_TABLE, {"operator": OPERATORS}),
    ]
    return [_entry("Operators", pd.concat([operators, throughput]), charts, tables)]


def _steps(folder: Path, slug: str) -> list[dict[str, Any]]:
    rows = read_training_csv(folder, slug)
    looks = model_looks(list(rows["model"].unique()), dict(zip(rows["model"], rows["label"], strict=True)))
    lines = [(look["label"], look, rows.loc[rows["model"] == look["model"]].sort_values("seq_len")) for look in looks]
    charts = [chart(words, unit, LENGTHS, lines, "seq_len", column) for column, (words, unit) in STEPS.items()]
    return [_entry("Training steps", rows, charts, [table("Training steps", rows, STEPS_TABLE)])]


def _pretraining(folder: Path, slug: str) -> list[dict[str, Any]]:
    rows = read_pretraining_csv(folder, slug)
    return [_entry("Pretraining", rows, [], [table("Pretraining", rows, PRETRAINING_TABLE)])]


def _operator_chart(rows: pd.DataFrame, column: str, title: str, unit: str) -> dict[str, Any]:
    lines = [
        (label, look_of(OPERATOR_STYLES[operator]), rows.loc[rows["operator"] == operator].sort_values("T"))
        for operator, label in OPERATORS.items()
    ]
    return chart(title, unit, LENGTHS, lines, "T", column)


def _entry(title: str, rows: pd.DataFrame, charts: list[Any], tables: list[Any]) -> dict[str, Any]:
    devices, dates = rows["device"].dropna().unique(), sorted(date[:10] for date in rows["date"].dropna())
    when = dates[:1] if dates[:1] == dates[-1:] else [f"{dates[0]} to {dates[-1]}"]
    drawn = [one for one in charts if one["lines"]]
    return {"title": title, "subtitle": " · ".join([*devices, *when]), "charts": drawn, "tables": tables}


def chart(
    title: str, unit: str, x_axis: Mapping[str, str], lines: list[Any], x: str, y: str, scale: str = "log"
) -> dict[str, Any]:
    """A chart of lines, as the page draws it: lines without a number are left out.

    Args:
        x_axis: title and scale, "log2", "log" or "linear".
        lines: label, look and rows of each.
        x, y: columns of the rows. scale: of the y axis.
    """
    drawn = []
    for label, look, rows in lines:
        own = rows.loc[rows[y].notna()]
        if len(own):
            drawn.append({"label": label, **look, "x": rounded(own[x], 15), "y": rounded(own[y])})
    return {"title": title, "x": dict(x_axis), "y": {"title": unit, "scale": scale}, "lines": drawn}


def table(
    title: str, rows: pd.DataFrame, columns: Mapping[str, str], words: Mapping[str, Mapping[str, str]] | None = None
) -> dict[str, Any]:
    """A table: some columns of a frame; those without a value are left out.

    Args:
        columns: of the frame, and what they are called.
        words: by column, what texts in it are called.
    """
    shown = [name for name in columns if len(rows[name].dropna())]
    cells = []
    for row in rows.loc[:, shown].to_dict("records"):
        cells.append([_cell(row[name], (words or {}).get(name, {})) for name in shown])
    return {"title": title, "columns": [columns[name] for name in shown], "rows": cells}


def _cell(value: Any, words: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return words.get(value, value)
    return rounded([value])[0]


def looks_of_names(names: Any) -> dict[str, dict[str, Any]]:
    """The looks of names that begin with a model's."""
    return {name: look_of(style) for name, style in family_styles(names).items()}
