"""What the benchmark of evaluation runs in a process of its own: scores a folder's model on a task, twice.

python -m palimpsa.benchmark.evaluation.process RESULT reads `Evaluation` as JSON from stdin and writes cells to RESULT.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# The harness's own, and ours.
PATHS = ("hflm", "ours")


@dataclass(frozen=True)
class Evaluation:
    """One row's evaluation: a folder, one of `PATHS`, and when its process was started, by time.time()."""

    folder: str
    path: str
    task: str
    data_dir: str | None
    num_items: int
    batch_size: int
    context: int
    device: str
    dtype: str
    started: float

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def measure_evaluation(evaluation: Evaluation) -> dict[str, Any]:
    """Loads the model as scripts/evaluate.py or HFLM does, and scores the same items twice.

    Returns:
        load_s, first_s, again_s and value of a row.

    Raises:
        ConfigError: see `load_evaluated` and `run_harness`.
    """
    model = _load_hflm(evaluation) if evaluation.path == PATHS[0] else _load_ours(evaluation)
    # Here and not above: a GPU's kernels are compiled while the harness is imported.
    from palimpsa.evaluation.harness import run_harness

    load_s = time.time() - evaluation.started
    seconds, found = [], None
    for _ in range(2):
        begun = time.perf_counter()
        found = run_harness(model(), [evaluation.task], data_dir=evaluation.data_dir, limit=evaluation.num_items)
        seconds.append(time.perf_counter() - begun)
    assert found is not None
    metric = next(iter(found.tasks[evaluation.task].metrics.values()))
    return {"load_s": load_s, "first_s": seconds[0], "again_s": seconds[1], "value": metric.value}


def _load_hflm(evaluation: Evaluation) -> Any:
    from lm_eval.models.huggingface import HFLM

    make: Any = HFLM
    model = make(
        pretrained=evaluation.folder,
        device=evaluation.device,
        dtype=evaluation.dtype,
        batch_size=evaluation.batch_size,
        max_length=evaluation.context,
    )
    return lambda: model


def _load_ours(evaluation: Evaluation) -> Any:
    from palimpsa.evaluation.models.checkpoints import load_evaluated
    from palimpsa.evaluation.schema import load

    words = [f"checkpoint={evaluation.folder}", f"device={evaluation.device}", f"dtype={evaluation.dtype}"]
    words += [f"evaluation.max_length={evaluation.context}", f"results_dir={tempfile.gettempdir()}"]
    model = load_evaluated(load(words))

    def asked() -> Any:
        from palimpsa.evaluation.harness import HarnessModel
        from palimpsa.evaluation.models.scoring import Scorer

        return HarnessModel(Scorer(model.network, evaluation.batch_size), model.codec, model.max_length)

    return asked


def main() -> None:
    """Raises whatever evaluation does; its last line is what the benchmark tells."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    cells = measure_evaluation(Evaluation(**json.loads(sys.stdin.read())))
    Path(sys.argv[1]).write_text(json.dumps(cells), encoding="utf-8")


if __name__ == "__main__":
    main()
