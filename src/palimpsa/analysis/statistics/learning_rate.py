"""Which learning rate a figure shows: chosen on validation accuracy, or the authors' way.

Both functions take the rows of one task and scale (`one_experiment`). A *stage of the figure* is a
pair (seq_len, num_pairs) with a test accuracy in any run of the model; warm-up stages have none.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from palimpsa.runs.protocol import one_protocol
from palimpsa.runs.schema import ResultError

STAGE = ["seq_len", "num_pairs"]


def one_experiment(runs: pd.DataFrame, task: str, scale: str) -> pd.DataFrame:
    """The rows of runs.csv of one task and scale.

    Raises ResultError: there are none, or finished ones of different protocols.
    """
    rows = runs.loc[(runs["task"] == task) & (runs["scale"] == scale)]
    if rows.empty:
        known = sorted({f"{t}/{s}" for t, s in zip(runs["task"], runs["scale"], strict=True)})
        raise ResultError(f"no runs of {task}/{scale}, expected one of {', '.join(known)}")
    one_protocol(rows)
    return rows.reset_index(drop=True)


def finished_stages(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that are dots of the figure: stages with a test accuracy, of finished runs."""
    return rows.loc[(rows["status"] == "finished") & rows["test_accuracy"].notna()]


def score_learning_rates(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean validation accuracy of every model and learning rate, over comparable seeds.

    The score of a run is its validation accuracy averaged over the model's stages of the figure; a
    stage that it did not reach counts 0, and so does a failed run as a whole. The score of a
    learning rate is the mean over the seeds *common to all compared rates of the model*: a sweep in
    two phases (every rate with few seeds, then the best one with more) so compares like with like.
    Without any common seed each rate is scored on its own seeds, and `common_seeds` says False.

    Which rates are compared: those with at least as many seeds, failed ones included, as the rate
    with the second most. A stray run so neither shrinks the common seeds nor is chosen on its own:

        seeds a rate    compared
        3 3 1           3 3      one exploratory run
        8 3 3 3         8 3 3 3  two phases, on the seeds of the first
        3 1             3 1      of two rates both, on the one seed
        8 8 3 3         8 8      the price: a second phase at two rates leaves the others behind

    All rates are compared when none of those so found has a finished run.

    Returns one row a model and learning rate, sorted: model, lr, compared, score (a fraction; NaN
    when not compared), num_seeds (in the score; when not compared, those it has), common_seeds,
    num_finished (runs with a stage of the figure).
    """
    records = []
    for model, own in rows.groupby("model"):
        scores = _run_scores(own)
        # Seeds as sets: a rate may lack a seed that has not been run yet.
        seeds = {lr: set(group.index.get_level_values("seed")) for lr, group in scores.groupby("lr")}
        num_finished = finished_stages(own).groupby("lr")["seed"].nunique()
        compared = _enough_seeds(seeds)
        if not compared & set(num_finished.index):
            compared = set(seeds)
        common = set.intersection(*(seeds[lr] for lr in compared))
        # A rate of which every seed lacks a length has no score, but its place in the list.
        for lr, runs in own.groupby("lr"):
            finished = num_finished.get(lr, 0)
            if lr not in compared:
                records.append((model, lr, False, float("nan"), runs["seed"].nunique(), False, finished))
                continue
            by_seed = scores.xs(lr, level="lr")
            used = by_seed[by_seed.index.isin(common)] if common else by_seed
            records.append((model, lr, True, used.mean(), len(used), bool(common), finished))
    columns = ["model", "lr", "compared", "score", "num_seeds", "common_seeds", "num_finished"]
    return pd.DataFrame(records, columns=columns)


def _enough_seeds(seeds: Mapping[Any, set[int]]) -> set[Any]:
    counts = sorted((len(own) for own in seeds.values()), reverse=True)
    return {lr for lr, own in seeds.items() if len(own) >= counts[:2][-1]}


def not_compared(rows: pd.DataFrame) -> list[str]:
    """The learning rates that `score_learning_rates` leaves out of the choice, one a line for a person."""
    labels = dict(zip(rows["model"], rows["label"], strict=True))
    scores = score_learning_rates(rows)
    left_out = scores.loc[~scores["compared"]]
    return [
        f"{labels[model]}: lr {lr:g} not compared ({seeds_text(num_seeds)})"
        for model, lr, num_seeds in left_out.loc[:, ["model", "lr", "num_seeds"]].itertuples(index=False, name=None)
    ]


def seeds_text(num_seeds: int) -> str:
    """
    >>> seeds_text(1), seeds_text(3)
    ('1 seed', '3 seeds')
    """
    return f"{num_seeds} seed{'' if num_seeds == 1 else 's'}"


def _run_scores(own: pd.DataFrame) -> pd.Series:
    """The score of every run of one model, indexed by (lr, seed)."""
    figure = own.loc[own["test_accuracy"].notna()]
    stages = pd.MultiIndex.from_frame(figure.loc[:, STAGE].drop_duplicates())
    # Where one run trains one length, a (lr, seed) is comparable when none of its runs is missing.
    parts = own.groupby(["lr", "seed"])["run_seq_len"].nunique()
    present = parts.loc[parts == own["run_seq_len"].nunique()].index
    if not len(present):
        present = parts.index
    reached = finished_stages(own).pivot_table(index=["lr", "seed"], columns=STAGE, values="validation_accuracy")
    if not len(stages):
        return pd.Series(0.0, index=present)
    return reached.reindex(index=present, columns=stages).fillna(0.0).mean(axis=1)


def choose_learning_rates(rows: pd.DataFrame) -> pd.DataFrame:
    """The learning rate of each model with the best score of `score_learning_rates`.

    Ties go to the smaller rate. A model without a finished run has no rate: lr is NaN.

    Returns one row a model: model, label, lr, score, num_seeds (in the score), common_seeds,
    num_rates (compared), num_finished (runs at the chosen rate).
    """
    records = []
    for model, scores in score_learning_rates(rows).groupby("model"):
        labels = rows.loc[rows["model"] == model, "label"]
        usable = scores.loc[scores["compared"] & (scores["num_finished"] > 0)]
        # Stable: of equal scores the first, and so the smaller rate, stays first.
        best = usable.sort_values("score", ascending=False, kind="stable").head(1)
        chosen = best.iloc[0].to_dict() if len(best) else {"common_seeds": False, "num_finished": 0}
        records.append({"model": model, "label": labels.iloc[0], "num_rates": scores["compared"].sum()} | chosen)
    columns = [
        "model",
        "label",
        "lr",
        "score",
        "num_seeds",
        "common_seeds",
        "num_rates",
        "num_finished",
    ]
    return pd.DataFrame(records).reindex(columns=columns)


def several_rates(rows: pd.DataFrame) -> np.ndarray:
    """Whether the rows of runs.csv have more than one learning rate: a bool for each model."""
    return rows.groupby("model")["lr"].nunique().to_numpy() > 1


def choice_text(rows: pd.DataFrame) -> str:
    """How the models of these rows of runs.csv came by the learning rates of `choose_learning_rates`, for a caption."""
    several = several_rates(rows)
    if not several.any():
        return "the only one that was run"
    return "chosen by mean validation accuracy" + ("" if several.all() else " where several were run")


def at_chosen_rates(rows: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs.csv or curves.csv of each model's chosen learning rate."""
    return rows.merge(chosen.loc[chosen["lr"].notna(), ["model", "lr"]], on=["model", "lr"])


def best_per_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """The authors' reading: the learning rate with the best *test* accuracy, seed by seed.

    It picks, for every seed and stage, on the very number it reports, and so is optimistic: shown
    only as a second, labelled column. Ties go to the smaller rate; only finished runs take part.

    Returns the chosen rows of runs.csv, one a model, stage of the figure and seed.
    """
    ordered = finished_stages(rows).sort_values(
        ["model", *STAGE, "seed", "test_accuracy", "lr"],
        ascending=[True, True, True, True, False, True],
    )
    return ordered.drop_duplicates(["model", *STAGE, "seed"]).reset_index(drop=True)
