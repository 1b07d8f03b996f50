"""What runs recall at lengths beyond those that they were trained on, and with interference: two tables."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from palimpsa.analysis.collect.length_files import read_lengths_csv
from palimpsa.analysis.style import model_order
from palimpsa.analysis.tables import count_text, markdown_table, mean_and_std

SCALE = "h200"
FILE = "lengths.csv"
COMMAND = "scripts/evaluate_lengths.py results/recipe/runs --task"


def beyond_table(results: Path) -> str:
    """A row a model of +experiment=recipe_beyond, a column a length and number of pairs."""
    rows = _rows_of(results, "mqar_kept")
    if rows.empty:
        return _not_run("recipe_beyond", f"{COMMAND} mqar_kept")
    rows = rows.loc[rows["metric"] == "accuracy"]
    columns = {
        f"L {count_text(seq_len)}, {num_pairs} pairs": rows.loc[
            (rows["seq_len"] == seq_len) & (rows["num_pairs"] == num_pairs)
        ]
        for seq_len, num_pairs in sorted(set(rows[["seq_len", "num_pairs"]].itertuples(index=False, name=None)))
    }
    return _table(rows, columns, "Trained up to L 1,024 with 256 pairs, tested without any training.")


def interference_table(results: Path) -> str:
    """A row a model of +experiment=recipe_interference, a column a kind of query, at the greatest trained length."""
    rows = _rows_of(results, "mqar_interference")
    if rows.empty:
        return _not_run("recipe_interference", f"{COMMAND} mqar_interference --lengths 1024:128")
    longest = rows.loc[rows["seq_len"] == rows["seq_len"].max()]
    metrics = [name for name in dict.fromkeys(longest["metric"]) if name.startswith("accuracy")]
    columns = {
        name.removeprefix("accuracy/").replace("accuracy", "all queries").replace("_", ", "): longest.loc[
            longest["metric"] == name
        ]
        for name in metrics
    }
    seq_len, num_pairs = longest.iloc[0][["seq_len", "num_pairs"]]
    return _table(longest, columns, f"At L {count_text(seq_len)} with {num_pairs} pairs, half of them written twice.")


def _rows_of(results: Path, task: str) -> pd.DataFrame:
    rows = read_lengths_csv(results / "recipe" / FILE)
    return rows.loc[(rows["task"] == task) & (rows["scale"] == SCALE)]


def _not_run(experiment: str, command: str) -> str:
    return _wrapped(f"Not run yet: `scripts/train.py +experiment={experiment}`, then `{command}`.")


def _table(rows: pd.DataFrame, columns: dict[str, pd.DataFrame], caption: str) -> str:
    labels = dict(zip(rows["model"], rows["label"], strict=True))
    seeds = rows.groupby("model")["seed"].nunique()
    cells: list[list[str]] = [
        [
            labels[model],
            str(seeds[model]),
            *(_text(own.loc[own["model"] == model, "value"]) for own in columns.values()),
        ]
        for model in model_order(labels)
    ]
    lines: Sequence[str] = markdown_table(["model", "seeds", *columns], cells)
    return "\n".join([*lines, "", _wrapped(f"Test accuracy in %, mean ± standard deviation over seeds. {caption}")])


def _text(values: pd.Series) -> str:
    found = values.to_numpy(dtype=float)
    return "-" if not len(found) else mean_and_std(found.mean(), found.std(ddof=1) if len(found) > 1 else float("nan"))


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 118, break_on_hyphens=False)
