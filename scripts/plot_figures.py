"""Draws every figure and table again from runs.csv and curves.csv. No torch, no GPU, no network."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from palimpsa.config.process import run_script
from palimpsa.runs.schema import ResultError


def main(given: Sequence[str] | None = None) -> int:
    """0, or 1 with one line on stderr when something could not be read or written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--results",
        type=Path,
        default=Path("results/mqar"),
        help="folder of runs.csv and curves.csv, where figures and tables go too",
    )
    parser.add_argument("--scale", help="print the tables of this scale only (all are drawn)")
    arguments = parser.parse_args(given)
    # Here and not above: matplotlib, whose settings `run_script` looks after.
    from palimpsa.analysis.build import build_runs
    from palimpsa.analysis.tables import print_table

    try:
        reports = list(build_runs(arguments.results, required_scale=arguments.scale))
    except (ResultError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for report in reports:
        if arguments.scale in (None, report.scale):
            if not report.summary.empty:
                print_table(report.summary, task=report.task, scale=report.scale)
            for note in report.notes:
                print(f"note: {report.task}/{report.scale}: {note}")
    for report in reports:
        for path in report.paths:
            print(path)
    return 0


if __name__ == "__main__":
    run_script(main)
