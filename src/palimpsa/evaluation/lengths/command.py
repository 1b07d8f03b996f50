"""The command line of scripts/evaluate_lengths.py: a line a run and length, and a row a number."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from pathlib import Path

from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.config.process import plain_console, print_failure
from palimpsa.runs.exit_codes import exit_code

DEFAULT_LENGTHS = "512:128,1024:128,1024:256,2048:128,2048:256,2048:512"
USAGE = f"""evaluate_lengths.py FOLDER [FOLDER ...] [--lengths TOKENS:PAIRS,...] [--task NAME] [--out FILE]

  evaluate_lengths.py results/recipe/runs                                   every run below that has kept its weights
  evaluate_lengths.py results/recipe/runs --task NAME --lengths 512:64,1024:128,2048:256      those of a task

Tests finished runs, at any depth below the folders, that have kept their final weights (trainer.keep_final=true), at
lengths that they need not have been trained on: tokens and pairs, without --lengths
{DEFAULT_LENGTHS}.
Rows go to results/recipe/lengths.csv, or --out. Nothing is trained. The same command goes on where it stopped."""


def evaluate_lengths_main(arguments: Sequence[str]) -> int:
    """Tests runs at other lengths, and writes a row of lengths.csv for every number.

    Returns:
        0; 1 where a file cannot be read or written; 2 where the command line or a run is wrong; 3 where all others were
        tested but runs without their final weights; 130 where it was interrupted.
    """
    parser = argparse.ArgumentParser(prog="evaluate_lengths.py", usage=USAGE, add_help=False, allow_abbrev=False)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--lengths", default=DEFAULT_LENGTHS)
    parser.add_argument("--task")
    parser.add_argument("--out", type=Path, default=Path("results/recipe/lengths.csv"))
    if {"-h", "--help"} & set(arguments):
        print(f"usage: {USAGE}")
        return 0
    given = parser.parse_args(arguments)
    return exit_code(
        lambda: _evaluate(given.folders, given.lengths, given.task, given.out),
        interrupted="the same command goes on where it stopped",
    )


def read_lengths(words: str) -> list[tuple[int, int]]:
    """ "512:128,1024:256" as pairs of numbers.

    Raises:
        ConfigError: for what is none, or stands there twice.

    >>> read_lengths("512:128,1024:256")
    [(512, 128), (1024, 256)]
    """
    try:
        lengths = [(int(tokens), int(pairs)) for tokens, pairs in (word.split(":") for word in words.split(","))]
    except ValueError as error:
        raise ConfigError(f"--lengths: got {words!r}, expected TOKENS:PAIRS, comma-separated") from error
    if min(map(min, lengths)) < 1:
        raise ConfigError(f"--lengths: got {words!r}, expected tokens and pairs >= 1")
    if len(set(lengths)) < len(lengths):
        raise ConfigError(f"--lengths: got {words!r}, expected each once")
    return lengths


def _evaluate(folders: Sequence[Path], words: str, task: str | None, out: Path) -> int:
    # Here and not above: torch, pandas.
    from palimpsa.analysis.collect.length_files import add_lengths, read_lengths_csv
    from palimpsa.evaluation.lengths.measure import is_finished, lengths_that_fit, load_weights, measure, read_run
    from palimpsa.evaluation.models.checkpoints import settled_device
    from palimpsa.runs.provenance import provenance
    from palimpsa.runs.read import find_run_dirs

    lengths = read_lengths(words)
    places = [place for folder in folders for place in find_run_dirs(folder)[0]]
    runs = [read_run(place) for place in dict.fromkeys(places) if is_finished(place, task)]
    if not runs:
        of_task = "" if task is None else f" of task {task}"
        raise ConfigError(f"{', '.join(map(str, folders))}: got no finished run{of_task} below, expected one at least")
    fitting, too_long = lengths_that_fit(runs, lengths)
    console, device = plain_console(soft_wrap=True), settled_device("auto")
    for line in too_long:
        console.print(f"left out: {line}")
    made_by = provenance("gpu" if device.type == "cuda" else "cpu")
    without_weights: list[RunDirectoryError] = []
    for run, own in zip(runs, fitting, strict=True):
        # Read anew for each: an interrupt, or another process, may have come in between.
        rows = read_lengths_csv(out)
        known = rows.loc[rows["config_hash"] == run.place["config_hash"], ["seq_len", "num_pairs"]]
        done = set(known.itertuples(index=False, name=None))
        missing = [length for length in own if length not in done]
        try:
            model = load_weights(run, device) if missing else None
        except RunDirectoryError as error:
            without_weights.append(error)
            continue
        for length in missing:
            assert model is not None
            metrics = measure(run, model, length)
            shared = {
                **run.place,
                **{"seq_len": length[0], "num_pairs": length[1]},
                **{"device": made_by["device"], "git_revision": made_by["git_revision"]},
                "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            }
            add_lengths(out, [{**shared, "metric": name, "value": value} for name, value in metrics.items()])
            name = f"{run.place['model']} lr {run.place['lr']:g} seed {run.place['seed']}"
            console.print(f"{name}: L {length[0]:,}, {length[1]} pairs: {metrics['accuracy']:.1%}")
    if len(without_weights) == len(runs):
        raise without_weights[0]
    for error in without_weights:
        print_failure(f"left out: {error}")
    console.print(str(out))
    return 3 if without_weights else 0
