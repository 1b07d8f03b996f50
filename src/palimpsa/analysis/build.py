"""Every figure and table of a results folder, from runs.csv and curves.csv alone."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from palimpsa.analysis.draw.drawing import save_figure
from palimpsa.analysis.draw.figures import figure2, figure3
from palimpsa.analysis.draw.heads import figure3_heads
from palimpsa.analysis.draw.sensitivity import sensitivity
from palimpsa.analysis.statistics.curves import finished_curves
from palimpsa.analysis.statistics.select_lr import choose_learning_rates, not_compared, one_experiment, several_rates
from palimpsa.analysis.statistics.summarize import summarize
from palimpsa.analysis.tables import to_markdown
from palimpsa.runs.files import write_atomic
from palimpsa.runs.read import head_columns, read_curves_csv, read_runs_csv
from palimpsa.runs.schema import ResultError

DEFAULT_TASK = "mqar_curriculum"


@dataclass(frozen=True)
class Report:
    """What was made of one task and scale.

    summary: see `summarize.summarize`; paths: the files written, figures first and the table last;
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


def build_all(results: Path, *, required_scale: str | None = None) -> Iterator[Report]:
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
        yield build(
            one_experiment(runs, task, scale),
            curves.loc[(curves["task"] == task) & (curves["scale"] == scale)],
            results,
            task=task,
            scale=scale,
        )


def build(rows: pd.DataFrame, curves: pd.DataFrame, out: Path, *, task: str, scale: str) -> Report:
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
        figures["sensitivity"] = sensitivity(rows, chosen, task=task, scale=scale)
    shown = finished_curves(rows, curves, chosen)
    if shown.empty:
        notes.append("curves.csv holds no curve of a run to show: no Figure 3")
    else:
        figures["figure3"] = figure3(rows, curves, chosen, task=task, scale=scale)
        if shown.loc[:, head_columns(shown)].notna().any(axis=None):
            figures["figure3_heads"] = figure3_heads(rows, curves, chosen, task=task, scale=scale)
    text = to_markdown(summary, rows, chosen, task=task, scale=scale)
    paths = []
    for kind, figure in figures.items():
        paths += save_figure(figure, out / file_stem(kind, task, scale))
    paths.append(write_atomic(out / f"{file_stem('table', task, scale)}.md", text))
    return Report(task, scale, summary, paths, notes)
