"""The summary as a Markdown file and as a table in the terminal."""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from palimpsa.analysis.statistics.learning_rate import (
    STAGE,
    choice_text,
    score_learning_rates,
    seeds_text,
    several_rates,
)
from palimpsa.analysis.statistics.summary import BEST_PER_SEED, VALIDATION, plateau_exits
from palimpsa.analysis.style import model_order
from palimpsa.analysis.titles import DEMONSTRATION, subtitle, title
from palimpsa.config.process import plain_console
from palimpsa.config.text import markdown_text

_HEADER = [
    "model",
    "state",
    "parameters",
    "L",
    "pairs",
    "lr",
    "seeds",
    "failed",
    "mean ± std",
    "95% CI",
    "median",
    "seeds > 99%",
    "plateau exit",
]
# What the first table shows of the other rule.
_OPTIMISTIC = ["mean ± std*", "seeds > 99%*"]


def table_cells(summary: pd.DataFrame, rule: str) -> list[list[str]]:
    """The cells of _HEADER as text by one rule, one row a model and stage; accuracies in % of the queries."""
    return [_cells(row) for row in _records(summary, rule)]


def _records(summary: pd.DataFrame, rule: str) -> list[dict[str, Any]]:
    """The rows of a summary by one rule, in the order of the table."""
    keys = ["model", *STAGE]
    shown = summary.loc[summary["rule"] == rule]
    rank = {model: i for i, model in enumerate(model_order(shown["model"]))}
    return shown.sort_values(keys, key=lambda c: c.map(rank) if c.name == "model" else c).to_dict("records")


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["label"],
        state_text(row["state_size"]),
        count_text(row["num_parameters"]),
        count_text(row["seq_len"]),
        count_text(row["num_pairs"]),
        row["lr_text"] or "no finished run",
        count_text(row["num_seeds"]),
        count_text(row["num_failed"]),
        mean_and_std(row["mean"], row["std"]),
        "-" if math.isnan(row["ci_low"]) else f"{percent(row['ci_low'])} to {percent(row['ci_high'])}",
        percent(row["median"]),
        _share(row["share_above"]),
        _steps(row["plateau_exit_step"]),
    ]


