"""What all runs of one figure must share: the protocol, as a hash of the config."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from palimpsa.runs.schema import RUN_KEY, ResultError

# Keys, and what lies below them, in which the runs of one figure may differ: the axes of its sweep, and where
# and how a run reports. scale.models, learning_rates, seeds and selection_seeds say what to sweep, not how to
# train; scale.wide_head_k_dim is a size of one model.
FREE_KEYS = (
    "model",
    "optimizer.lr",
    "seed",
    "variant",
    "task.seq_len",
    "task.directory",
    "scale.models",
    "scale.seeds",
    "scale.selection_seeds",
    "scale.learning_rates",
    "scale.requires_gpu",
    "scale.wide_head_k_dim",
    "scale.checkpoint_every",
    "results_dir",
    "run_dir",
    "logger",
    "trainer.progress_bar",
    "trainer.checkpoint_every",
    "trainer.gpus",
)

_ADVICE = (
    "expected one protocol a task and scale, whose runs may differ in model, learning rate, seed and length only. "
    "Collect them apart: a results_dir of its own for one of them, and a --runs and --out for each"
)


def protocol(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The part of a resolved config that all runs of a figure share, with flat dotted keys.

    >>> protocol({"seed": 1, "optimizer": {"lr": 0.01, "beta1": 0.9}})
    {'optimizer.beta1': 0.9}
    """
    flat: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if key in FREE_KEYS:
            continue
        if isinstance(value, dict):
            flat |= protocol(value, f"{key}.")
        else:
            flat[key] = value
    return flat


def protocol_hash(config: dict[str, Any]) -> str:
    """16 hexadecimal digits of the sha256 of `protocol(config)` as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(protocol(config), sort_keys=True).encode()).hexdigest()[:16]


def describe_run(identity: Sequence[Any]) -> str:
    """One run in words, from its values of RUN_KEY: those that are empty or 0 are left out."""
    return ", ".join(f"{name} {value}" for name, value in zip(RUN_KEY, identity, strict=True) if value)


def difference(config: dict[str, Any], other: dict[str, Any]) -> str:
    """The first key, in order, in which the protocols of two configs differ, and both values."""
    first, second = protocol(config), protocol(other)
    for key in sorted(first.keys() | second.keys()):
        if first.get(key, ...) != second.get(key, ...):
            values = [json.dumps(flat[key]) if key in flat else "no such key" for flat in (first, second)]
            return f"{key}: {values[0]} and {values[1]}"
    return "no key differs"


def one_protocol(rows: pd.DataFrame, configs: dict[tuple[Any, ...], dict[str, Any]] | None = None) -> str | None:
    """The protocol_hash of the finished runs of one task and scale; None when no run finished.

    Args:
        rows: rows of runs.csv of one task and scale.
        configs: resolved configs by identity, where known: an error can then say what differs.

    Raises ResultError: finished runs of more than one protocol (names two of the runs).
    """
    finished = rows.loc[rows["status"] == "finished"]
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
