"""Draws the figures of a benchmark again from its CSV files. No torch, no GPU, no network."""

import argparse
import sys
from pathlib import Path

from palimpsa.analysis.draw.kernel_figures import draw_all
from palimpsa.analysis.draw.training_figures import draw_training, training_files
from palimpsa.runs.schema import ResultError


def main() -> int:
    """0, or 1 with one line on stderr when something could not be read or written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results/kernels"),
        help="folder of operators_*.csv and throughput_*.csv, or of steps_*.csv, where figures go too",
    )
    folder = parser.parse_args().results
    try:
        training = training_files(folder)
        paths = [path for file in training for path in draw_training(folder, file.stem.partition("_")[2])]
        if not training or [*folder.glob("operators_*.csv"), *folder.glob("throughput_*.csv")]:
            paths += draw_all(folder)
    except (ResultError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