def _both_rules(summary: pd.DataFrame) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The rows by the validation rule, each with its row by the other one: both have the same in the same order."""
    return zip(_records(summary, VALIDATION), _records(summary, BEST_PER_SEED), strict=True)


def _share(fraction: float) -> str:
    return "-" if math.isnan(fraction) else f"{100 * fraction:.0f}%"


def percent(fraction: float) -> str:
    """
    >>> percent(0.98765), percent(float("nan"))
    ('98.8', '-')
    """
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f}"


def mean_and_std(mean: float, std: float, between: str = " ± ") -> str:
    """Both in %; the mean alone where there is no deviation.

    >>> mean_and_std(0.9, 0.025), mean_and_std(0.9, float("nan"))
    ('90.0 ± 2.5', '90.0')
    """
    return percent(mean) if math.isnan(std) else f"{percent(mean)}{between}{percent(std)}"


def count_text(value: float) -> str:
    return "-" if pd.isna(value) else f"{int(value):,}"


def state_text(size: float) -> str:
    """Floats of the recurrent state; 0 is that of attention, which has no fixed size.

    >>> state_text(8192), state_text(0)
    ('8,192', 'grows')
    """
    return "grows" if size == 0 else count_text(size)


def _steps(steps: float) -> str:
    """
    >>> _steps(1234567.0), _steps(12.5), _steps(math.inf), _steps(math.nan)
    ('1234567', '12.5', 'never', '-')
    """
    if pd.isna(steps):
        return "-"
    if math.isinf(steps):
        return "never"
    # A median of an even number of seeds may be a half.
    return f"{steps:.0f}" if float(steps).is_integer() else f"{steps:.1f}"


class Markdown(str):
    """A cell that is Markdown already."""

    __slots__ = ()


def markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table; all columns but the first are aligned to the right.

    Args:
        header: Markdown. rows: text, which is shown as it is, or `Markdown`.
    """
    marks = ["---", *["---:"] * (len(header) - 1)]
    cells = [[cell if isinstance(cell, Markdown) else markdown_text(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in [header, marks, *cells]]


def to_markdown(summary: pd.DataFrame, rows: pd.DataFrame, chosen: pd.DataFrame, *, task: str, scale: str) -> str:
    """The table file of one task and scale: results, learning rates compared, steps on the plateau.

    Args:
        summary: from `summary.summarize`.
        rows, chosen: what it was made from.
    """
    warning = ". No ordering of models follows from it" if scale in DEMONSTRATION else ""
    lines = [f"# {markdown_text(title(task))}", "", f"**{markdown_text(subtitle(scale))}{warning}.**", ""]
    several = bool(several_rates(rows).any())
    if several:
        cells = [
            [*_cells(row), mean_and_std(other["mean"], other["std"]), _share(other["share_above"])]
            for row, other in _both_rules(summary)
        ]
        lines += markdown_table([*_HEADER, *_OPTIMISTIC], cells)
    else:
        lines += markdown_table(_HEADER, table_cells(summary, VALIDATION))
    lines += [
        "",
        "Test accuracy over the query positions, %; mean, sample standard deviation and median "
        "over the seeds whose run finished (no deviation for a single seed). 95% CI: percentile "
        "bootstrap of the mean, 10,000 resamples. State: recurrent floats a layer and sequence. "
        "Plateau exit: median training steps within the stage until the loss left its plateau.",
        "",
        f"The learning rate of a model is {choice_text(rows)}."
        + (" \\* The optimistic reading of the table below." if several else ""),
        "",
        *(_optimistic(summary) if several else []),
        "## Learning rates",
        "",
        "Mean validation accuracy over the lengths of the table, %, over the seeds that all "
        "compared rates of the model have; a failed run counts 0. Bold: chosen. Not compared: rates with "
        "fewer seeds than the model's rate with the second most.",
        "",
        *_learning_rates(rows, chosen),
        "",
        "## Steps to leave the plateau",
        "",
        "Training steps within each stage at the chosen learning rate, one number a seed in the "
        "order of the seeds; - means never.",
        "",
        *_plateaus(rows, chosen),
    ]
    failed = rows.loc[rows["status"] != "finished"].drop_duplicates(["model", "lr", "seed", "run_seq_len"])
    if len(failed):
        lines += ["", "## Failed runs", ""]
        for row in failed.to_dict("records"):
            error = "no error recorded" if pd.isna(row["error"]) else row["error"]
            label = markdown_text(row["label"])
            lines.append(f"- {label}, lr {row['lr']:g}, seed {row['seed']}: {markdown_text(error)}")
    return "\n".join(lines) + "\n"


def _optimistic(summary: pd.DataFrame) -> list[str]:
    return [
        "## Optimistic reading: the best learning rate of each seed",
        "",
        "The learning rate of each seed and length with the best test accuracy, the reported number itself; "
        "lr: the rates used, and by how many seeds. Any rate of a finished run takes part.",
        "",
        *markdown_table(_HEADER, table_cells(summary, BEST_PER_SEED)),
        "",
    ]


def _learning_rates(rows: pd.DataFrame, chosen: pd.DataFrame) -> list[str]:
    scores = score_learning_rates(rows)
    by_model = chosen.set_index("model")
    rates = sorted(scores["lr"].unique())
    cells = []
    for model in model_order(scores["model"].unique()):
        own = scores.loc[scores["model"] == model].set_index("lr")
        compared = own.loc[own["compared"]]
        row = [by_model.loc[model, "label"], count_text(compared["num_seeds"].min())]
        if not compared["common_seeds"].all():
            row[1] += " (none in common)"
        for lr in rates:
            cell = ""
            if lr in compared.index:
                cell = percent(compared.loc[lr, "score"])
            elif lr in own.index:
                cell = f"not compared ({seeds_text(own.loc[lr, 'num_seeds'])})"
            row.append(Markdown(f"**{cell}**") if lr == by_model.loc[model, "lr"] else cell)
        cells.append(row)
    return markdown_table(["model", "seeds compared", *(f"lr {lr:g}" for lr in rates)], cells)


def _plateaus(rows: pd.DataFrame, chosen: pd.DataFrame) -> list[str]:
    exits = plateau_exits(rows, chosen)
    columns = ["stage", *STAGE]
    stages = exits.loc[:, columns].drop_duplicates().sort_values(columns)
    places = list(stages.itertuples(index=False, name=None))
    header = ["model", *(f"L {seq_len}, {num_pairs} pairs" for _, seq_len, num_pairs in places)]
    cells = []
    for model in model_order(exits["model"].unique()):
        own = exits.loc[exits["model"] == model]
        row = [own["label"].iloc[0]]
        for stage, seq_len, num_pairs in places:
            at = (own["stage"] == stage) & (own["seq_len"] == seq_len)
            seeds = own.loc[at & (own["num_pairs"] == num_pairs), "plateau_exit_step"]
            row.append(" ".join("-" if pd.isna(step) else str(step) for step in seeds))
        cells.append(row)
    return markdown_table(header, cells)


def print_table(summary: pd.DataFrame, *, task: str, scale: str, console: Console | None = None) -> None:
    """Print the summary to the terminal (stdout by default), in 80 columns; see `to_markdown`."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    for name in ("model", "lr", "L", "seeds", "mean±std", "median", ">99%", "exit", "mean*±std"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=name != "model")
    previous = None
    for row, other in _both_rules(summary):
        new = row["model"] != previous
        previous = row["model"]
        if new and table.row_count:
            table.add_section()
        cells = [
            row["label"] if new else "",
            (row["lr_text"] or "-") if new else "",
            str(row["seq_len"]),
            f"{row['num_seeds']}/{row['num_seeds'] + row['num_failed']}",
            mean_and_std(row["mean"], row["std"], "±"),
            percent(row["median"]),
            _share(row["share_above"]),
            _steps(row["plateau_exit_step"]),
            mean_and_std(other["mean"], other["std"], "±"),
        ]
        table.add_row(*map(Text, cells))
    console = console or plain_console()
    console.print(Text(f"\n{title(task)}: test accuracy, %\n{subtitle(scale)}\n"))
    console.print(table)
    console.print(
        "\nseeds: finished/all. exit: median steps until the loss left its plateau.\n"
        "mean*: best learning rate of each seed by the test accuracy itself: optimistic.\n",
    )


def with_device_time(as_called: float, alone: float, form: str) -> str:
    """A time or ratio as called, and in brackets that of the device alone, which NaN leaves out.

    >>> with_device_time(0.4, 0.3351, ".2g")
    '0.4 (0.34)'
    """
    return f"{as_called:{form}}" if math.isnan(alone) else f"{as_called:{form}} ({alone:{form}})"
