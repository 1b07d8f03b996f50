"""The CSV files of one device: a row is on disk as soon as it is measured."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsa.analysis.collect import benchmark_columns
from palimpsa.config.errors import ConfigError
from palimpsa.config.text import from_cell, to_cell
from palimpsa.runs.files import read_regular, write_atomic

# A row by column, as the file has it.
Cells = dict[str, str]


@dataclass(frozen=True)
class Tables:
    """What a benchmark's files hold.

    columns: by kind of file. key: what tells two rows apart. identity: what all rows share.
    """

    columns: Mapping[str, tuple[str, ...]]
    key: tuple[str, ...]
    identity: tuple[str, ...]


OPERATOR_TABLES = Tables(
    benchmark_columns.OPERATOR_COLUMNS, benchmark_columns.OPERATOR_KEY, benchmark_columns.OPERATOR_SHARED
)
FIRST_CALL_TABLES = Tables(
    benchmark_columns.FIRST_CALL_COLUMNS, benchmark_columns.FIRST_CALL_KEY, benchmark_columns.FIRST_CALL_SHARED
)
TRAINING_TABLES = Tables(
    benchmark_columns.TRAINING_COLUMNS, benchmark_columns.TRAINING_KEY, benchmark_columns.TRAINING_SHARED
)
PRETRAINING_TABLES = Tables(
    benchmark_columns.PRETRAINING_COLUMNS, benchmark_columns.PRETRAINING_KEY, benchmark_columns.PRETRAINING_SHARED
)
EVALUATION_SPEED_TABLES = Tables(
    benchmark_columns.EVALUATION_SPEED_COLUMNS,
    benchmark_columns.EVALUATION_SPEED_KEY,
    benchmark_columns.EVALUATION_SPEED_SHARED,
)


def device_slug(device: str) -> str:
    """A device as part of a file's name.

    >>> device_slug("NVIDIA H200")
    'nvidia-h200'
    """
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def as_cell(value: Any) -> str:
    """A value as its cell: None is empty, numbers have six digits at most unless they are whole."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _map_text(row: Cells, change: Callable[[str], str]) -> Cells:
    return {
        name: change(cell) if name in benchmark_columns.TEXT_COLUMNS and cell else cell for name, cell in row.items()
    }


class Store:
    """KIND_SLUG.csv of each kind of file, in a folder.

    Args:
        tables: their kinds and columns.
        folder: where they are, or will be.
        slug: "cpu", or `device_slug` of the GPU's name.
        origin: the columns of `tables.identity`, and the command.
        fresh: throw away what they hold.

    Raises:
        ConfigError: they hold something else than these columns, or rows of another origin.
    """

    def __init__(self, tables: Tables, folder: Path, slug: str, origin: Mapping[str, Any], *, fresh: bool) -> None:
        self.tables = tables
        self.paths = {kind: folder / f"{kind}_{slug}.csv" for kind in tables.columns}
        self.origin = {key: as_cell(value) for key, value in origin.items()}
        self.rows: dict[str, list[Cells]] = {kind: [] for kind in tables.columns}
        for kind, path in self.paths.items():
            if fresh:
                path.unlink(missing_ok=True)
            elif path.exists():
                self.rows[kind] = self._read(path, tables.columns[kind])

    def _read(self, path: Path, columns: tuple[str, ...]) -> list[Cells]:
        try:
            text = read_regular(path).decode()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"{path}: cannot be read ({reason}); results_dir= goes elsewhere") from error
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = [_map_text(row, from_cell) for row in reader]
        if tuple(reader.fieldnames or ()) != columns or any(None in row or None in row.values() for row in rows):
            raise ConfigError(f"{path}: its columns are not those of this version; fresh=true starts over")
        for row in rows:
            for name in self.tables.identity:
                if row[name] != self.origin[name]:
                    raise ConfigError(
                        f"{path}: {name} is {row[name] or 'unknown'!r} there and {self.origin[name] or 'unknown'!r} "
                        "now, expected the same; fresh=true starts over, results_dir= goes elsewhere"
                    )
        return rows

    def find(self, kind: str, **cells: Any) -> Cells | None:
        """The row with these cells, if it is there."""
        wanted = {name: as_cell(value) for name, value in cells.items()}
        for row in self.rows[kind]:
            if all(row[name] == value for name, value in wanted.items()):
                return row
        return None

    def append(self, kind: str, row: Mapping[str, Any]) -> None:
        """Adds a row, without its origin, and writes the file anew, whole. Raises OSError where it cannot."""
        columns = self.tables.columns[kind]
        cells = dict.fromkeys(columns, "") | self.origin | {name: as_cell(value) for name, value in row.items()}
        assert set(cells) == set(columns), set(cells) - set(columns)
        assert set(self.tables.key) <= set(row), row
        self.rows[kind].append(cells)
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(_map_text(row, to_cell) for row in self.rows[kind])
        write_atomic(self.paths[kind], buffer.getvalue())
