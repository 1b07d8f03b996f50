"""The command line of scripts/demonstrate.py: trains, converts, trains on, measures, and writes what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from palimpsa.config.process import plain_console, refuse_options
from palimpsa.runs.exit_codes import exit_code

USAGE = """usage: demonstrate.py NAME [KEY=VALUE ...], for instance

  demonstrate.py recall hydra/launcher=joblib hydra.launcher.n_jobs=4      associative recall, on a GPU
  demonstrate.py language task.data=data/hub                               language, on a GPU
  demonstrate.py recall_small                                              in minutes on two CPU cores

NAME: a file of configs/demonstration, whose keys are demonstration.KEY here, beside results_dir. All else is the
command line of train.py, for all runs. docs/finetuning.md says what is compared. The same command goes on where it
stopped."""


def demonstrate_main(arguments: Sequence[str]) -> int:
    """Carries out a demonstration.

    Returns:
        0; 1 where a run is not finished or a file cannot be written; 2 where the command line, a config or a directory
        is wrong; 130 where it was interrupted.
    """
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    return exit_code(lambda: _demonstrate(arguments), interrupted="the same command goes on where it stopped")


def _demonstrate(arguments: Sequence[str]) -> int:
    refuse_options(arguments)
    # Here and not above, torch.
    from palimpsa.finetuning.schema import load

    config = load(arguments)
    from palimpsa.analysis.finetuning.build import build_finetuning
    from palimpsa.analysis.finetuning.pairs import add_documents, add_pairs
    from palimpsa.finetuning.demonstration import pair_rows, plan_arms, plan_sources
    from palimpsa.sweeps.command import run_sweep

    console = plain_console(soft_wrap=True)
    sweep, sources = plan_sources(config)
    if run_sweep(sweep, sweep.launch):
        return 1
    sweep, arms = plan_arms(config, sources)
    if run_sweep(sweep, sweep.launch):
        return 1
    rows, documents = pair_rows(config, [*sources, *arms], console.print)
    folder = Path(config.results_dir)
    if any(row["scale"] == "laptop" for row in rows):
        # What shows that the pipeline works is kept apart from results.
        folder /= "demonstration"
    written = [add_pairs(folder, rows), *([add_documents(folder, documents)] if documents else [])]
    for path in [*written, *build_finetuning(folder)]:
        console.print(str(path))
    return 0
