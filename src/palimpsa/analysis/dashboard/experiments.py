"""What figures show of each task and scale: accuracy by length and rate, and how memories change in training."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from palimpsa.analysis.dashboard.committed import Problems, Source
from palimpsa.analysis.dashboard.files import rounded
from palimpsa.analysis.dashboard.run_folders import RunFolder, spread_out
from palimpsa.analysis.statistics.learning_curves import finished_curves, mean_curve
from palimpsa.analysis.statistics.learning_rate import (
    STAGE,
    at_chosen_rates,
    choose_learning_rates,
    finished_stages,
    not_compared,
)
from palimpsa.analysis.statistics.summary import VALIDATION, summarize
from palimpsa.analysis.statistics.validation_loss import is_measured_by_loss, losses_by_rate
from palimpsa.analysis.style import ModelStyle, model_order, model_styles
from palimpsa.analysis.titles import subtitle, title
from palimpsa.runs.protocol import one_protocol
from palimpsa.runs.read import head_columns
from palimpsa.runs.schema import FINISHED, RUN_KEY, ResultError

# plotly's patterns and dashes for those of matplotlib.
_PATTERNS = {
    "///": "/",
    "\\\\\\": "\\",
    "xxx": "x",
    "---": "-",
    "|||": "|",
    "+++": "+",
    "...": ".",
    "ooo": ".",
    "***": "x",
}
_DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
# A colour of less luminance would not be seen on a dark page.
_DARKEST = 0.1
MAX_MEAN_POINTS, MAX_HEAD_POINTS = 120, 40
MEMORY = ("window_mean", "metaplasticity_mean")


def look_of(style: ModelStyle) -> dict[str, Any]:
    """A style of the repository's figures in plotly's words: color, dark (the colour on a dark page), pattern, dash."""
    line = style.linestyle
    dash = _DASHES[line] if isinstance(line, str) else ",".join(f"{length}px" for length in line[1])
    return {
        "color": style.color,
        "dark": _on_dark(style.color),
        "pattern": _PATTERNS.get(style.hatch, ""),
        "dash": dash,
    }


def model_looks(models: Sequence[str], labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """model, label and look of each model, in the order of figures."""
    styles = model_styles(models)
    return [
        {"model": model, "label": labels.get(model, model), **look_of(styles[model])} for model in model_order(models)
    ]


def _on_dark(color: str) -> str:
    """The colour on a dark page: one that is nearly black as light as it is dark.

    >>> _on_dark("#0072B2"), _on_dark("#001F3F")
    ('#0072B2', '#c0dfff')
    """
    red, green, blue = (int(color[place : place + 2], 16) / 255 for place in (1, 3, 5))
    if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 >= _DARKEST:
        return color
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    light = colorsys.hls_to_rgb(hue, 1 - lightness, saturation)
    return "#" + "".join(f"{round(255 * part):02x}" for part in light)


def describe_experiments(
    source: Source, ids: Mapping[tuple[Any, ...], str], problems: Problems, folders: Sequence[RunFolder] = ()
) -> list[dict[str, Any]]:
    """Every task and scale of a source; runs of several protocols, which no figure may mix, are described apart.

    Args:
        ids: of the page's runs, by their values of RUN_KEY.
        folders: the run directories of a source of them.

    Returns dictionaries; "dynamics" is large, and goes to a file of its own.
    """
    described = []
    for task, scale in sorted(set(zip(source.rows["task"], source.rows["scale"], strict=True))):
        own = [one for one in folders if one.has_ended and _belongs(one, task, scale)]
        curves = source.curves.loc[(source.curves["task"] == task) & (source.curves["scale"] == scale)]
        names = {"source": source.name, "task": task, "scale": scale, "title": title(task)}
        for protocol, rows in _protocols(source, task, scale, own, problems):
            keys = set(rows[RUN_KEY].itertuples(index=False, name=None))
            is_own = [key in keys for key in curves[RUN_KEY].itertuples(index=False, name=None)]
            results = [one.result for one in own if tuple(one.rows[0][name] for name in RUN_KEY) in keys]
            names |= {
                "id": "/".join([source.name, task, scale, *([protocol] if protocol else [])]),
                "subtitle": f"{subtitle(scale)}, protocol {protocol}" if protocol else subtitle(scale),
                "losses": _losses(results) if results and is_measured_by_loss(results) else [],
            }
            described.append(names | _describe(rows, curves.loc[is_own], ids))
    return described


def _protocols(
    source: Source, task: str, scale: str, folders: Sequence[RunFolder], problems: Problems
) -> list[tuple[str, pd.DataFrame]]:
    """The rows of one task and scale by protocol; an empty name, and all of them, where they belong together.

    Runs that begin with weights of other runs do, though each begins with others, which its protocol counts.
    """
    rows = source.rows.loc[(source.rows["task"] == task) & (source.rows["scale"] == scale)].reset_index(drop=True)
    if folders and all((one.config.get("start") or {}).get("weights") for one in folders):
        return [("", rows)]
    try:
        one_protocol(rows)
    except ResultError as error:
        problems.add("overview", f"{source.name}, {task} at scale {scale}, drawn apart: {error}")
        return [(str(name), part.reset_index(drop=True)) for name, part in rows.groupby("protocol_hash", dropna=False)]
    return [("", rows)]


def _belongs(folder: RunFolder, task: str, scale: str) -> bool:
    return bool(folder.rows) and (folder.rows[0]["task"], folder.rows[0]["scale"]) == (task, scale)


def _losses(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The validation loss by model and learning rate, of runs that have no accuracy."""
    return [
        {"label": label, "rates": [[rate.lr, *rounded([rate.loss]), rate.num_seeds] for rate in rates]}
        for label, rates in losses_by_rate(results).items()
    ]


