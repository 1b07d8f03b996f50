"""Counts every model of configs/ and writes docs/models.md. No GPU, no network."""

import argparse
import sys
from functools import partial
from pathlib import Path

from palimpsa.analysis.marked_text import replace_marked
from palimpsa.analysis.text_blocks import TEXT_BLOCKS
from palimpsa.config.process import run_script
from palimpsa.model.table import models_document
from palimpsa.runs.files import write_atomic
from palimpsa.runs.schema import ResultError


def main() -> int:
    """0, or 1 with one line on stderr when the file could not be written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/models.md"), help="file to write")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of mqar/, kernels/, training/")
    arguments = parser.parse_args()
    blocks = {name: partial(text, arguments.results) for name, text in TEXT_BLOCKS.items()}
    try:
        print(write_atomic(arguments.out, replace_marked(models_document(), blocks)))
    except (ResultError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_script(main)
