"""Tables of evaluation.csv, beside what others have published, as Markdown; the names of tasks and measures in them."""

import math
import textwrap
from pathlib import Path

import pandas as pd

from palimpsa.analysis.collect.evaluation_files import read_evaluation_csv
from palimpsa.analysis.language.published_numbers import FEWEST_TOKENS, PUBLISHED
from palimpsa.analysis.tables import count_text, markdown_table
from palimpsa.config.text import markdown_text

# In the order of the table, with what guessing gets: LAMBADA's word is one of thousands, BoolQ's answer mostly yes.
TASKS = {
    "lambada_openai": ("LAMBADA", 0.0),
    "piqa": ("PIQA", 0.5),
    "hellaswag": ("HellaSwag", 0.25),
    "winogrande": ("WinoGrande", 0.5),
    "arc_easy": ("ARC-e", 0.25),
    "arc_challenge": ("ARC-c", 0.25),
    "social_iqa": ("SIQA", 1 / 3),
    "boolq": ("BoolQ", 0.5),
    "average_of_7": ("average of 7", None),
    "average_of_8": ("with BoolQ", None),
}
# Title, x axis, y axis.
PANELS = {
    "loss_by_position": ("Loss by position", "tokens before it", "nats a token"),
    "rare_bigrams": ("Rare bigrams that come again", "tokens since the last time", "nats"),
    "phonebook": ("Phonebook, against a shuffled one", "entries", "nats a number gained"),
    "repeat_copy": ("Repeated tokens, against shuffled ones", "tokens", "nats a token gained"),
}
# Columns before the accuracies: task, metric, header.
PERPLEXITIES = {
    ("wikitext", "word_perplexity"): "WikiText ppl",
    ("lambada_openai", "perplexity"): "LAMBADA ppl",
}
# Of the fewest tokens that what is published was trained on: below it numbers are not compared with those.
SMALL_SHARE = 0.1
_ACCURACY_METRICS = {"hellaswag": "acc_norm", "arc_challenge": "acc_norm"}


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
    if rows["tokens"].to_numpy(dtype=float).max(initial=0) < SMALL_SHARE * FEWEST_TOKENS:
        parts.append("small scale")
    if seeds:
        parts.append("one seed" if len(seeds) == 1 else f"{len(seeds)} seeds")
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
        # As they are printed.
        values = [
            _text(one.values[column], math.nan, column[1], digits=2) if column in one.values else "-"
            for column in columns
        ]
        cells.append([f"published: {one.label}", one.size, one.tokens, *values])
    return ["model", "parameters", "tokens", *columns.values()], cells


def _number(rows: pd.DataFrame, measure: str, metric: str) -> str:
    found = rows.loc[(rows["measure"] == measure) & (rows["metric"] == metric)]
    return "-" if found.empty else _text(float(found["value"].iloc[0]), float(found["stderr"].iloc[0]), metric)


def _text(value: float, error: float, metric: str, digits: int | None = None) -> str:
    """
    >>> _text(0.5, 0.0123, "acc"), _text(30.123, 0.5, "word_perplexity"), _text(4.027e5, 8e4, "perplexity")
    ('50.0 ± 1.2', '30.12 ± 0.50', '4.0e+05 ± 8.0e+04')
    """
    scale, own = (1.0, 2) if "perplexity" in metric else (100.0, 1)
    text = f".{own if digits is None else digits}f" if value < 1e5 else ".1e"
    texts = [format(scale * one, text) for one in (value, error)]
    return texts[0] if math.isnan(error) else " ± ".join(texts)


def caption(rows: pd.DataFrame) -> str:
    """What a table's numbers are of."""
    lengths, prefixes, dtypes, versions = (
        ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in rows[name].dropna().unique())
        for name in ("max_length", "prefix_token", "dtype", "lm_eval")
    )
    return (
        f"Accuracies in %, of HellaSwag and ARC-c normalised by length; ± one standard error, that of an average from "
        f"the tasks' own. At most {lengths} tokens are read before a target (max_length), a text without a context "
        f"begins with token {prefixes} (prefix token); {dtypes}, lm-eval {versions}; {subtitle(rows)}. "
        f"What is published was not measured here: printed in {_sources()}."
    )


def zero_shot_summary(results: Path) -> str:
    """The table of tasks of results/commonsense, as a page shows it; of ours there may be none.

    Raises:
        ResultError: see `read_evaluation_csv`.
    """
    rows = read_evaluation_csv(results / "commonsense")
    header, cells = table_cells(rows)
    text = caption(rows) if len(rows) else f"Of ours none has been measured. Printed in {_sources()}."
    return "\n".join([*markdown_table(header, cells), "", textwrap.fill(markdown_text(text), 118)])


def _sources() -> str:
    return ", ".join(dict.fromkeys(one.source for one in PUBLISHED))


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
