"""Trains a sweep and draws its figures: train.py, then collect_results.py and plot_figures.py where its runs are.

Takes the command line of train.py: python scripts/reproduce.py -m +sweep=mqar_figure2 results_dir=elsewhere.
"""

import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from palimpsa.config.process import run_script
from palimpsa.sweeps.command import train_main


def collect_and_draw(configs: Sequence[dict[str, Any]], code: int) -> int:
    """Collects the runs of the composed configs, and draws what was collected beside them.

    Args:
        configs: of the runs, which share their results_dir.
        code: 0, or 1 where some are not finished: the others are still worth a figure.

    Returns:
        0; 1 where a run is not finished, a file could not be read or written, or there is nothing to draw.
    """
    # Here and not above: a launcher's workers import this file, and pandas takes a second.
    import collect_results
    import plot_figures

    results = Path(configs[0]["results_dir"])
    places = [Path(config["run_dir"]).absolute() for config in configs]
    runs = results / "runs"
    roots = [runs]
    if not all(place.is_relative_to(runs.absolute()) for place in places):
        # A run_dir of one's own, beside which other runs may lie.
        roots = [place for place in places if (place / "result.json").exists()] or [runs]
    for kind in dict.fromkeys(config["task"]["kind"] for config in configs):
        out = results / kind
        collected = _run(collect_results, "--runs", *_collected(roots), "--out", str(out))
        if collected not in (0, 3):
            return 1
        code = code or int(collected != 0)
        scales = dict.fromkeys(config["scale"]["name"] for config in configs if config["task"]["kind"] == kind)
        for scale in scales:
            if _run(plot_figures, "--results", str(out), "--scale", scale) != 0:
                return 1
        _record(configs[0]["logger"], out)
        if code == 0:
            print(f"done; figures and tables are in {out}")
    if code:
        print(
            "some runs are not finished, or cannot be read (see above); the figures show the others. "
            "The same command does the rest.",
            file=sys.stderr,
        )
    return code


def _record(logger: dict[str, Any], folder: Path) -> None:
    """Hands figures and tables to W&B, where the runs' artifacts go there."""
    # Here and not above: lightning takes seconds.
    from palimpsa.training.recording.figures import record_results

    if recorded := record_results(logger, folder):
        print(f"{len(recorded)} files of {folder} are recorded for W&B")


def _collected(roots: Sequence[Path]) -> list[str]:
    """The folders of runs as arguments of --runs."""
    first, *others = map(str, roots)
    return [first, *(["--from", *others] if others else [])]


def _run(script: Any, *arguments: str) -> int:
    """Runs the `main` of one of these scripts, and says so as a shell would."""
    print(f"+ {shlex.join(['scripts/' + Path(script.__file__).name, *arguments])}", file=sys.stderr, flush=True)
    code: int = script.main(arguments)
    sys.stdout.flush()
    return code


if __name__ == "__main__":
    run_script(partial(train_main, then=collect_and_draw))
