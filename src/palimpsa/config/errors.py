"""Errors that a person should read: one line that names the key, what came and what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A config that cannot be run."""


class RunDirectoryError(ValueError):
    """A run directory that holds something other than what the config asks for."""


def nearest(word: str, choices: Iterable[str]) -> str:
    """ "; did you mean 'x'?" for the choice nearest to `word`, or an empty string.

    >>> nearest("num_head", ["num_heads", "d_model"])
    "; did you mean 'num_heads'?"
    """
    matches = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
