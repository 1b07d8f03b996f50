"""What runs recall at lengths beyond those that they were trained on, and with interference: two tables."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from palimpsa.analysis.collect.length_files import read_lengths_csv
from palimpsa.analysis.recipe.selection_table import PROTOCOLS
from palimpsa.analysis.statistics.learning_rate import seeds_text
from palimpsa.analysis.style import model_order
from palimpsa.analysis.tables import count_text, markdown_table, mean_and_std

SCALE = "h200"
FILE = "lengths.csv"
COMMAND = "scripts/evaluate_lengths.py results/recipe/runs --task"
# The greatest length that interference is trained on, and its pairs.
TRAINED = (1_024, 128)


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
    caption = "Trained up to L 1,024 with 256 pairs, tested without any training."
    return _table(rows, columns, caption + _unfinished(rows, "recipe_beyond"))


def interference_table(results: Path) -> str:
    """A row a model of +experiment=recipe_interference, a column a kind of query, at the greatest trained length."""
    rows = _rows_of(results, "mqar_interference")
    if rows.empty:
        return _not_run("recipe_interference", f"{COMMAND} mqar_interference --lengths 1024:128")
    measured = sorted(set(rows[["seq_len", "num_pairs"]].itertuples(index=False, name=None)))
    seq_len, num_pairs = TRAINED if TRAINED in measured else measured[-1]
    rows = rows.loc[(rows["seq_len"] == seq_len) & (rows["num_pairs"] == num_pairs)]
    metrics = [name for name in dict.fromkeys(rows["metric"]) if name.startswith("accuracy")]
    columns = {
        name.removeprefix("accuracy/").replace("accuracy", "all queries").replace("_", ", "): rows.loc[
            rows["metric"] == name
        ]
        for name in metrics
    }
    caption = f"At L {count_text(seq_len)} with {num_pairs} pairs, half of them written twice."
    return _table(rows, columns, caption + _unfinished(rows, "recipe_interference"))


def _rows_of(results: Path, task: str) -> pd.DataFrame:
    rows = read_lengths_csv(results / "recipe" / FILE)
    return rows.loc[(rows["task"] == task) & (rows["scale"] == SCALE)]


def _not_run(experiment: str, command: str) -> str:
    return _wrapped(f"Not run yet: `scripts/train.py +experiment={experiment}`, then `{command}`.")


def _unfinished(rows: pd.DataFrame, experiment: str) -> str:
    """The end of a caption: how many of an experiment's runs were tested, where not all."""
    (num_runs,) = (protocol.num_runs for protocol in PROTOCOLS if protocol.experiment == experiment)
    tested = len(rows[["model", "lr", "seed"]].drop_duplicates())
    return "" if num_runs is None or tested >= num_runs else f" Only some of its runs: {tested} of {num_runs}."


def _table(rows: pd.DataFrame, columns: dict[str, pd.DataFrame], caption: str) -> str:
    """A row a model, and a learning rate where it has several; a cell of fewer seeds than its row's says how many."""
    labels = dict(zip(rows["model"], rows["label"], strict=True))
    cells: list[list[str]] = []
    for model in model_order(labels):
        own = rows.loc[rows["model"] == model]
        rates = sorted(set(own["lr"]))
        for lr in rates:
            num_seeds = own.loc[own["lr"] == lr, "seed"].nunique()
            values = [part.loc[(part["model"] == model) & (part["lr"] == lr), "value"] for part in columns.values()]
            name = labels[model] if len(rates) == 1 else f"{labels[model]}, rate {lr:g}"
            cells.append([name, str(num_seeds), *(_text(one, num_seeds) for one in values)])
    lines: Sequence[str] = markdown_table(["model", "seeds", *columns], cells)
    return "\n".join([*lines, "", _wrapped(f"Test accuracy in %, mean ± standard deviation over seeds. {caption}")])


def _text(values: pd.Series, num_seeds: int) -> str:
    found = values.to_numpy(dtype=float)
    if not len(found):
        return "-"
    text = mean_and_std(found.mean(), found.std(ddof=1) if len(found) > 1 else float("nan"))
    return text if len(found) == num_seeds else f"{text} ({seeds_text(len(found))})"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 118, break_on_hyphens=False)
