"""Builds the dashboard: a folder of static pages of results, run directories and offline W&B runs, without a network.

Open the address that it ends with in a browser. What is missing or cannot be read is told on the page.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from palimpsa.config.process import run_script
from palimpsa.runs.exit_codes import terminated_as_interrupted
from palimpsa.runs.schema import ResultError


def main(given: Sequence[str] | None = None) -> int:
    """0, or 1 with one line on stderr where the folder cannot be written or no browser can be had."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of mqar/, kernels/, runs/")
    parser.add_argument("--out", type=Path, help="where the pages go (default: RESULTS/dashboard)")
    parser.add_argument("--runs", type=Path, nargs="+", help="run directories (default: RESULTS/runs, RESULTS/*/runs)")
    parser.add_argument(
        "--wandb", type=Path, nargs="+", help="where offline W&B runs lie, at any depth (default: wandb and --runs)"
    )
    parser.add_argument("--watch", action="store_true", help="build again and again, for an open page, until Ctrl-C")
    parser.add_argument(
        "--benchmark",
        type=int,
        metavar="RUNS",
        help="instead: time how long a browser takes to open the page of so many runs",
    )
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="take the pictures of docs/dashboard.md")
    arguments = parser.parse_args(given)
    # Here and not above: matplotlib, whose settings `run_script` looks after.
    from palimpsa.analysis.dashboard.build import Dashboard, size_of
    from palimpsa.analysis.dashboard.headless import measure_opening, take_pictures, write_many_runs
    from palimpsa.analysis.dashboard.watch import follow

    if arguments.benchmark is not None and arguments.benchmark < 1:
        parser.error(f"--benchmark: got {arguments.benchmark}, expected a number of runs, 1 or more")
    for name, folders in (("--runs", arguments.runs), ("--wandb", arguments.wandb)):
        for folder in folders or []:
            if not folder.is_dir():
                print(f"note: {name}: got {folder}, where no folder is (yet)", file=sys.stderr)

    def build(dashboard: Dashboard) -> Path:
        try:
            built = dashboard.build()
        except OSError as error:
            why = error.strerror or error
            place = error.filename or dashboard.out
            raise OSError(f"--out: {place} cannot be written ({why}), expected a folder") from error
        for _, what, command in built.problems:
            print(f"note: {what}{f' ({command})' if command else ''}", file=sys.stderr)
        print(f"{built.num_runs} runs, {size_of(dashboard.out) / 1e6:.1f} MB in {dashboard.out}", file=sys.stderr)
        return built.page

    results: Path = arguments.results
    out = arguments.out or results / "dashboard"
    runs = arguments.runs or [results / "runs", *sorted(results.glob("*/runs"))]
    offline = arguments.wandb or [Path("wandb"), *runs]
    dashboard = Dashboard(results, out, runs, offline, watched=arguments.watch)
    try:
        if arguments.benchmark:
            with tempfile.TemporaryDirectory() as temporary:
                many = write_many_runs(results, Path(temporary) / "results", arguments.benchmark)
                seconds = measure_opening(build(Dashboard(many, Path(temporary) / "dashboard", [], [])))
            print(f"opens in {statistics.median(seconds):.2f} s, the median of {len(seconds)}")
            return 0
        page = build(dashboard)
        if arguments.pictures:
            for path in take_pictures(page, arguments.pictures):
                print(path)

        def tell() -> None:
            print(page.absolute().as_uri(), flush=True)

        if not arguments.watch:
            tell()
            return 0
        with terminated_as_interrupted():
            follow(dashboard, tell)
    except (ResultError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_script(main)
