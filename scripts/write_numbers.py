"""Writes the numbers and tables that come from CSV files into README.md and docs/*.md, between their markers."""

import argparse
import sys
from functools import partial
from pathlib import Path

from palimpsa.analysis.marked_text import MarkerError, out_of_date
from palimpsa.analysis.text_blocks import TEXT_BLOCKS
from palimpsa.config.process import run_script
from palimpsa.runs.files import write_all_atomic
from palimpsa.runs.schema import ResultError


def main() -> int:
    """0; 1 where --check finds a file out of date, or with one line on stderr when nothing was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="*", help="default: README.md and docs/*.md")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of mqar/, kernels/, training/")
    parser.add_argument("--check", action="store_true", help="write nothing, and name the files that are out of date")
    arguments = parser.parse_args()
    files = arguments.files or [Path("README.md"), *sorted(Path("docs").glob("*.md"))]
    try:
        stale = out_of_date(files, {name: partial(text, arguments.results) for name, text in TEXT_BLOCKS.items()})
        if not arguments.check:
            write_all_atomic(stale)
    except (MarkerError, ResultError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for file in stale:
        print(f"{file}: out of date, make figures writes it anew" if arguments.check else file)
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    run_script(main)
