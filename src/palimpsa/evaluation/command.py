"""The command line of scripts/evaluate.py: a line a task while it works, then a table and pictures."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from palimpsa.config.process import plain_console, refuse_options
from palimpsa.runs.exit_codes import exit_code

USAGE = """usage: evaluate.py [KEY=VALUE ...], for instance

  evaluate.py evaluation.data_dir=DIR                    what make pretrain trained, on local files of the tasks
  evaluate.py checkpoint=RUN                             the directory of a run, on the hub's data
  evaluate.py checkpoint=FOLDER                          a Hugging Face folder
  evaluate.py checkpoint=RUN evaluation.tasks=[piqa] evaluation.limit=50 long_range.measures=[]

The keys are in configs/evaluate.yaml; docs/evaluation.md says what is measured."""


def evaluate_main(arguments: list[str]) -> int:
    """Evaluates the model that a command line names.

    Returns:
        0; 1 where a file cannot be written; 2 where the command line, the model or the data are wrong; 130 where it was
        interrupted.
    """
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    return exit_code(
        lambda: _evaluate(arguments),
        interrupted="the same command goes on after the tasks and measures that are done",
    )


def _evaluate(arguments: list[str]) -> None:
    refuse_options(arguments)
    # The libraries' own bars, and a warning of theirs a task: here a line a task is printed.
    os.environ.setdefault("TQDM_DISABLE", "1")
    # Here and not above, torch, transformers and the harness.
    from palimpsa.evaluation.schema import load

    config = load(arguments)
    from palimpsa.evaluation.models.checkpoints import load_evaluated

    # Before all that follows is imported, since a GPU's kernels are compiled meanwhile.
    model = load_evaluated(config)
    from palimpsa.analysis.collect.evaluation_files import add_evaluation
    from palimpsa.analysis.language.evaluation_report import build_evaluation, print_evaluation
    from palimpsa.evaluation.harness import HarnessModel, run_harness
    from palimpsa.evaluation.long_range import LongRange
    from palimpsa.evaluation.models.scoring import Scorer
    from palimpsa.evaluation.result import evaluation_result, result_rows, write_result
    from palimpsa.evaluation.unfinished import Unfinished, shared_facts
    from palimpsa.runs.provenance import provenance

    console, settings = plain_console(soft_wrap=True), config.evaluation
    console.print(
        f"{model.label}: {model.num_parameters:,} parameters on {model.network.device}; max_length {model.max_length}, "
        f"prefix token {model.codec.prefix_token}, {_items_text(settings.limit)}; a line for each as it is done"
    )
    scorer = Scorer(model.network, settings.batch_size)
    results_dir = Path(config.results_dir)
    own_folder = results_dir / "evaluations" / model.name
    made_by = provenance("gpu" if model.network.device.type == "cuda" else "cpu")
    unfinished = Unfinished(own_folder, shared_facts(config, model, made_by), report=console.print)
    tasks = run_harness(
        HarnessModel(scorer, model.codec, model.max_length),
        settings.tasks,
        data_dir=settings.data_dir,
        limit=settings.limit,
        unfinished=unfinished,
        report=lambda name, found, was_known: console.print(_task_line(name, found) + _known_text(was_known)),
    )
    long_range = LongRange(model, scorer, config.long_range)
    points = long_range.run(
        tasks.tasks.get("lambada_openai"),
        unfinished,
        report=lambda name, found, was_known: console.print(_points_line(name, found) + _known_text(was_known)),
    )
    notes = [*tasks.notes, *long_range.notes]
    for note in notes:
        console.print(f"note: {note}")
    result = evaluation_result(config, model, tasks, points, long_range.documents_name, notes, made_by)
    path = write_result(own_folder, result)
    folder = results_dir / "commonsense"
    if settings.limit is not None or model.trained.scale == "laptop":
        # What shows that the pipeline works is kept apart from results.
        folder /= "demonstration"
    add_evaluation(folder, result_rows(result))
    unfinished.remove()
    print_evaluation(folder, model.name)
    for written in [path, *build_evaluation(folder)]:
        console.print(str(written))


def _items_text(limit: int | None) -> str:
    return "all items" if limit is None else f"at most {limit:,} items a task"


def _task_line(name: str, found: Any) -> str:
    metrics = ", ".join(f"{metric} {one.value:.4g} ± {one.stderr:.2g}" for metric, one in found.metrics.items())
    cut = f", {found.num_truncated:,} requests cut to max_length" if found.num_truncated else ""
    return f"{name}: {metrics} ({found.num_items:,} items in {found.seconds:.1f} s{cut})"


def _points_line(name: str, found: Any) -> str:
    # Here and not above: it imports torch.
    from palimpsa.evaluation.long_range import MEASURES

    return f"{name}, {MEASURES[name]}: {', '.join(_point_text(one) for one in found) or 'none'}"


def _known_text(was_known: bool) -> str:
    return ", measured before the interruption" if was_known else ""


def _point_text(point: Any) -> str:
    return f"{point.at}: {point.value:.3f}" + ("" if math.isnan(point.stderr) else f" ± {point.stderr:.2g}")
