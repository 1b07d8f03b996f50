"""Checks of single keys, with their errors in the words of every command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from palimpsa.config.errors import ConfigError, nearest


def as_list(values: Iterable[Any]) -> str:
    """Values as the command line takes them.

    >>> as_list([1, "a"])
    '[1, a]'
    """
    return f"[{', '.join(map(str, values))}]"


def check_choice(key: str, value: Any, choices: Iterable[str]) -> None:
    """Raises ConfigError where `value` is none of `choices`."""
    choices = list(choices)
    if value not in choices:
        expected = choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
        raise ConfigError(f"{key}: got {value!r}, expected {expected}{nearest(str(value), choices)}")


def check_several(key: str, values: Sequence[Any]) -> None:
    """Raises ConfigError for an empty list, or one that holds a value twice."""
    if not values or len(set(values)) < len(values):
        raise ConfigError(f"{key}: got {as_list(values)}, expected one or more, each once")


def check_positive(key: str, value: float) -> None:
    """Raises ConfigError for anything but a finite number above 0."""
    if not 0 < value < float("inf"):
        raise ConfigError(f"{key}: got {value}, expected > 0")
