"""The command line of scripts/vary_strength.py: a line a strength, then a table of numbers and a picture."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from palimpsa.config.checks import check_config
from palimpsa.config.errors import ConfigError
from palimpsa.config.keys import is_file_name
from palimpsa.config.process import plain_console
from palimpsa.runs.exit_codes import exit_code
from palimpsa.runs.result import read_json_object, run_of

CONFIG_NAME = "finetune"
USAGE = """vary_strength.py SOURCE [--strengths 0,0.1,1] [--name NAME] [KEY=VALUE ...], for instance

  vary_strength.py RUN                                              a run, on what it was trained on
  vary_strength.py data/model task=commonsense task.data=DIR        a folder of scripts/convert.py, on a text

All else is the command line of train.py: task, data, precision. docs/finetuning.md says more."""


def vary_strength_main(arguments: Sequence[str]) -> int:
    """Measures a model at several strengths of its importances, writes strength.csv and draws it.

    Returns:
        0; 1 where a file cannot be written; 2 where the command line, the model or the data are wrong; 130 where it was
        interrupted, and nothing is written.
    """
    parser = argparse.ArgumentParser(prog="vary_strength.py", usage=USAGE, add_help=False, allow_abbrev=False)
    parser.add_argument("source", type=Path)
    parser.add_argument("--strengths")
    parser.add_argument("--name")
    if {"-h", "--help"} & set(arguments):
        print(f"usage: {USAGE}")
        return 0
    options, overrides = parser.parse_known_args(arguments)
    return exit_code(
        lambda: _vary(options.source.expanduser(), options.strengths, options.name, overrides),
        interrupted="nothing is written before all strengths are measured",
    )


def _vary(source: Path, words: str | None, name: str | None, overrides: Sequence[str]) -> None:
    # Here and not above, torch.
    import torch

    from palimpsa.analysis.finetuning.strength import add_strengths, build_strengths
    from palimpsa.config.compose import compose_config
    from palimpsa.config.schema import typed
    from palimpsa.evaluation.models.checkpoints import settled_device
    from palimpsa.finetuning.source import default_task, own_task_overrides, run_config, source_overrides
    from palimpsa.finetuning.strengths import DEFAULT_STRENGTHS, measure_strengths, strength_rows
    from palimpsa.model.build import build_model, check_model
    from palimpsa.runs.provenance import provenance
    from palimpsa.tasks.build import build_task
    from palimpsa.tasks.data_digests import with_data_digests
    from palimpsa.training.storage.start import fill_from_start, with_start_digest

    strengths = DEFAULT_STRENGTHS if words is None else read_strengths(words)
    unknown = [one for one in overrides if one.startswith("-")]
    if unknown:
        raise ConfigError(f"{unknown[0]}: got an option that there is not, expected --strengths or --name")
    run = run_config(source)
    where = where_to_measure(run, overrides, has_gpu=torch.cuda.is_available())
    given = [*(own_task_overrides(source) or default_task(source, overrides)), *where, *overrides]
    config = typed(compose_config(source_overrides(source, given), CONFIG_NAME))
    check_config(config)
    name = name or _name_of(source)
    if not is_file_name(name):
        raise ConfigError(f"--name: got {name!r}, expected letters, digits, '_', '-', '+' and '.'")
    config = with_start_digest(with_data_digests(config))
    check_model(dataclasses.asdict(config.model))
    task = build_task(config.task, config.seed)
    model = build_model(config.model, None)
    fill_from_start(model, config.start)
    device = settled_device("cuda" if config.trainer.accelerator == "gpu" else "cpu")
    model = model.to(device).eval()

    def forward_context() -> Any:
        half = config.trainer.precision == "bf16-mixed"
        return torch.autocast(device.type, torch.bfloat16) if half else contextlib.nullcontext()

    console = plain_console(soft_wrap=True)
    console.print(f"{config.model.label}: {task.stages[-1].label}, {len(strengths)} strengths on {device}")
    rows = measure_strengths(
        model,
        task,
        strengths,
        num_contexts=config.trainer.num_probe,
        forward_context=forward_context,
        report=lambda strength, metrics: console.print(_line(strength, metrics, task.metric)),
    )
    folder = Path(config.results_dir) / "finetuning"
    if (run or dataclasses.asdict(config))["scale"]["name"] == "laptop":
        # What shows that the pipeline works is kept apart from results.
        folder /= "demonstration"
    made_by = provenance(config.trainer.accelerator)
    shown = strength_rows(rows, name=name, label=config.model.label, task=config.task.name, provenance=made_by)
    for path in (add_strengths(folder, shown), *build_strengths(folder)):
        console.print(str(path))


def where_to_measure(run: Mapping[str, Any] | None, overrides: Sequence[str], *, has_gpu: bool) -> list[str]:
    """The trainer, unless whoever asks names one: the GPU where there is one, in the precision that a run had there."""
    if not has_gpu or any(one.lstrip("+~").startswith("trainer=") for one in overrides):
        return []
    precision = [] if run is None else [f"trainer.precision={run['trainer']['precision']}"]
    return ["trainer=gpu", *precision]


def read_strengths(words: str) -> list[float]:
    """ "0,0.1,1" as numbers.

    Raises:
        ConfigError: for what is none, stands there twice, or is not in [0, 1].
    """
    try:
        strengths = [float(word) for word in words.split(",")]
    except ValueError as error:
        raise ConfigError(f"--strengths: got {words!r}, expected numbers in [0, 1], comma-separated") from error
    if len(set(strengths)) < len(strengths) or not all(0 <= one <= 1 for one in strengths):
        raise ConfigError(f"--strengths: got {words!r}, expected numbers in [0, 1], each once")
    return sorted(strengths)


def _name_of(source: Path) -> str:
    file = source / "config.json"
    config = read_json_object(file, "expected a config") if file.is_file() else {}
    if "task" not in config:
        return source.resolve().name
    run = run_of(config)
    return f"{run['model']}_{run['scale']}_lr_{run['lr']}_seed_{run['seed']}"


def _line(strength: float, metrics: dict[str, float], metric: str) -> str:
    shown = {metric: metrics[metric], **{name: metrics[name] for name in ("perplexity", "variance") if name in metrics}}
    return f"strength {strength:g}: {', '.join(f'{name} {value:.4g}' for name, value in shown.items())}"
