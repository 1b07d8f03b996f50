"""What a model predicts of long documents: loss by position, and of rare bigrams that stand there again.

Every measure is of the nats of each token of a document, read from its first token on without a cut, whatever the
context of training was: what a memory of a fixed size has kept shows in what is far away.
"""

# D documents, T tokens of each, V vocabulary

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from palimpsa.evaluation.models.scoring import Request, Scorer
from palimpsa.evaluation.statistics import Measured, standard_error
from palimpsa.tasks.perplexity import bin_name
from palimpsa.text.shards import TokenShards

# Of the training text that is counted at a time.
TOKENS_AT_A_TIME = 1 << 22
FIRST = "first"


class Point(NamedTuple):
    """A measured number: at: where, a bin of positions say. value, stderr: nats; NaN where there is no error, as of a
    single document. count: of what it is the mean, targets or items."""

    at: str
    value: float
    stderr: float
    count: int


def document_losses(scorer: Scorer, documents: np.ndarray) -> np.ndarray:
    """Nats of every token but the first.

    Args:
        documents: [D, T] token ids.

    Returns:
        [D, T - 1] float64.
    """
    length = documents.shape[1]
    scores = scorer.score([Request(one.tolist(), length - 1) for one in documents])
    return np.stack([score.losses for score in scores])


def loss_by_position(losses: np.ndarray) -> list[Point]:
    """Mean nats of the tokens that are predicted from 1, 2, 3 to 4, 5 to 8... tokens before them.

    Args:
        losses: [D, T - 1], of `document_losses`.

    Returns:
        a point a bin, named as validation names them; standard errors over documents.
    """
    seen = np.arange(1, losses.shape[1] + 1)
    bins = np.ceil(np.log2(seen)).astype(np.int64)
    points = []
    for k in range(int(bins[-1]) + 1):
        means = losses[:, bins == k].mean(axis=1)
        points.append(Point(bin_name(k), float(means.mean()), standard_error(means), losses[:, bins == k].size))
    return points


def rare_bigrams_by_age(
    documents: np.ndarray, losses: np.ndarray, training: TokenShards, *, max_count: int
) -> list[Point]:
    """In-context recall in natural text: nats of the second token of rare bigrams that stood in the document before.

    A bigram is two neighbouring tokens of a document. It is rare where the training text has it at most `max_count`
    times, so that its second token is not known from training but, if at all, from the document. Its age is the number
    of tokens since the same bigram stood there last: a name that a text comes back to after 1,000 tokens has age 1,000.

    Args:
        documents: [D, T] token ids.
        losses: [D, T - 1], of `document_losses`.
        training: the token shards that the model was trained on, by the same tokenizer.
        max_count: >= 0.

    Returns:
        "first": where those rare bigrams that come again stand first in their document, then a point for each age 1, 2,
        3 to 4... that there is; what is left of the first is what memory gains. Standard errors over documents, each
        weighted by its number of places. Empty where no rare bigram stands twice.
    """
    codes = documents[:, :-1] * training.vocab_size + documents[:, 1:]
    ages = np.stack([ages_of(one) for one in codes])
    comes_again = np.stack([np.isin(one, one[age > 0]) for one, age in zip(codes, ages, strict=True)])
    candidates = np.unique(codes[comes_again])
    rare = candidates[count_bigrams(training, candidates) <= max_count]
    is_rare = np.isin(codes, rare)
    points = []
    bins = np.ceil(np.log2(np.maximum(ages, 1))).astype(np.int64)
    masks = {FIRST: is_rare & (ages == 0)}
    masks |= {bin_name(k): is_rare & (ages > 0) & (bins == k) for k in range(int(bins.max()) + 1)}
    for name, mask in masks.items():
        if mask.any():
            points.append(_weighted_mean(name, losses, mask))
    return points


def ages_of(codes: np.ndarray) -> np.ndarray:
    """How many places ago each entry stood last; 0: never.

    >>> ages_of(np.array([7, 8, 7, 7, 8])).tolist()
    [0, 0, 2, 1, 3]
    """
    # Equal ones side by side, in the order in which they stand.
    order = np.argsort(codes, kind="stable")
    sorted_codes = codes[order]
    ages = np.zeros(len(codes), np.int64)
    is_same = sorted_codes[1:] == sorted_codes[:-1]
    ages[order[1:][is_same]] = (order[1:] - order[:-1])[is_same]
    return ages


def count_bigrams(shards: TokenShards, codes: np.ndarray) -> np.ndarray:
    """How often bigrams stand in a text.

    Args:
        codes: [n], sorted, each once: first token times the shards' vocab_size plus second token. Across the end of a
            document there is no bigram: none with end_of_text is one of a document's.

    Returns:
        [n] int64.
    """
    counts = np.zeros(len(codes), np.int64)
    if not len(codes):
        return counts
    for start in range(0, shards.num_tokens - 1, TOKENS_AT_A_TIME):
        tokens = shards.tokens(start, min(start + TOKENS_AT_A_TIME + 1, shards.num_tokens))
        found = tokens[:-1] * shards.vocab_size + tokens[1:]
        places = np.minimum(np.searchsorted(codes, found), len(codes) - 1)
        counts += np.bincount(places[codes[places] == found], minlength=len(codes))
    return counts


def _weighted_mean(name: str, losses: np.ndarray, mask: np.ndarray) -> Point:
    """The mean over a mask's places; its standard error is a ratio's over documents, to first order."""
    sums, counts = np.where(mask, losses, 0).sum(axis=1), mask.sum(axis=1)
    value, total = float(sums.sum() / counts.sum()), int(counts.sum())
    residuals = (sums - value * counts)[counts > 0]
    n = len(residuals)
    stderr = math.sqrt(n / (n - 1) * float((residuals**2).sum())) / total if n > 1 else math.nan
    return Point(name, value, stderr, total)


def target_log_likelihood(perplexity: Measured, num_items: int) -> Point:
    """LAMBADA's target log-likelihood: the mean over texts of log p(last word | all before it), nats a word.

    It is minus the logarithm of the task's perplexity, and where accuracies are still at nought it tells models apart.

    >>> target_log_likelihood(Measured(math.e**3, 2 * math.e**3), 10)
    Point(at='all', value=-3.0, stderr=2.0, count=10)
    """
    return Point("all", -math.log(perplexity.value), perplexity.stderr / perplexity.value, num_items)
