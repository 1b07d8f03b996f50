"""Builds the dashboard: a folder of static pages of results, run directories and offline W&B runs, without a network.

Open the address that it ends with in a browser. What is missing or cannot be read is told on the page.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from palimpsa.config.process import run_script


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
    parser.add_argument("--benchmark", action="store_true", help="time how long a browser takes to open the page")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="take the pictures of docs/dashboard.md")
    arguments = parser.parse_args(given)
    # Here and not above: matplotlib, whose settings `run_script` looks after.
    from palimpsa.analysis.dashboard.build import Dashboard, size_of
    from palimpsa.analysis.dashboard.headless import measure_opening, take_pictures
    from palimpsa.analysis.dashboard.watch import follow

    results: Path = arguments.results
    out = arguments.out or results / "dashboard"
    runs = arguments.runs or [results / "runs", *sorted(results.glob("*/runs"))]
    offline = arguments.wandb or [Path("wandb"), *runs]
    dashboard = Dashboard(results, out, runs, offline, watched=arguments.watch)
    try:
        built = dashboard.build()
        for _, what, command in built.problems:
            print(f"note: {what}{f' ({command})' if command else ''}", file=sys.stderr)
        print(f"{built.num_runs} runs, {size_of(out) / 1e6:.1f} MB in {out}", file=sys.stderr)
        if arguments.benchmark:
            seconds = measure_opening(built.page)
            print(f"opens in {statistics.median(seconds):.2f} s, the median of {len(seconds)}: from the request to the")
            print("first figure, in a headless Chromium")
        if arguments.pictures:
            for path in take_pictures(built.page, arguments.pictures):
                print(path)
        print(built.page.absolute().as_uri(), flush=True)
        if arguments.watch:
            follow(dashboard)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run_script(main)
