"""Every figure and table of a results folder, from its CSV files alone: of runs, illustrations and benchmarks."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from palimpsa.analysis.collect.benchmark_columns import OPERATOR_COLUMNS, TRAINING_COLUMNS
from palimpsa.analysis.collect.benchmark_files import device_slugs, read_operator_csv, read_training_csv
from palimpsa.analysis.collect.illustration_files import (
    CAPACITY_COLUMNS,
    RECALL_COLUMNS,
    read_blocks,
    read_illustration_csv,
)
from palimpsa.analysis.draw.canvas import save_figure
from palimpsa.analysis.draw.capacity import capacity_figure
from palimpsa.analysis.draw.figure1 import figure1
from palimpsa.analysis.draw.figure2 import figure2
from palimpsa.analysis.draw.figure3 import figure3, figure3_heads
from palimpsa.analysis.draw.figure4 import figure4
from palimpsa.analysis.draw.figure5 import figure5
from palimpsa.analysis.draw.learning_rate_sensitivity import learning_rate_sensitivity
from palimpsa.analysis.draw.operator_speed import cost_against_length, time_per_element
from palimpsa.analysis.draw.training_speed import training_speed
from palimpsa.analysis.statistics.learning_curves import finished_curves
from palimpsa.analysis.statistics.learning_rate import (
    choose_learning_rates,
    not_compared,
    one_experiment,
    several_rates,
)
from palimpsa.analysis.statistics.summary import summarize
from palimpsa.analysis.tables import to_markdown
from palimpsa.runs.files import write_atomic
from palimpsa.runs.read import head_columns, read_curves_csv, read_runs_csv
from palimpsa.runs.schema import ResultError

DEFAULT_TASK = "mqar_curriculum"


@dataclass(frozen=True)
class Report:
    """What was made of one task and scale.

    summary: see `summary.summarize`; paths: the files written, figures first and the table last;
    notes: what could not be shown, and why.
    """

    task: str
    scale: str
    summary: pd.DataFrame
    paths: list[Path]
    notes: list[str]


def file_stem(kind: str, task: str, scale: str) -> str:
    """The name, without its ending, of a figure or table.

    >>> file_stem("figure2", "mqar_curriculum", "laptop")
    'figure2_laptop'
    >>> file_stem("figure2", "mqar_scratch", "laptop")
    'figure2_scratch_laptop'
    """
    parts = [kind, *([] if task == DEFAULT_TASK else [task.removeprefix("mqar_")]), scale]
    return "_".join(parts)


def build_runs(results: Path, *, required_scale: str | None = None) -> Iterator[Report]:
    """Draw and write the figures and the table of every task and scale in `results`/runs.csv.

    Files land in `results`: figure2_*, figure3_* and figure3_heads_* (.png and .svg), table_*.md, and sensitivity_*
    where a model has several learning rates.
    Raises ResultError: a file that is missing or invalid, no runs, none of `required_scale`, or
    finished runs of different protocols in one task and scale; OSError: `results` cannot be written.
    """
    runs = read_runs_csv(results / "runs.csv")
    curves = read_curves_csv(results / "curves.csv")
    if runs.empty:
        raise ResultError(f"{results / 'runs.csv'}: holds no runs, expected one row a run and stage")
    scales = sorted(set(runs["scale"]))
    if required_scale not in (None, *scales):
        found = f"{results / 'runs.csv'} holds {', '.join(scales)}"
        raise ResultError(f"no runs of scale {required_scale}: {found}")
    for task, scale in sorted(set(zip(runs["task"], runs["scale"], strict=True))):
        yield build_experiment(
            one_experiment(runs, task, scale),
            curves.loc[(curves["task"] == task) & (curves["scale"] == scale)],
            results,
            task=task,
            scale=scale,
        )


def build_experiment(rows: pd.DataFrame, curves: pd.DataFrame, out: Path, *, task: str, scale: str) -> Report:
    """The figures and the table of one task and scale, written to `out`.

    Args:
        rows, curves: rows of runs.csv and curves.csv of this task and scale.
    """
    chosen = choose_learning_rates(rows)
    summary = summarize(rows, chosen)
    notes = [f"{model}: no finished run, no learning rate chosen" for model in chosen.loc[chosen["lr"].isna(), "label"]]
    notes += not_compared(rows)
    if summary.empty:
        notes.append("no run has a test accuracy: no figure and no table")
        return Report(task, scale, summary, [], notes)
    figures = {"figure2": figure2(rows, summary, chosen, task=task, scale=scale)}
    if several_rates(rows).any():
        figures["sensitivity"] = learning_rate_sensitivity(rows, chosen, task=task, scale=scale)
    shown = finished_curves(rows, curves, chosen)
    if shown.empty:
        notes.append("curves.csv holds no curve of a run to show: no Figure 3")
    else:
        without_curve = chosen.loc[chosen["lr"].notna() & ~chosen["model"].isin(shown["model"])]
        for label, lr in without_curve.loc[:, ["label", "lr"]].itertuples(index=False, name=None):
            notes.append(f"{label}: curves.csv holds no curve at lr {lr:g}: not in Figure 3")
        figures["figure3"] = figure3(rows, curves, chosen, task=task, scale=scale)
        if shown.loc[:, head_columns(shown)].notna().any(axis=None):
            figures["figure3_heads"] = figure3_heads(rows, curves, chosen, task=task, scale=scale)
    text = to_markdown(summary, rows, chosen, task=task, scale=scale)
    paths = _save({file_stem(kind, task, scale): figure for kind, figure in figures.items()}, out)
    paths.append(write_atomic(out / f"{file_stem('table', task, scale)}.md", text))
    return Report(task, scale, summary, paths, notes)


def build_illustrations(folder: Path) -> list[Path]:
    """Writes figure1, figure4 and capacity (.png and .svg) from `folder`/architecture.json and the two .csv.

    Raises ResultError: a file is missing or is not what scripts/illustrate.py writes; OSError: cannot be written.
    """
    blocks = read_blocks(folder / "architecture.json")
    recall = read_illustration_csv(folder / "recall_by_age.csv", RECALL_COLUMNS)
    capacity = read_illustration_csv(folder / "capacity.csv", CAPACITY_COLUMNS)
    return _save(
        {"figure1": figure1(blocks), "figure4": figure4(recall), "capacity": capacity_figure(capacity)}, folder
    )


def build_benchmarks(folder: Path) -> list[Path]:
    """The figures of every device that has a CSV file of a benchmark in `folder`. Raises ResultError where none has."""
    trained, operated = device_slugs(folder, list(TRAINING_COLUMNS)), device_slugs(folder, list(OPERATOR_COLUMNS))
    if not trained and not operated:
        kinds = ", ".join(f"{kind}_*.csv" for kind in (*OPERATOR_COLUMNS, *TRAINING_COLUMNS))
        raise ResultError(f"{folder}: holds none of {kinds}, expected those of make bench")
    paths = [path for slug in trained for path in build_training_benchmark(folder, slug)]
    return paths + [path for slug in operated for path in build_operator_benchmark(folder, slug)]


def build_operator_benchmark(folder: Path, slug: str) -> list[Path]:
    """Writes the figures that one device's CSV files have rows for, as .png and .svg; returns their paths.

    against_length_SLUG: time and memory against sequence length; figure5_SLUG: throughput; per_element_SLUG: time per
    element of the table's shapes. Raises ResultError: a file is not what `benchmark_columns` says.
    """
    operators = read_operator_csv(folder, "operators", slug)
    throughput = read_operator_csv(folder, "throughput", slug)
    lengths, table = (operators.loc[operators["case"] == case] for case in ("lengths", "table"))
    figures = {}
    if not lengths.empty:
        figures["against_length"] = cost_against_length(lengths)
    if not throughput.loc[throughput["case"] == "prefill"].empty:
        # What a CPU works on stays in its caches, and a copy's bandwidth is no limit there.
        figures["figure5"] = figure5(throughput, operators.iloc[:0] if slug == "cpu" else operators)
    if not table.empty:
        figures["per_element"] = time_per_element(table)
    return _save({f"{kind}_{slug}": figure for kind, figure in figures.items()}, folder)


def build_training_benchmark(folder: Path, slug: str) -> list[Path]:
    """Writes steps_SLUG.png and .svg from steps_SLUG.csv; returns their paths.

    Raises ResultError: the file is not what `benchmark_columns` says.
    """
    return _save({f"steps_{slug}": training_speed(read_training_csv(folder, slug))}, folder)


def _save(figures: dict[str, Figure], folder: Path) -> list[Path]:
    return [path for stem, figure in figures.items() for path in save_figure(figure, folder / stem)]
