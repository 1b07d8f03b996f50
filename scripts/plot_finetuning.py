"""Draws the figures and the table of fine-tuning again from its CSV files. No torch, no GPU, no network."""

import argparse
import sys
from pathlib import Path

from palimpsa.config.process import run_script
from palimpsa.runs.schema import ResultError


def main() -> int:
    """0, or 1 with one line on stderr when something could not be read or written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results/finetuning"),
        help="folder of pairs.csv and strength.csv, where figures and the table go too",
    )
    folder = parser.parse_args().results
    # Here and not above: matplotlib, whose settings `run_script` looks after.
    from palimpsa.analysis.finetuning.build import build_finetuning

    try:
        paths = build_finetuning(folder)
    except (ResultError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    run_script(main)
