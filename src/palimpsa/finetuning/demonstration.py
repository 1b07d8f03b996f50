"""A demonstration: trained models that are trained on converted and unconverted, in pairs, and measured alike.

Every step is skipped that has been done: runs by their directories, conversions and measurements by what they are of.
So the same command goes on where it stopped, on another machine too, to which results_dir has come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palimpsa.analysis.finetuning.pairs import CONTINUED, CONVERTED, SOURCE, metrics_of_stage
from palimpsa.config.errors import ConfigError
from palimpsa.finetuning.evaluate import evaluated
from palimpsa.finetuning.schema import DemonstrateConfig
from palimpsa.finetuning.source import (
    BASES,
    as_override,
    conversion_digits,
    converted,
    source_overrides,
    start_overrides,
)
from palimpsa.runs.directory import RunDirectory
from palimpsa.runs.result import read_json_object, read_result
from palimpsa.sweeps.ledger import Job
from palimpsa.sweeps.plan import plan_runs
from palimpsa.sweeps.sweep import Sweep
from palimpsa.training.storage.start import weights_are_gone

Rows = list[dict[str, Any]]
Report = Callable[[str], None]


@dataclass(frozen=True)
class Arm:
    """One run of a demonstration.

    model: what was trained first, a file of configs/model, and label, as figures call it. seed: of the pair. kind:
    SOURCE, CONTINUED or CONVERTED. job: the run.
    """

    model: str
    label: str
    seed: int
    kind: str
    job: Job

    @property
    def directory(self) -> Path:
        return self.job.directory


def plan_sources(config: DemonstrateConfig) -> tuple[Sweep, list[Arm]]:
    """The first trainings. Raises ConfigError: see `plan_runs`; for a model that cannot be converted afterwards."""
    plan = config.demonstration
    places = [(model, seed) for model in plan.models for seed in plan.seeds]
    lines = [[*_common(config), *plan.source, f"model={model}", f"seed={seed}"] for model, seed in places]
    sweep = plan_runs(lines)
    for (model, _), job in zip(places, sweep.jobs, strict=True):
        mixer = job.config["model"]["mixer"]
        if mixer["_target_"] not in BASES or mixer.get("metaplastic", True):
            raise ConfigError(
                f"demonstration.models: got {model!r}, expected Palimpsa-D or Palimpsa-M without importances"
            )
    return sweep, [
        Arm(model, job.config["model"]["label"], seed, SOURCE, job)
        for (model, seed), job in zip(places, sweep.jobs, strict=True)
    ]


def plan_arms(config: DemonstrateConfig, sources: Sequence[Arm]) -> tuple[Sweep, list[Arm]]:
    """What each source is trained on to, as it is and converted, which is done here.

    Raises:
        ConfigError, RunDirectoryError, ResultError: see `source_overrides`, `converted` and `plan_runs`.
    """
    plan = config.demonstration
    places, lines = [], []
    for source in sources:
        for kind in (CONTINUED, CONVERTED):
            named = [f"seed={source.seed + plan.seed_offset}", f"variant=_{kind}"]
            given = [*_common(config), *plan.further, *(plan.converted if kind == CONVERTED else []), *named]
            places.append((source, kind))
            if kind == CONTINUED:
                lines.append(source_overrides(source.directory, given))
            elif (
                weights_are_gone(source.directory)
                and (begun := _begun_conversion(source, lines[-1], plan.convert)) is not None
            ):
                lines.append(start_overrides(begun["model"], begun["start"]["weights"], given))
            else:
                start = converted(source.directory, Path(config.results_dir) / "converted", plan.convert)
                lines.append(source_overrides(start, given))
    sweep = plan_runs(lines)
    return sweep, [
        Arm(source.model, source.label, source.seed, kind, job)
        for (source, kind), job in zip(places, sweep.jobs, strict=True)
    ]


def _begun_conversion(source: Arm, continued: Sequence[str], options: str) -> dict[str, Any] | None:
    """The config of the converted run of a source that has no weights any more; None where there is no such run.

    Args:
        continued: the command line of the source's other run: the converted one lies beside it.
        options: of the conversion that is asked for.

    Raises:
        ConfigError: it was converted by others, or from other weights than the source's other run began with.
    """
    # Here and not above: transformers.
    from palimpsa.conversion.metaplastic import SUFFIX

    (job,) = plan_runs([list(continued)]).jobs
    rate, seed = job.directory.parts[-2:]
    name = f"{source.job.config['model']['name']}{SUFFIX}_{CONVERTED}"
    file = RunDirectory(job.directory.parents[2] / name / rate / seed).config_file
    if not file.exists():
        return None
    begun = read_json_object(file, "expected a run's config")
    place = begun["start"]["weights"]
    if not place.endswith(f"_{conversion_digits(job.config['start']['digest'], options)}"):
        raise ConfigError(
            f"demonstration.convert: got {options!r}, expected the options by which {place} was made, which "
            f"{file.parent} began with: {source.directory} has no weights any more that could be converted"
        )
    return begun


def _common(config: DemonstrateConfig) -> list[str]:
    return [f"results_dir={as_override(config.results_dir)}", *config.demonstration.common]


def pair_rows(config: DemonstrateConfig, arms: Sequence[Arm], report: Report) -> tuple[Rows, Rows]:
    """The rows of pairs.csv and of documents.csv: every number of every run, and the losses of single documents.

    Args:
        report: told of each run that is evaluated here.

    Raises:
        ConfigError, RunDirectoryError, ResultError: a run cannot be read or evaluated.
    """
    plan = config.demonstration
    rows, documents = [], []
    for arm in arms:
        result = read_result(RunDirectory(arm.directory).result_file)
        place = {"demonstration": plan.name, "model": arm.model, "seed": arm.seed, "arm": arm.kind}
        shared = {
            **place,
            **{"label": arm.label, "scale": result["run"]["scale"], "config_hash": result["config_hash"]},
            **{name: result["provenance"][name] for name in ("device", "git_revision")},
            **{"steps": result["metrics"]["num_steps"], "date": result["provenance"]["started"]},
        }
        found = [row for stage in result["stages"] for row in metrics_of_stage(stage)]
        if plan.evaluation is not None:
            evaluation = evaluated(arm.directory, plan.evaluation, report)
            found += evaluation["points"]
            losses = enumerate(evaluation["documents"])
            documents += [{**place, "document": number, "loss": loss} for number, loss in losses]
        rows += [{**shared, **row} for row in found]
    return rows, documents
