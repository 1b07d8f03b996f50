"""The command line of the scripts that draw figures and tables again from the CSV files of a folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from palimpsa.runs.schema import ResultError


def redraw(description: str | None, folder: str, content: str, build: Callable[[Path], list[Path]]) -> int:
    """Draws again what `--results` says, and prints a line a file.

    Args:
        description: of the script.
        folder: that it takes without `--results`.
        content: of the folder, in words.
        build: draws all of a folder, and returns what it wrote.

    Returns:
        0, or 1 with one line on stderr when something could not be read or written.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--results", type=Path, default=Path(folder), help=f"folder of {content}, where they go too")
    try:
        paths = build(parser.parse_args().results)
    except (ResultError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in paths:
        print(path)
    return 0
