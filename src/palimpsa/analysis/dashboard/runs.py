"""The runs of the page: a row each in the table, and a file each with its stages, its config and its curves."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from palimpsa.analysis.dashboard.committed import Source, no_curves
from palimpsa.analysis.dashboard.files import rounded
from palimpsa.analysis.dashboard.privacy import Scrubber
from palimpsa.analysis.dashboard.run_folders import RunFolder, spread_out
from palimpsa.analysis.dashboard.wandb_files import OfflineRun
from palimpsa.runs.identity import flatten
from palimpsa.runs.read import head_columns, runs_frame
from palimpsa.runs.schema import RUN_KEY

# Where runs are shown that only their directories hold, committed or of this machine, beside the folders of results.
RUN_DIRECTORIES = "run directories"
# Of the table, in its order.
COLUMNS = (
    *("id", "source", "task", "scale", "model", "label", "lr", "seed", "length", "status", "error"),
    *("validation", "accuracy", "loss", "steps", "seconds", "parameters", "state", "device", "started", "revision"),
    "curve",
)
# Of a run's page, in words; what stands in the other columns of runs.csv is shown apart.
FACTS = {
    "git_revision": "git revision",
    "git_dirty": "changed after it",
    "device": "device",
    "started": "started",
    "wall_time_s": "seconds",
    "num_parameters": "parameters",
    "state_size": "state, floats a layer",
    "vocab_size": "vocabulary",
    "config_hash": "config hash",
    "protocol_hash": "protocol hash",
}
STAGE_COLUMNS = (
    *("stage", "seq_len", "num_pairs", "steps", "ended_by", "plateau_exit_step"),
    *("validation_accuracy", "test_accuracy", "test_accuracy_by_age", "test_loss"),
)
MAX_POINTS, MAX_HEAD_POINTS = 80, 24
RunKey = tuple[Any, ...]


# What runs.csv keeps of a config, by the config's own keys; the last two are none of a config.
KEPT_KEYS = {
    **{"task": "task.name", "scale": "scale.name", "model": "model.name", "lr": "optimizer.lr", "seed": "seed"},
    **{"vocab_size": "task.vocab_size", "num_parameters": "num_parameters", "state_size": "state_size"},
}


@dataclass
class PageRun:
    """One run as the page shows it.

    rows: of runs.csv; curve: its rows of curves.csv or history.csv, or of an offline W&B run; folder: its directory.
    """

    source: str
    rows: list[dict[str, Any]]
    curve: pd.DataFrame | None = None
    folder: RunFolder | None = None
    occurrence: int = 0
    config: list[list[str]] = field(default_factory=list)

    @property
    def key(self) -> RunKey:
        return tuple(self.rows[0].get(name) for name in RUN_KEY)

    @property
    def id(self) -> str:
        """12 hexadecimal digits, the same at every build."""
        parts = [self.source, *self.key, self.rows[0].get("config_hash"), self.occurrence]
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:12]


def gather_runs(
    sources: Iterable[Source], folders: Iterable[RunFolder], offline: Iterable[OfflineRun], scrubber: Scrubber
) -> list[PageRun]:
    """All runs: those of the folders of results, each with its directory where this machine has it, then the others."""
    runs: list[PageRun] = []
    by_result: dict[RunKey, PageRun] = {}
    for source in sources:
        for rows, curve in source.runs:
            run = PageRun(source.name, rows, curve)
            runs.append(run)
            by_result[_result_of(rows[0])] = run
    # A run records below its own directory, in wandb/offline-run-*.
    offline_by_place = {folder.resolve().parents[1]: run for run in offline for folder in run.folders}
    seen: dict[str, int] = {}
    for folder in folders:
        rows = folder.rows or [_row_of_unknown(folder)]
        run = by_result.get(_result_of(rows[0])) if folder.has_ended else None
        if run is None:
            run = PageRun(RUN_DIRECTORIES, rows)
            run.occurrence = seen.get(run.id, 0)
            seen[run.id] = run.occurrence + 1
            runs.append(run)
        run.folder = folder
        recorded = offline_by_place.get(folder.path.resolve())
        if folder.history is not None:
            run.curve = folder.history
        elif recorded is not None and len(recorded.history):
            # Of a run without a history.csv yet.
            run.curve = recorded.history
    for run in runs:
        run.config = _config_of(run, scrubber)
    return runs


def local_source(runs: Iterable[PageRun]) -> Source:
    """The runs that directories alone hold and that have ended, as a folder of results has them."""
    ended = [run for run in runs if run.source == RUN_DIRECTORIES and run.folder is not None and run.folder.has_ended]
    frame = runs_frame([row for run in ended for row in run.rows])
    frames = [
        pd.concat([pd.DataFrame([run.key] * len(run.curve), columns=RUN_KEY), run.curve.reset_index(drop=True)], axis=1)
        for run in ended
        if run.curve is not None and len(run.curve)
    ]
    return Source(RUN_DIRECTORIES, frame, pd.concat(frames, ignore_index=True) if frames else no_curves())


def _result_of(row: Mapping[str, Any]) -> RunKey:
    """What a row of runs.csv shares with the directory that it was made of."""
    return tuple(row.get(name) for name in (*RUN_KEY, "config_hash", "started"))


def _row_of_unknown(folder: RunFolder) -> dict[str, Any]:
    """Of a directory that does not say which run it is: its name."""
    name = folder.path.name
    return {"task": "", "scale": "", "model": name, "label": name, "lr": None, "seed": None, "status": folder.status}


def table_row(run: PageRun) -> list[Any]:
    """One run's values of COLUMNS; accuracies are means over the stages that have one, the loss is the last one's."""
    first = run.rows[0]
    stages = run.folder.result.get("stages", []) if run.folder else []
    losses = [stage.get("validation_loss") for stage in stages if isinstance(stage, dict)]
    losses += [row.get("test_loss") for row in run.rows if row.get("test_loss") is not None]
    steps = [row["steps"] for row in run.rows if row.get("steps") is not None]
    tested = [row for row in run.rows if row.get("test_accuracy") is not None]
    values = {
        "id": run.id,
        "source": run.source,
        **{name: first.get(name) for name in ("task", "scale", "model", "label", "lr", "seed", "status", "error")},
        "length": first.get("run_seq_len") or None,
        "validation": _mean([row.get("validation_accuracy") for row in tested or run.rows]),
        "accuracy": _mean([row.get("test_accuracy") for row in tested]),
        "loss": rounded([losses[-1]])[0] if losses and losses[-1] is not None else None,
        "steps": sum(steps) if steps else None,
        "seconds": first.get("wall_time_s"),
        "parameters": first.get("num_parameters"),
        "state": first.get("state_size"),
        "device": first.get("device"),
        "started": first.get("started"),
        "revision": first.get("git_revision"),
        "curve": run.curve is not None and len(run.curve) > 0,
    }
    return [values[name] for name in COLUMNS]


def _mean(values: list[Any]) -> float | int | None:
    numbers = [value for value in values if value is not None]
    return rounded([sum(numbers) / len(numbers)])[0] if numbers else None


def shared_configs(runs: Iterable[PageRun]) -> dict[str, list[list[str]]]:
    """One config for each task and scale of a source, which those of its runs are told by their difference from."""
    shared: dict[str, list[list[str]]] = {}
    for run in runs:
        shared.setdefault(config_group(run), run.config)
    return shared


def config_group(run: PageRun) -> str:
    """Where the config lies that the run's is told by: a file's name."""
    parts = [run.source, run.rows[0].get("task"), run.rows[0].get("scale"), run.folder is None]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:12]


def run_page(run: PageRun, shared: list[list[str]]) -> dict[str, Any]:
    """What a run's own page shows, beside its row of the table."""
    first, result = run.rows[0], run.folder.result if run.folder else {}
    own, base = dict(run.config), dict(shared)
    return {
        "facts": [[words, first[name]] for name, words in FACTS.items() if first.get(name) is not None],
        "versions": first.get("versions"),
        "command": first.get("command"),
        "error": first.get("error"),
        "traceback": result.get("traceback"),
        "notes": (result.get("provenance") or {}).get("notes", []),
        "folder": folder_text(run.folder.path) if run.folder else None,
        "stages": [[row.get(name) for name in STAGE_COLUMNS] for row in run.rows if row.get("stage") is not None],
        "config_group": config_group(run),
        "whole_config": run.folder is not None and bool(run.folder.config),
        # null: a key that this run does not have.
        "config": [pair for pair in run.config if base.get(pair[0]) != pair[1]]
        + [[k, None] for k in base if k not in own],
        "curve": curve_data(run.curve) if run.curve is not None else None,
    }


