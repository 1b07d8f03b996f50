"""The command line of scripts/finetune.py: converts what has no importances, trains, exports, says where all is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from palimpsa.config.errors import ConfigError, RunDirectoryError
from palimpsa.config.process import print_failure
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.exit_codes import terminated_as_interrupted
from palimpsa.runs.result import read_json_object
from palimpsa.runs.schema import FINISHED, ResultError

CONFIG_NAME = "finetune"
# Below a run's directory.
EXPORT = "export"
USAGE = """finetune.py SOURCE [--convert OPTIONS] [--as-it-is] [KEY=VALUE ...], for instance

  finetune.py data/mamba2 task=commonsense task.data=data/sample    a Mamba-2, which becomes metaplastic first
  finetune.py RUN optimizer.freeze=[old]                            a run; the new parameters alone are trained
  finetune.py RUN --as-it-is                                        the control: trained on without conversion

SOURCE: the directory of a run, a folder of scripts/convert.py, or whatever `convert.py metaplastic` takes. All else is
the command line of train.py, -m included. docs/finetuning.md says more."""


def finetune_main(arguments: Sequence[str]) -> int:
    """Fine-tunes what a command line names.

    Returns:
        0; 1 where the run is not finished or a file cannot be written; 2 where the command line, a config, the source
        or the data are wrong; 130 where it was interrupted, and the same command goes on.
    """
    parser = argparse.ArgumentParser(prog="finetune.py", usage=USAGE, add_help=False, allow_abbrev=False)
    parser.add_argument("source", type=Path)
    parser.add_argument("--convert", default="")
    parser.add_argument("--as-it-is", action="store_true")
    if {"-h", "--help"} & set(arguments):
        print(f"usage: {USAGE}")
        return 0
    options, overrides = parser.parse_known_args(arguments)
    # Here and not above: a wrong command line is told at once.
    from palimpsa.config.compose import compose_config
    from palimpsa.finetuning.source import (
        check_data,
        check_is_there,
        check_reads_alike,
        default_task,
        source_overrides,
    )
    from palimpsa.sweeps.command import train_main

    flags = [one for one in overrides if one.startswith("-")]
    given = [one for one in overrides if not one.startswith("-")]
    try:
        check_is_there(options.source.expanduser())
        # Of what was given: a converted run is a folder.
        task = default_task(options.source.expanduser(), given)
        if not flags:
            check_data([*task, *given], CONFIG_NAME)
        with terminated_as_interrupted():
            source = starting_point(options.source, _results_dir(overrides), options.convert, as_it_is=options.as_it_is)
        words = source_overrides(source, [*task, *_without_new_parameters(source), *given])
        if not flags:
            task = compose_config(words, CONFIG_NAME).task
            if "data" in task:
                check_reads_alike(source, task.data)
        sys.argv[1:] = ["--config-name", CONFIG_NAME, *words, *flags]
    except (ConfigError, RunDirectoryError, ResultError) as error:
        print_failure(f"error: {error}")
        return 2
    except OSError as error:
        print_failure(f"error: {error.filename or ''}: {error.strerror or error}")
        return 1
    except KeyboardInterrupt:
        print_failure("interrupted; the same command goes on where it stopped")
        return 130
    train_main(then=export_runs)
    return 0


def starting_point(source: Path, results_dir: Path, options: str, *, as_it_is: bool) -> Path:
    """The source, or what it was converted to, and says so.

    Raises:
        ConfigError, RunDirectoryError, ResultError, OSError: for a source that is none, or cannot be converted.
    """
    from palimpsa.conversion.command import metaplastic_words
    from palimpsa.finetuning.source import converted, is_metaplastic, model_of

    source = source.expanduser()
    model = model_of(source)
    if model is not None and (as_it_is or is_metaplastic(model)):
        if options:
            reason = "--as-it-is" if as_it_is else "a source that is metaplastic"
            raise ConfigError(f"--convert: got {options!r} with {reason}, expected none")
        return source
    if as_it_is:
        # A model of other programs, which a run builds of this repository's parts.
        metaplastic_words(options, "--convert")
        options = f"{options} --form none".lstrip()
    place = converted(source, results_dir / "converted", options)
    print(f"converted: {place}, every tensor in {place.name}.txt beside it", flush=True)
    return place


def _without_new_parameters(source: Path) -> list[str]:
    """Of a source that has none and stays so: their keys of configs/finetune.yaml would ask for them."""
    from palimpsa.finetuning.source import is_metaplastic, model_of
    from palimpsa.training.optimizer import NEW_KEYS

    model = model_of(source)
    has_them = model is None or is_metaplastic(model)
    return [] if has_them else [f"optimizer.{name}=null" for name in NEW_KEYS]


def _results_dir(overrides: Sequence[str]) -> Path:
    """As Hydra reads it, which takes quotes away. Raises ConfigError: see `compose_config`."""
    from palimpsa.config.compose import compose_config

    given = [one for one in overrides if one.lstrip("+").startswith("results_dir=")]
    return Path(compose_config(given, CONFIG_NAME).results_dir)


def export_runs(configs: Sequence[dict[str, Any]], code: int) -> int:
    """Exports each run that is finished to a folder in its directory, and prints what came of it.

    Args:
        configs: of the runs, plain.
        code: 0, or 1 where some are not finished.
    """
    from palimpsa.conversion.checkpoint import read_trained
    from palimpsa.conversion.folder import export_folder
    from palimpsa.training.distributed import is_first_rank

    if not is_first_rank():
        return code
    for config in configs:
        directory = RunDirectory(config["run_dir"])
        if not directory.result_file.exists():
            continue
        result = read_json_object(directory.result_file, "expected a run's result")
        if result["status"] != FINISHED:
            continue
        folder = directory.path / EXPORT
        if not folder.is_dir():
            export_folder(read_trained(directory.path), folder)
        for line in _told(config, result, folder):
            print(line, flush=True)
    return code


def _told(config: dict[str, Any], result: dict[str, Any], folder: Path) -> list[str]:
    """What a person wants to know of a run that has ended."""
    from palimpsa.config.keys import convert
    from palimpsa.config.schema import TASK_SCHEMAS
    from palimpsa.tasks.build import build_task

    task = build_task(convert(TASK_SCHEMAS[config["task"]["kind"]], config["task"]), config["seed"])
    headlines = list(filter(None, map(task.headline, result["stages"])))
    frozen = config["optimizer"]["freeze"]
    return [
        f"{config['model']['label']}: {'; '.join(headlines)}",
        f"trained: {'all parameters' if not frozen else 'all but ' + ', '.join(frozen)}, "
        f"{result['metrics']['num_steps']:,} steps from {config['start']['weights']}",
        f"run: {config['run_dir']}",
        f"model: {folder}, which transformers loads after `import palimpsa.model.hf`",
    ]
