"""Counts every model of configs/ and writes docs/models.md. No GPU, no network."""

import argparse
import sys
from pathlib import Path

from palimpsa.config.process import run_script
from palimpsa.model.table import models_document
from palimpsa.runs.files import write_atomic


def main() -> int:
    """0, or 1 with one line on stderr when the file could not be written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/models.md"), help="file to write")
    path = parser.parse_args().out
    try:
        print(write_atomic(path, models_document()))
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_script(main)
