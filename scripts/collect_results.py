"""Collects run directories into runs.csv, curves.csv and provenance.json. No torch, no network."""

import argparse
import sys
from pathlib import Path

from palimpsa.analysis.collect import collect, write_collected
from palimpsa.analysis.schema import ResultError


def main() -> int:
    """0, or 1 with one line on stderr when nothing could be collected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("results/runs"), help="run directories")
    parser.add_argument("--out", type=Path, default=Path("results/mqar"), help="where the files go")
    parser.add_argument(
        "--from",
        dest="others",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="more folders of run directories, brought from another machine",
    )
    arguments = parser.parse_args()
    try:
        collected = collect([arguments.runs, *arguments.others], arguments.out)
        paths = write_collected(collected, arguments.out)
    except (ResultError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for line in collected.report():
        print(line)
    for path in paths:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
