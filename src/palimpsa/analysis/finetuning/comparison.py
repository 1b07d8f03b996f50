"""Converted minus continued, pair by pair: the mean difference, how sure it is, and what would have been found."""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd

from palimpsa.analysis.finetuning.pairs import CONTINUED, CONVERTED, SOURCE
from palimpsa.analysis.statistics.power import POWER, critical_value, detectable_effect, power_of
from palimpsa.analysis.statistics.summary import BOOTSTRAP_SEED, NUM_RESAMPLES, bootstrap_interval

# Rows of the table for which smaller is better: all that are nats or perplexities. Of nats gained more is better.
HIGHER_IS_BETTER = ("accuracy", "phonebook", "repeat_copy")


class Comparison(NamedTuple):
    """One measure of one model at one place.

    source, continued, converted: means over seeds, source NaN where it was not measured there. difference: converted
    minus continued, the mean over pairs. bootstrap: its 95% interval over pairs. interval: the 95% interval of
    Student's t. detectable: the difference that a two-sided paired t-test at 5% finds with 80% probability, if
    differences spread as they do here. power: of a difference as large as the one that was found. All NaN where there
    is one pair, the last two also where all differences are equal.
    """

    demonstration: str
    scale: str
    model: str
    label: str
    measure: str
    at: str
    num_pairs: int
    source: float
    continued: float
    converted: float
    difference: float
    bootstrap: tuple[float, float]
    interval: tuple[float, float]
    detectable: float
    power: float


def compare(rows: pd.DataFrame) -> list[Comparison]:
    """Every measure of pairs.csv that both arms of a seed have, in the order of the file."""
    found = []
    columns = ["demonstration", "scale", "model", "label", "measure", "at"]
    for place, own in rows.groupby(columns, sort=False):
        assert isinstance(place, tuple)
        demonstration, scale, model, label, measure, at = map(str, place)
        by_arm = own.pivot(index="seed", columns="arm", values="value").reindex(columns=[SOURCE, CONTINUED, CONVERTED])
        pairs = by_arm.dropna(subset=[CONTINUED, CONVERTED])
        if not len(pairs):
            continue
        source, continued, converted = (pairs[arm].to_numpy(dtype=float) for arm in (SOURCE, CONTINUED, CONVERTED))
        difference, bootstrap, interval, detectable, power = _of_differences(converted - continued)
        found.append(
            Comparison(
                demonstration=demonstration,
                scale=scale,
                model=model,
                label=label,
                measure=measure,
                at=at,
                num_pairs=len(pairs),
                source=float(source.mean()),
                continued=float(continued.mean()),
                converted=float(converted.mean()),
                difference=difference,
                bootstrap=bootstrap,
                interval=interval,
                detectable=detectable,
                power=power,
            )
        )
    return found


def _of_differences(
    differences: np.ndarray,
) -> tuple[float, tuple[float, float], tuple[float, float], float, float]:
    """difference, bootstrap, interval, detectable, power: see `Comparison`."""
    mean, n = float(differences.mean()), len(differences)
    if n < 2:
        return mean, (math.nan, math.nan), (math.nan, math.nan), math.nan, math.nan
    deviation = float(differences.std(ddof=1))
    half = critical_value(n) * deviation / math.sqrt(n)
    # Differences that are all the same say nothing of how they would spread.
    spreads = deviation > 0
    detectable = detectable_effect(n) * deviation if spreads else math.nan
    power = power_of(abs(mean) / deviation, n) if spreads else math.nan
    return mean, bootstrap_interval(differences), (mean - half, mean + half), detectable, power


def bootstrap_documents(documents: pd.DataFrame, demonstration: str, model: str) -> tuple[float, tuple[float, float]]:
    """Converted minus continued in nats a token of documents, and its 95% interval over seeds and documents.

    Seeds and documents are drawn with replacement, each by itself, and crossed: every run reads every document.

    Args:
        documents: of documents.csv.

    Returns:
        NaN where there are no pairs, or one alone.
    """
    own = documents.loc[(documents["demonstration"] == demonstration) & (documents["model"] == model)]
    arms = [
        own.loc[own["arm"] == arm].pivot(index="seed", columns="document", values="loss")
        for arm in (CONVERTED, CONTINUED)
    ]
    differences = (arms[0] - arms[1]).dropna().to_numpy(dtype=float)
    if len(differences) < 2:
        return math.nan, (math.nan, math.nan)
    generator, (num_seeds, num_documents) = np.random.default_rng(BOOTSTRAP_SEED), differences.shape
    # How often each is drawn, instead of the draws themselves.
    seeds = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), NUM_RESAMPLES) / num_seeds
    chosen = generator.multinomial(num_documents, np.full(num_documents, 1 / num_documents), NUM_RESAMPLES)
    means = ((seeds @ differences) * (chosen / num_documents)).sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(differences.mean()), (float(low), float(high))


def power_text() -> str:
    """What `detectable` and `power` are, for a caption."""
    return f"found with {POWER:.0%} probability by a two-sided paired t-test at 5%"
