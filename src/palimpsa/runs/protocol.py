"""Runs of one figure must share a protocol (`identity.protocol`): whether they do, and what differs if not."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from palimpsa.runs.identity import differences
from palimpsa.runs.schema import FINISHED, RUN_KEY, ResultError

_ADVICE = (
    "expected one protocol a task and scale, whose runs may differ in model, learning rate, seed and length only. "
    "Collect them apart: a results_dir of its own for one of them, and a --runs and --out for each"
)


def describe_run(identity: Sequence[Any]) -> str:
    """One run in words, from its values of RUN_KEY: those that are empty or 0 are left out."""
    return ", ".join(f"{name} {value}" for name, value in zip(RUN_KEY, identity, strict=True) if value)


def difference(config: dict[str, Any], other: dict[str, Any]) -> str:
    """The first key, in order, in which the protocols of two configs differ, and both values."""
    for key, *values in differences(config, other, swept=False):
        first, second = ("no such key" if value is None else value for value in values)
        return f"{key}: {first} and {second}"
    return "no key differs"


def one_protocol(rows: pd.DataFrame, configs: dict[tuple[Any, ...], dict[str, Any]] | None = None) -> str | None:
    """The protocol_hash of the finished runs of one task and scale; None when no run finished.

    Args:
        rows: rows of runs.csv of one task and scale.
        configs: resolved configs by identity, where known: an error can then say what differs.

    Raises ResultError: finished runs of more than one protocol (names two of the runs).
    """
    finished = rows.loc[rows["status"] == FINISHED]
    first = finished.drop_duplicates("protocol_hash")
    if first.empty:
        return None
    hashes = first["protocol_hash"].tolist()
    if len(hashes) == 1:
        return hashes[0]
    runs = list(first[RUN_KEY].itertuples(index=False, name=None))[:2]
    named = " and ".join(f"{digits} ({describe_run(run)})" for digits, run in zip(hashes, runs, strict=False))
    known = f"; {difference(configs[runs[0]], configs[runs[1]])}" if configs else ""
    raise ResultError(f"finished runs of different protocols, {named}{known}; {_ADVICE}")
