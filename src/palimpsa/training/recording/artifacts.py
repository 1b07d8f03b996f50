"""Files that W&B keeps beside the curves: a run's last checkpoint and tables, and the figures of a results folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CHECKPOINT, RESULTS, FIGURES = "model", "results", "figures"
# What W&B takes of an artifact's name: letters, digits, '_', '-' and '.'.
_NOT_IN_NAMES = re.compile(r"[^\w.-]")
MAX_CHARACTERS = 128
# What a results folder shows: figures, their tables, and the rows that they are made of.
SHOWN = ("*.png", "*.md", "*.csv")


def artifact_name(*parts: str) -> str:
    """Parts as W&B takes them for a name.

    >>> artifact_name("checkpoint", "palimpsa_d lr 0.01 seed 1")
    'checkpoint-palimpsa_d_lr_0.01_seed_1'
    """
    return _NOT_IN_NAMES.sub("_", "-".join(parts))[:MAX_CHARACTERS]


def record_run_files(
    run: Any, name: str, checkpoint: Path, history: Path, stages: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Hands a finished run's files to its W&B run, which uploads them, or notes offline where they lie.

    Args:
        run: W&B's, that is open.
        name: of the run.
        checkpoint: a file, or a folder of shards.
        history: the curves.
        stages: what the run came to, as result.json has it; a table of W&B's, "stages".

    Returns:
        the names of the artifacts.
    """
    results = _artifact(artifact_name(RESULTS, name), RESULTS, [history])
    with results.new_file("stages.json", mode="w", encoding="utf-8") as file:
        json.dump(list(stages), file, indent=1)
    model = _artifact(artifact_name("checkpoint", name), CHECKPOINT, [checkpoint])
    run.log({"stages": _table(stages)})
    for artifact in (model, results):
        run.log_artifact(artifact)
    return [model.name, results.name]


def record_figures(run: Any, folder: Path) -> list[str]:
    """Hands the figures and tables of a results folder to a W&B run.

    Returns:
        the names of the files; none where there are none, of which nothing is recorded.
    """
    files = sorted(path for pattern in SHOWN for path in folder.glob(pattern))
    if files:
        run.log_artifact(_artifact(artifact_name(FIGURES, folder.name), FIGURES, files))
        import wandb

        run.log({path.stem: wandb.Image(str(path)) for path in files if path.suffix == ".png"})
    return [path.name for path in files]


def _artifact(name: str, kind: str, paths: Sequence[Path]) -> Any:
    # Here and not above: who trains without W&B need not have it.
    import wandb

    artifact = wandb.Artifact(name, kind)
    for path in paths:
        # Uploaded from where it lies: a checkpoint is not copied to a staging folder first.
        if path.is_dir():
            artifact.add_dir(str(path), policy="immutable", skip_cache=True)
        else:
            artifact.add_file(str(path), policy="immutable", skip_cache=True)
    return artifact


def _table(stages: Sequence[Mapping[str, Any]]) -> Any:
    import wandb

    columns: list[Any] = list(dict.fromkeys(name for stage in stages for name in stage))
    # A cell holds a number or a text.
    rows: list[Any] = [
        [json.dumps(value) if isinstance(value := stage.get(name), list | dict) else value for name in columns]
        for stage in stages
    ]
    return wandb.Table(columns=columns, data=rows, allow_mixed_types=True)