def _config_of(run: PageRun, scrubber: Scrubber) -> list[list[str]]:
    """The config as pairs of key and value: of the run's directory, else what runs.csv keeps of it."""
    if run.folder is not None and run.folder.config:
        return scrubber.config(flatten(run.folder.config))
    first = run.rows[0]
    known = {key: first[name] for name, key in KEPT_KEYS.items() if first.get(name) is not None}
    if first.get("run_seq_len"):
        known["task.seq_len"] = first["run_seq_len"]
    versions = (item.partition("=") for item in str(first.get("versions") or "").split(";"))
    known |= {f"version of {name}": version for name, _, version in versions if name}
    return scrubber.config(known | _overrides(str(first.get("command") or "")))


def _overrides(command: str) -> dict[str, str]:
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    pairs = (word.partition("=") for word in words if "=" in word)
    return {f"command: {key}": value for key, _, value in pairs}


def curve_data(frame: pd.DataFrame) -> dict[str, Any]:
    """Curves as lists: [steps, values] by name, and of the heads the steps that all share, names and values."""
    curves = {}
    for name in ("loss", "window_mean", "metaplasticity_mean"):
        if name in frame:
            own = spread_out(frame.dropna(subset=[name]), MAX_POINTS)
            curves[name] = [rounded(own["step"], 15), rounded(own[name])]
    heads = head_columns(frame)
    probes = spread_out(frame.dropna(subset=heads, how="all"), MAX_HEAD_POINTS) if heads else frame.iloc[:0]
    shown = [name for name in heads if len(probes[name].dropna())]
    return {
        **curves,
        "heads": {
            "steps": rounded(probes["step"], 15),
            "names": shown,
            "values": [rounded(probes[name], 3) for name in shown],
        },
    }


def folder_text(path: Path) -> str:
    """A path as pages tell it: below the working directory where it is."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd())) if absolute.is_relative_to(Path.cwd()) else str(path)
