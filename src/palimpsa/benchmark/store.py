"""The CSV files of one device: a row is on disk as soon as it is measured."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palimpsa.analysis.files import write_atomic
from palimpsa.analysis.kernel_schema import COLUMNS, IDENTITY, KEY
from palimpsa.errors import ConfigError

Row = dict[str, str]


def slug(device: str) -> str:
    """A device as part of a file's name.

    >>> slug("NVIDIA H200")
    'nvidia-h200'
    """
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def text(value: Any) -> str:
    """A value as its cell: None is empty, numbers have six digits at most unless they are whole."""
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class Store:
    """operators_SLUG.csv and throughput_SLUG.csv of a folder.

    Args:
        folder: where they are, or will be.
        device_slug: "cpu", or `slug` of the GPU's name.
        origin: the columns of `IDENTITY`, and the command.
        fresh: throw away what they hold.

    Raises:
        ConfigError: they hold something else than these columns, or rows of another origin.
    """

    def __init__(self, folder: Path, device_slug: str, origin: Mapping[str, Any], *, fresh: bool) -> None:
        self.paths = {kind: folder / f"{kind}_{device_slug}.csv" for kind in COLUMNS}
        self.origin = {key: text(value) for key, value in origin.items()}
        self.rows: dict[str, list[Row]] = {kind: [] for kind in COLUMNS}
        for kind, path in self.paths.items():
            if fresh:
                path.unlink(missing_ok=True)
            elif path.exists():
                self.rows[kind] = self._read(path, COLUMNS[kind])

    def _read(self, path: Path, columns: tuple[str, ...]) -> list[Row]:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        if tuple(reader.fieldnames or ()) != columns or any(None in row or None in row.values() for row in rows):
            raise ConfigError(f"{path}: its columns are not those of this version; fresh=true starts over")
        for row in rows:
            for name in IDENTITY:
                if row[name] != self.origin[name]:
                    raise ConfigError(
                        f"{path}: {name} is {row[name] or 'unknown'!r} there and {self.origin[name] or 'unknown'!r} "
                        "now, expected the same; fresh=true starts over, results_dir= goes elsewhere"
                    )
        return rows

    def find(self, kind: str, **cells: Any) -> Row | None:
        """The row with these cells, if it is there."""
        wanted = {name: text(value) for name, value in cells.items()}
        for row in self.rows[kind]:
            if all(row[name] == value for name, value in wanted.items()):
                return row
        return None

    def append(self, kind: str, row: Mapping[str, Any]) -> None:
        """Adds a row, without its origin, and writes the file anew, whole."""
        cells = dict.fromkeys(COLUMNS[kind], "") | self.origin | {name: text(value) for name, value in row.items()}
        assert set(cells) == set(COLUMNS[kind]), set(cells) - set(COLUMNS[kind])
        assert set(KEY) <= set(row), row
        self.rows[kind].append(cells)
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS[kind], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows[kind])
        write_atomic(self.paths[kind], buffer.getvalue())
