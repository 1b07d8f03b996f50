"""The numbers of the table: one row a model, stage of the figure and rule."""

import numpy as np
import pandas as pd

from palimpsa.analysis.statistics.learning_rate import (
    STAGE,
    at_chosen_rates,
    best_per_seed,
    finished_stages,
)
from palimpsa.runs.schema import ResultError

BOOTSTRAP_SEED = 0
NUM_RESAMPLES = 10_000
# Numbers drawn at a time.
_MAX_DRAWS = 4_000_000
ABOVE = 0.99

# The rules of choosing a learning rate, as the column `rule` names them.
VALIDATION = "validation"
BEST_PER_SEED = "best_per_seed"


def summarize(rows: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """The summary of one task and scale, by both rules.

    Means are over the seeds whose run finished; failed ones are counted beside. One row a rule,
    model and stage of the figure; a model without a finished run has rows whose numbers are NaN.

    Args:
        rows: from `learning_rate.one_experiment`.
        chosen: `learning_rate.choose_learning_rates(rows)`.

    Columns: rule ("validation": the learning rate by mean validation accuracy; "best_per_seed": by
    test accuracy for every seed and stage), model, label, seq_len (tokens), num_pairs, lr (NaN when
    seeds differ), lr_text (every rate and the seeds that took it), num_seeds, num_failed (seeds
    whose run failed at that rate; for best_per_seed: at every rate), mean, std (ddof 1; NaN for
    fewer than 2 seeds), median, ci_low, ci_high (`bootstrap_interval`), share_above (seeds with
    accuracy > 0.99), plateau_exit_step (median over seeds, training steps within the stage; a seed
    that never left counts as infinite, so inf means that half of the seeds or more never left),
    state_size (recurrent floats a layer and sequence), num_parameters. Accuracies are test
    accuracies, fractions of the query positions.

    Raises ResultError when runs of one row differ in state size or number of parameters.
    """
    by_rule = {
        VALIDATION: finished_stages(at_chosen_rates(rows, chosen)),
        BEST_PER_SEED: best_per_seed(rows),
    }
    stages = rows.loc[rows["test_accuracy"].notna(), STAGE].drop_duplicates().sort_values(STAGE)
    records = []
    for rule, dots in by_rule.items():
        for model, label, lr in chosen.loc[:, ["model", "label", "lr"]].itertuples(index=False, name=None):
            own = rows.loc[rows["model"] == model]
            figure = finished_stages(own).loc[:, STAGE].drop_duplicates()
            # A model whose runs all failed, at whatever stage, still has its place in the table.
            reached = figure.sort_values(STAGE) if len(figure) else stages
            tried = own.loc[own["lr"] == lr] if rule == VALIDATION and not np.isnan(lr) else own
            for seq_len, num_pairs in reached.itertuples(index=False, name=None):
                at = (dots["seq_len"] == seq_len) & (dots["num_pairs"] == num_pairs)
                seeds = dots.loc[at & (dots["model"] == model)].sort_values("seed")
                records.append(
                    {"rule": rule, "model": model, "label": label}
                    | {"seq_len": seq_len, "num_pairs": num_pairs}
                    | _statistics(seeds)
                    | {"num_failed": _num_failed(tried, seq_len, seeds)}
                    | {name: _size(seeds, own, name) for name in ("state_size", "num_parameters")}
                )
    return pd.DataFrame(records)


def _statistics(seeds: pd.DataFrame) -> dict[str, float | int | str]:
    accuracy = seeds["test_accuracy"].to_numpy(dtype=float)
    exits = seeds["plateau_exit_step"].astype("float64").fillna(np.inf).to_numpy()
    rates = seeds["lr"].value_counts().sort_index()
    low, high = bootstrap_interval(accuracy)
    some = len(accuracy) > 0
    return {
        "lr": rates.index[0] if len(rates) == 1 else np.nan,
        "lr_text": ", ".join(f"{lr:g}" if len(rates) == 1 else f"{lr:g} x{count}" for lr, count in rates.items()),
        "num_seeds": len(accuracy),
        "mean": accuracy.mean() if some else np.nan,
        "std": accuracy.std(ddof=1) if len(accuracy) > 1 else np.nan,
        "median": float(np.median(accuracy)) if some else np.nan,
        "ci_low": low,
        "ci_high": high,
        "share_above": (accuracy > ABOVE).mean() if some else np.nan,
        "plateau_exit_step": float(np.median(exits)) if some else np.nan,
    }


def bootstrap_interval(
    values: np.ndarray, *, seed: int = BOOTSTRAP_SEED, num_resamples: int = NUM_RESAMPLES
) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean; (NaN, NaN) for fewer than 2 values.

    Args:
        values: [n], one a seed.
        seed: of the numpy Generator; each call makes its own, so that no interval depends on which
            were computed before.
        num_resamples: draws of n values with replacement.
    """
    if len(values) < 2:
        return np.nan, np.nan
    generator = np.random.default_rng(seed)
    # The numbers are the same whichever way they are cut; all at once, those of 10,000 seeds take a gigabyte.
    num_rows = max(1, _MAX_DRAWS // len(values))
    sizes = [min(num_rows, num_resamples - start) for start in range(0, num_resamples, num_rows)]
    means = np.concatenate([generator.choice(values, size=(size, len(values))).mean(axis=1) for size in sizes])
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def mean_difference(sample: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The mean of one sample minus that of another, and its standard error (of independent samples, ddof 1).

    >>> mean_difference(np.array([2.0, 4.0]), np.array([1.0, 1.0]))
    (2.0, 1.0)
    """
    variance = sample.var(ddof=1) / len(sample) + other.var(ddof=1) / len(other)
    return float(sample.mean() - other.mean()), float(variance**0.5)


def _num_failed(tried: pd.DataFrame, seq_len: int, seeds: pd.DataFrame) -> int:
    """Seeds with a failed run for this length and no finished one."""
    failed = tried.loc[(tried["status"] != "finished") & tried["run_seq_len"].isin([0, seq_len])]
    return len(set(failed["seed"]) - set(seeds["seed"]))


def _size(seeds: pd.DataFrame, own: pd.DataFrame, name: str) -> float:
    """state_size or num_parameters of the runs of a row; of any run of the model if none."""
    values = (seeds if len(seeds) else own)[name].dropna().unique()
    if len(values) > 1 and len(seeds):
        model, seq_len = seeds[["model", "seq_len"]].iloc[0]
        raise ResultError(
            f"runs of {model} at sequence length {seq_len} have different {name}: "
            f"{', '.join(map(str, sorted(values)))}; expected one configuration a model. Give the "
            "other one a name of its own (variant=_NAME)"
        )
    return float(values[0]) if len(values) == 1 else np.nan


def plateau_exits(rows: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """Steps to leave the plateau, of every seed at the chosen rate and every stage, warm-up too.

    Returns one row a finished run and stage: model, label, seed, stage, seq_len, num_pairs, steps,
    plateau_exit_step (training steps within the stage, missing when the run never left).
    """
    ended = at_chosen_rates(rows, chosen)
    ended = ended.loc[(ended["status"] == "finished") & ended["stage"].notna()]
    columns = ["model", "label", "seed", "stage", *STAGE, "steps", "plateau_exit_step"]
    return ended.loc[:, columns].sort_values(["model", "stage", *STAGE, "seed"], ignore_index=True)
