"""Collects run directories into runs.csv, curves.csv and provenance.json. No torch, no network.

Folders of several machines are merged: of a run that failed in one and finished in another the finished one is
taken; two finished results of a run must agree, or nothing is written.

Of the learning curves curves.csv holds what Figure 3 shows, at a few steps of each run; run directories keep all.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from palimpsa.analysis.collect.result_files import collect, write_collected
from palimpsa.config.process import run_script
from palimpsa.runs.read import find_run_dirs
from palimpsa.runs.schema import ResultError

DEFAULT_RUNS = Path("results/runs")


def main(given: Sequence[str] | None = None) -> int:
    """Exit code: 0; 1 with one line on stderr when nothing was written; 3 when all was written but unreadable files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help=f"run directories (default: {DEFAULT_RUNS})")
    parser.add_argument("--out", type=Path, default=Path("results/mqar"), help="where the files go")
    parser.add_argument(
        "--from",
        dest="others",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="DIR",
        help="more folders of run directories, at any depth, brought from other machines",
    )
    parser.add_argument("--full-curves", action="store_true", help="all learning curves, at every logged step")
    arguments = parser.parse_args(given)
    roots = [*_own_runs(arguments.runs, arguments.others), *arguments.others]
    try:
        collected = collect(roots, arguments.out, full_curves=arguments.full_curves)
        paths = write_collected(collected, arguments.out)
    except (ResultError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for line in collected.report():
        print(line)
    for path in paths:
        print(path)
    for line in collected.unreadable:
        print(f"error: left out: {line}", file=sys.stderr)
    return 3 if collected.unreadable else 0


def _own_runs(given: Path | None, others: list[Path]) -> list[Path]:
    """This machine's runs; none where there are none by default, and those of other machines are what is asked for."""
    if given is None and others and not (DEFAULT_RUNS.is_dir() and any(find_run_dirs(DEFAULT_RUNS))):
        return []
    return [given or DEFAULT_RUNS]


if __name__ == "__main__":
    run_script(main)
