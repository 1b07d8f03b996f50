"""Measured values and their standard errors: accuracies, perplexities, means."""

# n items

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from palimpsa.config.errors import ConfigError


@dataclass(frozen=True)
class Measured:
    """A value with its standard error; NaN where there is none, as of a single item."""

    value: float
    stderr: float


@dataclass(frozen=True)
class TaskResult:
    """metrics: by the harness's names. num_items: that were scored. num_truncated: requests of which some context was
    not read, being more than max_length. seconds: the first calls included."""

    metrics: dict[str, Measured]
    num_items: int
    num_truncated: int
    seconds: float


def check_measured(model: str, what: str, value: float, stderr: float) -> None:
    """Raises ConfigError, in one line, where a value is no number, or its standard error is infinite; NaN is for none.

    Args:
        model: its name.
        what: was measured: "perplexity of lambada_openai".
        value, stderr: of a `Measured`, or of a point.
    """
    expected = "expected a finite number: what this model predicts is out of range"
    if not math.isfinite(value):
        raise ConfigError(f"{what} is {value} for {model}, {expected}")
    if math.isinf(stderr):
        raise ConfigError(f"{what} has the standard error {stderr} for {model}, {expected}")


def mean_accuracy(values: np.ndarray) -> Measured:
    """Of items [n] that are right or wrong.

    >>> mean_accuracy(np.array([1.0, 0.0, 1.0, 1.0]))
    Measured(value=0.75, stderr=0.25)
    """
    return Measured(float(values.mean()), standard_error(values))


def mean_perplexity(log_likelihoods: np.ndarray) -> Measured:
    """exp of minus the mean of log-likelihoods [n]; its error, that of the mean times it, to first order."""
    value = _exp(-float(log_likelihoods.mean()))
    return Measured(value, value * standard_error(log_likelihoods))


def ratio_perplexity(log_likelihoods: np.ndarray, words: np.ndarray) -> Measured:
    """exp of minus the sum of log-likelihoods [n] over that of words [n]; its error is the ratio's, to first order."""
    ratio = float(log_likelihoods.sum() / words.sum())
    value = _exp(-ratio)
    # A document counts by its words.
    residuals = (log_likelihoods - ratio * words) / words.mean()
    return Measured(value, value * standard_error(residuals))


def standard_error(values: np.ndarray) -> float:
    """Of the mean of values [n]; NaN where there is one alone."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _exp(nats: float) -> float:
    # Where exp would leave the range of a float: no text has such a perplexity.
    return math.exp(min(nats, 700.0))
