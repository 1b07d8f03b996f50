"""Tables and pictures of evaluation.csv, beside what others have published: in the terminal, as Markdown, as PNG."""

import math
from pathlib import Path

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from palimpsa.analysis.collect.evaluation_files import read_evaluation_csv
from palimpsa.analysis.draw.canvas import save_figure
from palimpsa.analysis.draw.long_range import PANELS, long_range_figure
from palimpsa.analysis.draw.zero_shot import TASKS, zero_shot_figure
from palimpsa.analysis.published_numbers import PUBLISHED
from palimpsa.analysis.tables import count_text, markdown_table
from palimpsa.config.process import plain_console
from palimpsa.config.text import markdown_text
from palimpsa.runs.files import write_all_atomic

TITLE = "Zero-shot tasks"
# Columns before the accuracies: task, metric, header.
PERPLEXITIES = {
    ("wikitext", "word_perplexity"): "WikiText ppl",
    ("lambada_openai", "perplexity"): "LAMBADA ppl",
}
_ACCURACY_METRICS = {"hellaswag": "acc_norm", "arc_challenge": "acc_norm"}


def build_evaluation(folder: Path) -> list[Path]:
    """Draws the figures and writes the table of a folder's evaluation.csv: none where there is none.

    Args:
        folder: of evaluation.csv, where figures and the table go too.

    Returns:
        the paths written.

    Raises:
        ResultError, OSError: see `read_evaluation_csv`.
    """
    rows = read_evaluation_csv(folder)
    if rows.empty:
        return []
    note = subtitle(rows)
    paths = []
    measures = set(rows["measure"])
    if measures & set(TASKS):
        paths.append(save_figure(zero_shot_figure(rows, title=TITLE, subtitle=note), folder / "zero_shot")[0])
    if measures & set(PANELS):
        figure = long_range_figure(rows, title="Long-range measures", subtitle=note)
        paths.append(save_figure(figure, folder / "long_range")[0])
    text = "\n".join([f"# {TITLE}", "", to_markdown(rows), ""])
    return [*paths, *write_all_atomic({folder / "evaluation.md": text})]


def subtitle(rows: pd.DataFrame) -> str:
    """What the numbers may be used for, of how many items, seeds and devices they are."""
    parts = []
    limits, seeds = (sorted({int(one) for one in rows[name].dropna()}) for name in ("limit", "seed"))
    if limits:
        parts.append(f"at most {limits[-1]:,} items a task")
    if "laptop" in set(rows["scale"]):
        parts.append("laptop scale")
    if parts:
        parts.append("demonstrates the pipeline")
    if seeds:
        parts.append("one seed" if len(seeds) == 1 else f"{len(seeds)} seeds")
    parts.append("bars: one standard error")
    return "; ".join(parts)