def _describe(rows: pd.DataFrame, curves: pd.DataFrame, ids: Mapping[tuple[Any, ...], str]) -> dict[str, Any]:
    chosen = choose_learning_rates(rows)
    labels = dict(zip(rows["model"], rows["label"], strict=True))
    looks = model_looks(list(labels), labels)
    place = {look["model"]: index for index, look in enumerate(looks)}
    rates = dict(zip(chosen["model"], chosen["lr"], strict=True))
    for look in looks:
        look["lr"] = rounded([rates[look["model"]]], 15)[0]
    figure = rows.loc[rows["test_accuracy"].notna(), STAGE].drop_duplicates().sort_values(STAGE)
    stages = [(int(length), int(pairs)) for length, pairs in figure.itertuples(index=False, name=None)]
    finished = set(rows.loc[rows["status"] == FINISHED, "label"])
    notes = [f"{label}: no finished run" for label in chosen["label"] if label not in finished] + not_compared(rows)
    every = finished_stages(rows)
    return {
        "models": looks,
        "stages": stages,
        "notes": notes,
        "num_runs": len(rows.drop_duplicates(RUN_KEY)),
        "bars": _bars(rows, chosen, place, stages) if stages else [],
        "dots": _dots(at_chosen_rates(every, chosen), place, stages, ids),
        "cells": _cells(rows, place, stages, ids),
        "dynamics": _dynamics(finished_curves(rows, curves, chosen), place) if len(curves) else [],
    }


def _bars(rows: pd.DataFrame, chosen: pd.DataFrame, place: Mapping[str, int], stages: list[Any]) -> list[list[Any]]:
    """model, stage, mean, standard deviation, median, seeds, failed seeds: at the chosen learning rates."""
    summary = summarize(rows, chosen)
    shown = summary.loc[summary["rule"] == VALIDATION]
    return [
        [
            *(place[row["model"]], stages.index((row["seq_len"], row["num_pairs"]))),
            *rounded([row["mean"], row["std"], row["median"]]),
            *(int(row["num_seeds"]), int(row["num_failed"])),
        ]
        for row in shown.to_dict("records")
        if (row["seq_len"], row["num_pairs"]) in stages
    ]


def _dots(
    dots: pd.DataFrame, place: Mapping[str, int], stages: list[Any], ids: Mapping[tuple[Any, ...], str]
) -> list[list[Any]]:
    """model, stage, accuracy, seed, run: one a finished seed."""
    return [
        [
            *(place[row["model"]], stages.index((row["seq_len"], row["num_pairs"]))),
            *rounded([row["test_accuracy"]]),
            *(int(row["seed"]), ids.get(tuple(row[name] for name in RUN_KEY))),
        ]
        for row in dots.sort_values("seed").to_dict("records")
    ]


def _cells(
    rows: pd.DataFrame, place: Mapping[str, int], stages: list[Any], ids: Mapping[tuple[Any, ...], str]
) -> list[list[Any]]:
    """model, learning rate, stage, then lists over the runs: seed, validation and test accuracy, run.

    A run that failed, or did not come so far, has null for its accuracies.
    """
    every = finished_stages(rows)
    reached: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for row in every.to_dict("records"):
        key = tuple(row[name] for name in RUN_KEY)
        reached[key, row["seq_len"], row["num_pairs"]] = (row["validation_accuracy"], row["test_accuracy"])
    cells: dict[tuple[Any, ...], list[Any]] = {}
    for key in rows.loc[:, RUN_KEY].drop_duplicates().itertuples(index=False, name=None):
        run = dict(zip(RUN_KEY, key, strict=True))
        for index, (length, pairs) in enumerate(stages):
            if run["run_seq_len"] not in (0, length):
                continue
            values = rounded(reached.get((key, length, pairs), (np.nan, np.nan)))
            own = cells.setdefault((place[run["model"]], run["lr"], index), [])
            own.append([int(run["seed"]), *values, ids.get(key)])
    return [[*cell, runs] for cell, runs in cells.items()]


def _dynamics(curves: pd.DataFrame, place: Mapping[str, int]) -> list[dict[str, Any]]:
    """Mean curves over the seeds at the chosen learning rate, of every model and of each of its heads."""
    models = []
    for model, own in sorted(curves.groupby("model"), key=lambda item: place[str(item[0])]):
        series = {
            name: _mean_data(own, name, MAX_MEAN_POINTS, geometric=name in MEMORY, band=name in MEMORY)
            for name in ("loss", *MEMORY)
        }
        heads = {name: _mean_data(own, name, MAX_HEAD_POINTS, geometric=True) for name in head_columns(own)}
        models.append(
            {
                "model": place[str(model)],
                "num_seeds": len(set(own["seed"])),
                **{name: data for name, data in series.items() if data},
                "heads": {name: data for name, data in heads.items() if data},
            }
        )
    return models


def _mean_data(own: pd.DataFrame, column: str, most: int, *, geometric: bool, band: bool = False) -> list[Any]:
    """Steps and means, with a band also its ends, one standard deviation away; empty without a record."""
    if not np.isfinite(own[column].to_numpy(dtype=float)).any():
        return []
    curve = spread_out(mean_curve(own, column, geometric=geometric), most)
    columns = [rounded(curve["mean"], 4)]
    if band:
        columns += [rounded(curve["low"], 4), rounded(curve["high"], 4)]
    return [rounded(curve["step"], 15), *columns] if len(curve) else []
