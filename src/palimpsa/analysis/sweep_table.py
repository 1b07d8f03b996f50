"""What a sweep over learning rates ends with: a table of every rate, its accuracies or its loss, and the best one."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from palimpsa.analysis.loss_table import print_losses
from palimpsa.analysis.statistics.learning_rate import (
    STAGE,
    choose_learning_rates,
    finished_stages,
    not_compared,
    score_learning_rates,
)
from palimpsa.analysis.statistics.validation_loss import is_measured_by_loss
from palimpsa.analysis.style import model_order
from palimpsa.analysis.titles import subtitle, title
from palimpsa.config.process import plain_console
from palimpsa.runs.read import runs_frame
from palimpsa.runs.result import read_result_and_rows
from palimpsa.runs.schema import ResultError

_EXPLANATION = (
    "seeds: finished/all. valid.: validation accuracy, mean over lengths and seeds, a failed run counts 0; the best "
    "rate has the highest. L: test accuracy, mean ± std over the finished seeds. All in %."
)


def print_learning_rates(folders: Iterable[Path], *, console: Console | None = None) -> None:
    """Print a table of the learning rates of a sweep, for each task and scale (to stdout by default, in 80 columns).

    Prints nothing where the results hold fewer than two learning rates of any model. Runs without a result are
    counted, and files that cannot be read are named.

    Args:
        folders: the run directories of the sweep; one that lacks a result.json, or does not exist, has not ended.
    """
    console = console or plain_console()
    found: list[dict[str, Any]] = []
    results: dict[tuple[str, str], list[dict[str, Any]]] = {}
    problems: list[str] = []
    num_missing = 0
    for folder in folders:
        if not (folder / "result.json").exists():
            num_missing += 1
            continue
        path = folder / "result.json"
        try:
            result, rows = read_result_and_rows(path)
        except ResultError as error:
            problems.append(str(error))
            continue
        found += rows
        results.setdefault((result["run"]["task"], result["run"]["scale"]), []).append(result)
    if not found:
        return
    runs = runs_frame(found)
    swept = False
    for task, scale in sorted(results):
        if is_measured_by_loss(results[task, scale]):
            swept |= print_losses(results[task, scale], console)
            continue
        rows = runs.loc[(runs["task"] == task) & (runs["scale"] == scale)].reset_index(drop=True)
        if all(len(lines) < 2 for lines in learning_rate_cells(rows).values()):
            continue
        swept = True
        console.print(Text(f"\nLearning rates: {title(task)}\n{subtitle(scale)}\n"))
        console.print(_table(rows))
        console.print(f"\n{_EXPLANATION}")
        left_out = [f"{line}: fewer than at other rates" for line in not_compared(rows)]
        for note in [*_at_the_edge(rows), *left_out]:
            console.print(Text(note), soft_wrap=True)
    if not swept:
        return
    if num_missing:
        console.print(f"runs of this sweep without a result, not in the table: {num_missing}")
    for problem in problems:
        console.print(Text(f"not in the table: {problem}"), style="red", soft_wrap=True)


def learning_rate_cells(rows: pd.DataFrame) -> dict[str, list[list[str]]]:
    """The lines of the table by model's label: learning rate, seeds finished/all, validation and each length.

    Accuracies are in %; "-" where there is none. The chosen rate has " best" after it.

    Args:
        rows: rows of runs.csv of one task and scale.
    """
    scores = score_learning_rates(rows)
    chosen = choose_learning_rates(rows).set_index("model")
    dots = finished_stages(rows)
    cells: dict[str, list[list[str]]] = {}
    for model in model_order(rows["model"].unique()):
        lines = cells.setdefault(str(chosen.loc[model, "label"]), [])
        for lr, score in scores.loc[scores["model"] == model, ["lr", "score"]].itertuples(index=False, name=None):
            num_seeds = rows.loc[(rows["model"] == model) & (rows["lr"] == lr), "seed"].nunique()
            seeds = dots.loc[(dots["model"] == model) & (dots["lr"] == lr)]
            line = [
                f"{lr:g} best" if lr == chosen.loc[model, "lr"] else f"{lr:g}",
                f"{seeds['seed'].nunique()}/{num_seeds}",
                "-" if np.isnan(score) else f"{100 * score:.1f}",
            ]
            for seq_len, num_pairs in _stages(rows):
                here = (seeds["seq_len"] == seq_len) & (seeds["num_pairs"] == num_pairs)
                line.append(_mean_and_std(seeds.loc[here, "test_accuracy"].to_numpy(dtype=float)))
            lines.append(line)
    return cells


def _stages(rows: pd.DataFrame) -> list[tuple[int, int]]:
    stages = rows.loc[rows["test_accuracy"].notna(), STAGE].drop_duplicates().sort_values(STAGE)
    return list(stages.itertuples(index=False, name=None))


def _mean_and_std(accuracies: np.ndarray) -> str:
    if not len(accuracies):
        return "-"
    mean = f"{100 * accuracies.mean():.1f}"
    return f"{mean}±{100 * accuracies.std(ddof=1):.1f}" if len(accuracies) > 1 else mean


def _table(rows: pd.DataFrame) -> Table:
    stages = _stages(rows)
    lengths = [seq_len for seq_len, _ in stages]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("lr", no_wrap=True)
    table.add_column("seeds", justify="right", no_wrap=True)
    table.add_column("valid.", justify="right", no_wrap=True)
    for seq_len, num_pairs in stages:
        # Two stages may share a length.
        name = f"L {seq_len}" if lengths.count(seq_len) == 1 else f"L {seq_len}, {num_pairs} pairs"
        table.add_column(name, justify="right", no_wrap=True)
    for label, lines in learning_rate_cells(rows).items():
        table.add_row(Text(label))
        for lr, *rest in lines:
            table.add_row(f"  {lr}", *rest, style="bold" if lr.endswith("best") else None)
    return table


def _at_the_edge(rows: pd.DataFrame) -> list[str]:
    """Models whose best rate is the smallest or the largest one tried: a better one may lie beyond."""
    lowest: list[str] = []
    highest: list[str] = []
    for model, label, lr in (
        choose_learning_rates(rows).loc[:, ["model", "label", "lr"]].itertuples(index=False, name=None)
    ):
        tried = np.unique(rows.loc[rows["model"] == model, "lr"].to_numpy(dtype=float))
        if len(tried) > 1 and lr in tried[[0, -1]]:
            (lowest if lr == tried[0] else highest).append(label)
    notes = []
    if lowest:
        notes.append(f"best at the smallest rate tried, a smaller one may be better: {', '.join(lowest)}")
    if highest:
        notes.append(f"best at the largest rate tried, a larger one may be better: {', '.join(highest)}")
    return notes
