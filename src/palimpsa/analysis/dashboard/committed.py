"""What the repository holds: the folders of results with runs.csv and curves.csv, read as far as they can be."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from palimpsa.config.errors import ConfigError
from palimpsa.runs.read import read_curves_csv, read_runs_csv
from palimpsa.runs.schema import CURVE_COLUMNS, RUN_COLUMNS, RUN_KEY, ResultError

Value = TypeVar("Value")


@dataclass
class Problems:
    """What is missing or could not be read, as the page tells it.

    rows: view, what is wrong, the command that helps or an empty text.
    """

    rows: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, view: str, what: str, command: str = "") -> None:
        """Adds a line, once."""
        if (view, what, command) not in self.rows:
            self.rows.append((view, what, command))

    def attempt(self, view: str, read: Callable[[], Value], otherwise: Value, command: str = "") -> Value:
        """What `read` returns; `otherwise`, and a line, where a file cannot be read."""
        try:
            return read()
        except (ResultError, ConfigError, OSError) as error:
            self.add(view, str(error), command)
            return otherwise


class Cache:
    """What was read of files, again only where they have changed: a sweep is looked at every few seconds."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, Path], tuple[Any, Any]] = {}
        self._sources: dict[Path, Source] = {}

    def get(self, kind: str, path: Path, files: list[Path], read: Callable[[], Value]) -> Value:
        """What `read` returns or has returned for these files, as they are now.

        Raises whatever `read` does, which is asked again next time.
        """
        stamp = [_stamp(file) for file in files]
        known = self._found.get((kind, path))
        if known is None or known[0] != stamp:
            known = stamp, read()
            self._found[kind, path] = known
        return known[1]

    def same_source(self, folder: Path, source: Source) -> Source:
        """The source of a folder that was read before, where it is of the very same frames."""
        known = self._sources.get(folder)
        if known is None or known.rows is not source.rows or known.curves is not source.curves:
            known = self._sources[folder] = source
        return known


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


@dataclass(frozen=True)
class Source:
    """Runs that belong together: of a folder of results, or of run directories.

    rows, curves: of runs.csv and curves.csv.
    """

    name: str
    rows: pd.DataFrame
    curves: pd.DataFrame

    @cached_property
    def runs(self) -> list[tuple[list[dict[str, Any]], pd.DataFrame | None]]:
        """The rows of each run, None for an empty cell, and its curves, None where there are none."""
        curves: dict[Any, pd.DataFrame] = dict(iter(self.curves.groupby(RUN_KEY))) if len(self.curves) else {}
        cells = self.rows.astype(object)
        rows: dict[Any, list[dict[str, Any]]] = {}
        for row in cells.where(cells.notna(), None).to_dict("records"):
            rows.setdefault(tuple(row[name] for name in RUN_KEY), []).append({str(name): row[name] for name in row})
        return [(own, curves.get(key)) for key, own in rows.items()]


def no_runs() -> pd.DataFrame:
    """runs.csv without a row."""
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in RUN_COLUMNS.items()})


def no_curves() -> pd.DataFrame:
    """curves.csv without a row."""
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in CURVE_COLUMNS.items()})


def read_committed(results: Path, problems: Problems, cache: Cache) -> list[Source]:
    """The folders of `results` that hold a runs.csv or a curves.csv, those with the most runs first."""
    sources = []
    # Whatever looks for files below takes a folder that nobody may list for an empty one.
    for folder in problems.attempt("overview", partial(_folders, results), []):
        if not os.access(folder, os.R_OK | os.X_OK):
            problems.add("overview", f"{folder}: cannot be listed (Permission denied)")
    for folder in sorted({file.parent for name in ("runs.csv", "curves.csv") for file in results.glob(f"*/{name}")}):
        runs_file, curves_file = folder / "runs.csv", folder / "curves.csv"
        rows = problems.attempt("overview", partial(_read, runs_file, read_runs_csv, cache), no_runs())
        curves = problems.attempt("dynamics", partial(_read, curves_file, read_curves_csv, cache), no_curves())
        if len(rows):
            sources.append(cache.same_source(folder, Source(folder.name, rows, curves)))
    return sorted(sources, key=lambda source: (-len(source.rows), source.name))


def _folders(folder: Path) -> list[Path]:
    return sorted(Path(one.path) for one in os.scandir(folder) if one.is_dir()) if folder.is_dir() else []


def _read(path: Path, read: Callable[[Path], pd.DataFrame], cache: Cache) -> pd.DataFrame:
    return cache.get("csv", path, [path], lambda: read(path))
