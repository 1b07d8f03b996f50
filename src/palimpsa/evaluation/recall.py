"""Recall of what was read once, in synthetic texts: nats that a true context gains over a shuffled one.

The shuffled context has the same tokens, and the answer among them: what it lacks is what belongs to what. So the
difference is memory for a binding, and neither knowledge nor a liking for tokens that were seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from palimpsa.evaluation.models.codecs import Codec
from palimpsa.evaluation.models.scoring import Request, Scorer
from palimpsa.evaluation.perplexity import Point
from palimpsa.evaluation.statistics import standard_error

FIRST_NAMES = (
    *("Alice", "Benjamin", "Clara", "Daniel", "Emma", "Frederick", "Grace", "Henry", "Irene", "Jacob", "Kate"),
    *("Louis", "Martha", "Nathan", "Olivia", "Peter", "Rose", "Samuel", "Teresa", "Victor", "Walter"),
)
LAST_NAMES = (
    *("Adams", "Baker", "Carter", "Dixon", "Evans", "Fisher", "Green", "Harris", "Irving", "Jackson", "King"),
    *("Lewis", "Morris", "Nelson", "Owens", "Parker", "Reed", "Stone", "Turner", "Walker", "Young"),
)
# Of entries: every name stands in a book once.
MAX_BOOK_SIZE = len(FIRST_NAMES) * len(LAST_NAMES)


class Contrast(NamedTuple):
    """true, shuffled: requests of the same targets after a true and a shuffled context."""

    true: Request
    shuffled: Request


def phonebook(codec: Codec, size: int, generator: np.random.Generator) -> Contrast:
    """A phonebook, and the number of one of its names.

    "Clara Reed: 815-3907", one a line; then a name of the book again, and a colon: the targets are its number's tokens.
    In the shuffled book every number stands beside another name.

    Args:
        size: entries, in 2..`MAX_BOOK_SIZE`.
        generator: of names, numbers, the name that is asked for and the shuffle.
    """
    places = generator.choice(MAX_BOOK_SIZE, size, replace=False)
    names = [f"{FIRST_NAMES[place // len(LAST_NAMES)]} {LAST_NAMES[place % len(LAST_NAMES)]}" for place in places]
    digits = generator.choice(10**7, size, replace=False)
    numbers = [f"{one // 10**4:03d}-{one % 10**4:04d}" for one in digits.tolist()]
    asked, shift = int(generator.integers(size)), int(generator.integers(1, size))
    shuffled = numbers[shift:] + numbers[:shift]
    return Contrast(*(_ask(codec, names, book, asked, numbers[asked]) for book in (numbers, shuffled)))


def _ask(codec: Codec, names: Sequence[str], numbers: Sequence[str], asked: int, answer: str) -> Request:
    book = "".join(f"{name}: {number}\n" for name, number in zip(names, numbers, strict=True))
    question = f"{book}{names[asked]}:"
    tokens = codec.encode(f"{question} {answer}", add_special_tokens=False)
    # As the harness tells an answer from its context.
    return Request(tokens, len(tokens) - len(codec.encode(question, add_special_tokens=False)))


def repeat_copy(alphabet: np.ndarray, length: int, generator: np.random.Generator) -> Contrast:
    """Tokens without a meaning, and the same again.

    The targets are those of the repetition from the second on: nobody can know where it begins. In the shuffled text
    the first `length` tokens stand in another order.

    Args:
        alphabet: [n] tokens to draw from; where there are enough each is drawn once at most.
        length: of what is copied, >= 2.
        generator: of the draw and the shuffle.
    """
    tokens = generator.choice(alphabet, length, replace=len(alphabet) < length)
    orders = (tokens, generator.permutation(tokens))
    return Contrast(*(Request([*first.tolist(), *tokens.tolist()], length - 1) for first in orders))


def nats_gained(scorer: Scorer, contrasts: Sequence[Contrast], at: str, *, per_token: bool) -> Point:
    """Nats of the targets after the shuffled context minus those after the true one.

    Args:
        contrasts: at least two.
        at: of the point.
        per_token: a target token, else all of them together.

    Returns:
        the mean over contrasts, with its standard error: 0 of a model that remembers nothing, and of targets of which
        each costs c nats without memory, and none with it, c.
    """
    scores = scorer.score([request for one in contrasts for request in one])
    totals = np.array([score.losses.sum() for score in scores]).reshape(-1, 2)
    gains = totals[:, 1] - totals[:, 0]
    if per_token:
        gains /= [one.true.num_targets for one in contrasts]
    return Point(at, float(gains.mean()), standard_error(gains), len(gains))
