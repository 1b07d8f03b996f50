"""The benchmark of evaluation: seconds of a task by the harness's own HFLM on a Llama, and of models through ours.

Each row is measured by `process`, in a process of its own whose caches are empty.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from palimpsa.benchmark.base import Benchmark
from palimpsa.benchmark.checks import check_choice, check_positive, check_several
from palimpsa.benchmark.evaluation.folders import LLAMA, load_tokenizer, model_keys, write_folder
from palimpsa.benchmark.evaluation.process import PATHS, Evaluation
from palimpsa.benchmark.isolated import measure_with_empty_caches
from palimpsa.benchmark.schema import EvaluationSpeedConfig
from palimpsa.benchmark.store import EVALUATION_SPEED_TABLES
from palimpsa.config.errors import ConfigError
from palimpsa.evaluation.harness_tasks import TASKS
from palimpsa.evaluation.models.checkpoints import settled_device, settled_dtype
from palimpsa.text.files import files_sha256

KIND = "evaluation_speed"
HFLM, OURS = PATHS


@dataclass(frozen=True)
class EvaluationRow:
    """One row to be: a model, and the path that it is asked by."""

    model: str
    path: str

    def __str__(self) -> str:
        return f"{self.model} by {self.path}"


class EvaluationBenchmark(Benchmark[EvaluationRow]):
    """Seconds of zero-shot evaluation, imports, loading and first calls included and not.

    Args:
        config: from `config.load`.

    Raises:
        ConfigError: there is no such task, model, tokenizer or file of records; or see `Benchmark`.
    """

    tables = EVALUATION_SPEED_TABLES
    packages = ("python", "torch", "triton", "transformers", "flash-linear-attention")
    summary_formats: ClassVar = {
        "load_s": "loaded after {:.3g} s",
        "first_s": "scored in {:.3g} s",
        "again_s": "again in {:.3g} s",
        "speed_ratio": "{:.2f} times as fast as HFLM",
        "total_speed_ratio": "{:.2f} with loading",
        "again_speed_ratio": "{:.2f} the second time",
    }

    def __init__(self, config: EvaluationSpeedConfig) -> None:
        _check(config)
        self.config = config
        device = settled_device(config.device)
        self._device, self._dtype = device.type, str(settled_dtype(config.dtype, config.device)).removeprefix("torch.")
        self._tokenizer = load_tokenizer(config.tokenizer)
        for model in config.models:
            if model != LLAMA:
                model_keys(model, len(self._tokenizer))
        sizes = ", ".join(f"{name} {value}" for name, value in vars(config.llama).items())
        names = ("task", "num_items", "batch_size", "context", "seed")
        super().__init__(
            [EvaluationRow(LLAMA, HFLM), *(EvaluationRow(model, OURS) for model in config.models)],
            accelerator="gpu" if device.type == "cuda" else "cpu",
            settings={
                **{name: getattr(config, name) for name in names},
                "data": _records_digest(config),
                "dtype": self._dtype,
                "tokenizer": _tokenizer_digest(self._tokenizer),
                "lm_eval": version("lm-eval"),
                "sizes": sizes,
            },
            results_dir=config.results_dir,
            fresh=config.fresh,
        )

    def headlines(self) -> list[str]:
        origin, config = self.store.origin, self.config
        what = f"{config.num_items} items of {config.task}, {config.batch_size} rows at a time, {self._dtype}"
        return [
            f"benchmark: evaluation of {what}, {origin['device']}; {origin['versions']}",
            f"llama: {origin['sizes']}",
        ]

    def address(self, row: EvaluationRow) -> tuple[str, dict[str, Any]]:
        return KIND, {"model": row.model, "path": row.path}

    def measure(self, row: EvaluationRow, on_step: Callable[[int], None]) -> dict[str, Any]:
        """Measures a row in a process of its own. See `Benchmark.measure`."""
        config = self.config
        with tempfile.TemporaryDirectory(prefix="palimpsa-evaluation-") as folder:
            num_parameters = write_folder(config, row.model, self._tokenizer, Path(folder))
            evaluation = Evaluation(
                folder,
                row.path,
                config.task,
                config.data_dir,
                config.num_items,
                config.batch_size,
                config.context,
                self._device,
                self._dtype,
                started=time.time(),
            )
            cells = measure_with_empty_caches(row, "palimpsa.benchmark.evaluation.process", evaluation.to_json())
        return {"num_parameters": num_parameters} | cells | self._ratios(row, cells)

    def _ratios(self, row: EvaluationRow, cells: dict[str, Any]) -> dict[str, Any]:
        stored = self.store.find(KIND, model=LLAMA, path=HFLM)
        if row.path == HFLM or stored is None:
            return {}
        first_s, load_s, again_s = (float(stored[name]) for name in ("first_s", "load_s", "again_s"))
        return {
            "speed_ratio": first_s / cells["first_s"],
            "total_speed_ratio": (load_s + first_s) / (cells["load_s"] + cells["first_s"]),
            "again_speed_ratio": again_s / cells["again_s"],
        }

    def draw(self) -> list[Path]:
        return []


def _check(config: EvaluationSpeedConfig) -> None:
    check_several("models", config.models)
    check_choice("task", config.task, TASKS)
    check_choice("device", config.device, ("auto", "cuda", "cpu"))
    check_choice("dtype", config.dtype, ("auto", "bfloat16", "float32"))
    sizes = {f"llama.{name}": value for name, value in vars(config.llama).items()}
    for key, value in sizes.items() | {name: getattr(config, name) for name in ("num_items", "batch_size")}.items():
        check_positive(key, value)
    width, heads = config.llama.hidden_size, config.llama.num_attention_heads
    if width % heads:
        raise ConfigError(f"llama.num_attention_heads: got {heads}, expected a divisor of hidden_size = {width}")
    if config.context < 2:
        raise ConfigError(f"context: got {config.context}, expected >= 2")
    if config.seed < 0:
        raise ConfigError(f"seed: got {config.seed}, expected >= 0")


def _tokenizer_digest(tokenizer: Any) -> str:
    """The SHA-256 of what a model's folder has of it."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return files_sha256(Path(folder))


def _records_digest(config: EvaluationSpeedConfig) -> str:
    """The SHA-256 of the task's local records; "hub" where they are not local."""
    if config.data_dir is None:
        return "hub"
    path = Path(config.data_dir) / f"{config.task}.jsonl"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"data_dir: {path} cannot be read: {error.strerror}") from error
