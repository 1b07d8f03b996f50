"""The files of the dashboard's folder: the page as it is, and data as JavaScript that a page of file:// may load."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from palimpsa.analysis.dashboard.privacy import Scrubber
from palimpsa.config.text import printable
from palimpsa.runs.files import write_atomic

PLOTLY = "plotly.min.js"
PAGE = files("palimpsa.analysis.dashboard") / "page"
DIGITS = 5


class Folder:
    """A folder whose files are written where they have changed, and only then.

    Args:
        path: made where it is missing.
        scrubber: looks at every text of the data.
    """

    def __init__(self, path: Path, scrubber: Scrubber) -> None:
        self.path = path
        self.scrubber = scrubber
        self.written: set[str] = set()
        self._known: dict[str, bytes] = {}

    def write_data(self, name: str, key: str, value: Any) -> None:
        """Writes `Dashboard.receive(key, value)`.

        Args:
            name: of the file, relative to the folder.
            value: of lists, dictionaries, texts and numbers; what is not finite is null.

        Raises:
            OSError: it cannot be written.
        """
        cleaned = self.scrubber.data(plain_data(value))
        text = json.dumps(cleaned, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        self.write_bytes(name, f"Dashboard.receive({json.dumps(key)}, {text});\n".encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a file. Raises OSError."""
        self.written.add(name)
        path = self.path / name
        if self._known.get(name) == content and path.exists():
            return
        # Of an earlier build, of another process: most of it is the same.
        if not path.is_file() or path.read_bytes() != content:
            write_atomic(path, content)
        self._known[name] = content

    def keep(self, name: str) -> None:
        """Says of a file that was written before that it is still right."""
        self.written.add(name)

    def write_page(self) -> None:
        """Copies the page, its style and scripts, and plotly's script, once for all pages. Raises OSError."""
        for file in PAGE.iterdir():
            if file.name.endswith((".html", ".css", ".js")):
                self.write_bytes(file.name, file.read_bytes())
        self.write_bytes(PLOTLY, plotly_script())

    def remove_others(self, folder: str) -> None:
        """Removes the files of a subfolder that the last build did not write: of runs that are gone."""
        with contextlib.suppress(OSError):
            for file in (self.path / folder).iterdir():
                if file.suffix == ".js" and f"{folder}/{file.name}" not in self.written:
                    file.unlink()


def plotly_script() -> bytes:
    """plotly.min.js of the installed package, which is not imported for it."""
    found = importlib.util.find_spec("plotly")
    if found is None or found.origin is None:
        raise OSError("plotly is not installed; pip install 'palimpsa[experiments]', or make setup")
    return (Path(found.origin).parent / "package_data" / PLOTLY).read_bytes()


def plain_data(value: Any) -> Any:
    """As JSON knows it: numpy's numbers as Python's, what is missing or not finite as None, texts printable."""
    if isinstance(value, dict):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain_data(item) for item in value]
    if isinstance(value, str):
        return printable(value)
    if value is None or isinstance(value, bool | np.bool_):
        return None if value is None else bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    # pandas' NA.
    return None


def rounded(values: Any, digits: int = DIGITS) -> list[float | int | None]:
    """Numbers to so many significant digits; what is not finite is None.

    >>> rounded([0.123456789, 12345678.0, float("nan"), 3.0])
    [0.12346, 12346000, None, 3]
    """
    numbers: list[float | int | None] = []
    for value in np.asarray(values, dtype=float).tolist():
        if not math.isfinite(value):
            numbers.append(None)
            continue
        short = float(f"{value:.{digits}g}")
        numbers.append(int(short) if short.is_integer() and abs(short) < 2**53 else short)
    return numbers
