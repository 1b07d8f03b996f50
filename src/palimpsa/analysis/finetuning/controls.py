"""What else differs between a converted language model and its control: runs that separate kernel, noise and training.

A model with importances runs on this repository's kernels, one without on flash-linear-attention's. So there are runs
that were converted and whose importances were not trained, and runs that were not converted at rates that differ by so
little that nothing but rounding should tell them apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from palimpsa.analysis.tables import markdown_table
from palimpsa.config.text import markdown_text
from palimpsa.runs.read import find_run_dirs
from palimpsa.runs.result import read_result

FOLDER = Path("controls")
# Of the demonstration's own runs.
PAIRS = Path("runs/language_further")
AS_IT_WAS, FROZEN, TRAINED = "as it was", "converted, importances not trained", "converted"


def controls_text(results: Path) -> str:
    """Markdown: a row a run that started from the weights of a pair which has such runs, with its validation loss.

    Args:
        results: with finetuning/ in it.

    Raises:
        ResultError: for a run that cannot be read.
    """
    cells = [
        [markdown_text(one["label"]), str(one["seed"]), one["kind"], f"{one['lr']:.7g}", f"{one['loss']:.4f}"]
        for one in control_runs(results / "finetuning")
    ]
    header = ["model", "seed", "trained on", "learning rate", "validation loss"]
    return "\n".join(markdown_table(header, cells)) if cells else "Not measured yet."


def control_runs(folder: Path) -> list[dict[str, Any]]:
    """The controls below a folder and the runs of the pairs that they belong to, sorted.

    Returns:
        label, of the model before conversion, seed, kind (`AS_IT_WAS`, `FROZEN`, `TRAINED`), lr and loss of each.

    Raises:
        ResultError: for a run that cannot be read.
    """
    controls = _runs(folder / FOLDER)
    places = {(one["label"], one["seed"]) for one in controls}
    runs = [*controls, *(one for one in _runs(folder / PAIRS) if (one["label"], one["seed"]) in places)]
    order = [AS_IT_WAS, FROZEN, TRAINED]
    return sorted(runs, key=lambda one: (one["label"], one["seed"], order.index(one["kind"]), one["lr"]))


def _runs(root: Path) -> list[dict[str, Any]]:
    """Of the runs below a folder; none where there is no such folder."""
    found = []
    for directory in find_run_dirs(root)[0] if root.exists() else []:
        result = read_result(directory / "result.json")
        config, run = result["config"], result["run"]
        is_converted = config["model"]["mixer"].get("metaplastic", False)
        kind = (FROZEN if config["optimizer"].get("freeze") else TRAINED) if is_converted else AS_IT_WAS
        found.append(
            {
                "label": config["model"]["label"].removesuffix(", metaplastic"),
                "seed": run["seed"],
                "kind": kind,
                "lr": run["lr"],
                "loss": result["stages"][-1]["validation_loss"],
            }
        )
    return found