def table_cells(rows: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table: a row a model, then a row for each that is published, which says so."""
    columns = {
        **PERPLEXITIES,
        **{(task, _ACCURACY_METRICS.get(task, "acc")): text for task, (text, _) in TASKS.items()},
    }
    cells = []
    for name in dict.fromkeys(rows["name"]):
        own = rows.loc[rows["name"] == name]
        first = own.iloc[0]
        cells.append([first["label"], count_text(first["num_parameters"]), count_text(first["tokens"])])
        cells[-1] += [_number(own, *column) for column in columns]
    for one in PUBLISHED:
        values = [_text(one.values[column], math.nan, column[1]) if column in one.values else "-" for column in columns]
        cells.append([f"published: {one.label}", one.size, one.tokens, *values])
    return ["model", "parameters", "tokens", *columns.values()], cells


def _number(rows: pd.DataFrame, measure: str, metric: str) -> str:
    found = rows.loc[(rows["measure"] == measure) & (rows["metric"] == metric)]
    return "-" if found.empty else _text(float(found["value"].iloc[0]), float(found["stderr"].iloc[0]), metric)


def _text(value: float, error: float, metric: str) -> str:
    """
    >>> _text(0.5, 0.0123, "acc"), _text(30.123, 0.5, "word_perplexity"), _text(0.5227, math.nan, "acc")
    ('50.0 ± 1.2', '30.12 ± 0.50', '52.3')
    """
    scale, digits = (1.0, 2) if "perplexity" in metric else (100.0, 1)
    texts = [f"{scale * one:.{digits}f}" if scale * one < 1e5 else f"{one:.1e}" for one in (value, error)]
    return texts[0] if math.isnan(error) else " ± ".join(texts)


def caption(rows: pd.DataFrame) -> str:
    """What a table's numbers are of."""
    lengths, prefixes, dtypes, versions = (
        ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in rows[name].dropna().unique())
        for name in ("max_length", "prefix_token", "dtype", "lm_eval")
    )
    sources = ", ".join(dict.fromkeys(one.source for one in PUBLISHED))
    return (
        f"Accuracies in %, of HellaSwag and ARC-c normalised by length; ± one standard error, that of an average from "
        f"the tasks' own. At most {lengths} tokens are read before a target (max_length), a text without a context "
        f"begins with token {prefixes} (prefix token); {dtypes}, lm-eval {versions}; {subtitle(rows)}. "
        f"What is published was not measured here: printed in {sources}."
    )


def to_markdown(rows: pd.DataFrame) -> str:
    """The table of tasks with its caption, and that of the long-range measures where there are any."""
    header, cells = table_cells(rows)
    parts = ["\n".join(markdown_table(header, cells)), markdown_text(caption(rows))]
    for measure, (title, x, y) in PANELS.items():
        own = rows.loc[rows["measure"] == measure]
        if len(own):
            parts += [f"## {title}", "\n".join(markdown_table(*_points(own, x))), f"{y}, ± one standard error."]
    own = rows.loc[rows["measure"] == "lambada_target"]
    if len(own):
        parts += ["## LAMBADA's last word", "\n".join(markdown_table(*_points(own, "log-likelihood, nats a word")))]
    return "\n\n".join(parts)


def _points(own: pd.DataFrame, x: str) -> tuple[list[str], list[list[str]]]:
    """A row a point, a column a model."""
    names = list(dict.fromkeys(own["name"]))
    labels = [str(own.loc[own["name"] == name, "label"].iloc[0]) for name in names]
    cells = []
    for at in dict.fromkeys(own["at"]):
        found = [own.loc[(own["name"] == name) & (own["at"] == at)] for name in names]
        cells.append([str(at).replace("to", " to "), *(_nats(one) for one in found)])
    return [x, *labels], cells


def _nats(found: pd.DataFrame) -> str:
    if found.empty:
        return "-"
    value, error = (float(found[name].iloc[0]) for name in ("value", "stderr"))
    return f"{value:.3f}" if math.isnan(error) else f"{value:.3f} ± {error:.3f}"


def print_evaluation(folder: Path, name: str) -> None:
    """Prints the table of tasks of the model of a name, beside what is published."""
    rows = read_evaluation_csv(folder)
    rows = rows.loc[rows["name"] == name]
    header, cells = table_cells(rows)
    console = plain_console()
    table = Table(box=box.SIMPLE, title=Text(TITLE))
    # A column a model: more numbers than a terminal is wide.
    for i, text in enumerate(["", *(row[0] for row in cells if _is_shown(row))]):
        table.add_column(Text(text), justify="left" if i == 0 else "right")
    for i, text in enumerate(header[1:], start=1):
        table.add_row(*(Text(cell) for cell in [text, *(row[i] for row in cells if _is_shown(row))]))
    console.print(table)
    console.print(caption(rows), soft_wrap=True)


def _is_shown(row: list[str]) -> bool:
    """In a terminal: what is measured, and the published row that has tasks of their own."""
    return not row[0].startswith("published") or row.count("-") < len(row) // 2
