"""The command line of scripts/calibrate.py: trained models, or models that it trains first; a line a load."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from palimpsa.config.errors import ConfigError
from palimpsa.config.process import plain_console, refuse_options
from palimpsa.runs.exit_codes import exit_code

USAGE = """usage: calibrate.py CHECKPOINT... [KEY=VALUE ...]
       calibrate.py train [KEY=VALUE ...], for instance

  calibrate.py RUN                                                                 the directory of a run, or several
  calibrate.py train +experiment=calibration hydra/launcher=joblib hydra.launcher.n_jobs=4              on a GPU
  calibrate.py train +experiment=calibration scale=laptop trainer=cpu optimizer.lr=1e-2    minutes on two CPU cores

The keys are in configs/calibrate.yaml; of `train` all others are those of train.py. docs/calibration.md says what is
measured. The same command goes on where it stopped."""
INTERRUPTED = "the same command goes on after the runs that are done"


def calibrate_main(arguments: Sequence[str]) -> int:
    """Measures the models that a command line names.

    Returns:
        0; 1 where a file cannot be written; 2 where the command line, a model or a directory is wrong; 130 where it was
        interrupted.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(USAGE, file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    return exit_code(lambda: _calibrate_named(arguments), interrupted=INTERRUPTED)


def _calibrate_named(arguments: Sequence[str]) -> None:
    refuse_options(arguments)
    overrides = [word for word in arguments if "=" in word and not Path(word).expanduser().exists()]
    places = [Path(word).expanduser() for word in arguments if word not in overrides]
    if not places:
        raise ConfigError("CHECKPOINT: got none, expected the directory of a run, or several")
    _calibrate(places, overrides)


def training_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words after `train` that are scripts/train.py's, and the keys that are this command's.

    >>> training_arguments(["+experiment=calibration", "results_dir=r", "calibration.num_examples=64", "seed=1"])
    (['+experiment=calibration', 'results_dir=r', 'seed=1'], ['calibration.num_examples=64'])
    """
    # Here and not above: it imports Hydra, which help needs not.
    from palimpsa.evaluation.calibration.schema import OWN_KEYS

    own = [word for word in arguments if word.startswith(OWN_KEYS)]
    return [word for word in arguments if word not in own], own


def calibrate_trained(overrides: Sequence[str], configs: Sequence[dict[str, Any]], code: int) -> int:
    """Measures the runs of a sweep that are finished.

    Args:
        overrides: keys of configs/calibrate.yaml.
        configs: of the runs, which share their results_dir.
        code: 0, or 1 where some are not finished.

    Returns:
        0; 1 where a run is not finished.
    """
    from palimpsa.runs.directory import RunDirectory

    directories = [RunDirectory(config["run_dir"]) for config in configs]
    finished = [one.path for one in directories if one.seems_finished()]
    if len(finished) < len(directories):
        told = f"{len(directories) - len(finished)} of {len(directories)} runs are not finished, and not measured"
        print(f"{told}; the same command does the rest", file=sys.stderr)
        code = code or 1
    if finished:
        results_dir = configs[0]["results_dir"]
        _calibrate(finished, [*overrides, f"results_dir='{results_dir}'"])
        from palimpsa.training.recording.figures import record_results

        record_results(configs[0]["logger"], Path(results_dir))
    return code


def _calibrate(places: Sequence[Path], overrides: Sequence[str]) -> None:
    from palimpsa.evaluation.calibration.schema import load

    config = load(overrides)
    # Here and not above, torch.
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from palimpsa.analysis.calibration.build import build_calibration
    from palimpsa.analysis.calibration.rows import add_calibration
    from palimpsa.evaluation.calibration.measure import measure, read_subject
    from palimpsa.evaluation.calibration.measured import Measured
    from palimpsa.evaluation.models.checkpoints import settled_device
    from palimpsa.runs.provenance import provenance

    settings, device = config.calibration, settled_device(config.device)
    # What is wrong with the last of them is told before the first is measured.
    subjects = [read_subject(place, settings) for place in places]
    made_by = provenance("gpu" if device.type == "cuda" else "cpu")
    folder = Path(config.results_dir)
    known = Measured(folder, settings, made_by, {subject.run["scale"] for subject in subjects}, fresh=config.fresh)
    console = plain_console(soft_wrap=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        *(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        sequences = [len(subject.stages) * settings.num_examples for subject in subjects]
        bar = progress.add_task("sequences", total=sum(sequences))
        report = partial(console.print, soft_wrap=True)
        for subject, number in zip(subjects, sequences, strict=True):
            if known.has(subject):
                report(f"{subject.name}: measured before")
                progress.advance(bar, number)
                continue
            rows, bins = measure(subject, settings, device, made_by, partial(progress.advance, bar), report)
            add_calibration(folder, rows, bins)
    for path in build_calibration(folder):
        console.print(str(path))
