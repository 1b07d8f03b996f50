"""The benchmark of first calls: what compiling costs, and whether a new length, batch or number of heads does so too.

Each row is measured by `process`, in a process of its own whose caches are empty.
"""

# B batch, T time, H heads, K key dim, V value dim
from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from palimpsa.benchmark.base import Benchmark
from palimpsa.benchmark.first_calls.process import Calls
from palimpsa.benchmark.isolated import measure_with_empty_caches
from palimpsa.benchmark.operators import REGISTRY, Shape
from palimpsa.benchmark.schema import FirstCallConfig
from palimpsa.benchmark.store import FIRST_CALL_TABLES
from palimpsa.config.errors import ConfigError

KIND = "first_call"


@dataclass(frozen=True)
class FirstCallRow:
    """One row to be: an operator, and whether its backward is called too."""

    operator: str
    passes: str

    def __str__(self) -> str:
        return f"{self.operator} {self.passes}"


def calls_of(config: FirstCallConfig) -> list[Shape]:
    """Every length, then the batches and numbers of heads at the first one."""
    sizes = [(config.B, T, config.H) for T in config.lengths]
    sizes += [(B, config.lengths[0], config.H) for B in config.batches]
    sizes += [(config.B, config.lengths[0], H) for H in config.heads]
    return [Shape("call", B, T, H, config.K, config.V) for B, T, H in sizes]


class FirstCallBenchmark(Benchmark[FirstCallRow]):
    """Seconds of first calls and variants of kernels, of each operator, without and with its backward.

    Args:
        config: from `config.load`.

    Raises:
        ConfigError: there is no GPU; or see `Benchmark`.
    """

    tables = FIRST_CALL_TABLES
    packages = ("python", "torch", "triton", "flash-linear-attention")
    summary_formats: ClassVar = {
        "first_s": "first call {:.3g} s",
        "largest_later_s": "later ones {:.3g} s at most",
        "total_s": "all {:.3g} s",
        "num_compiled": "{} kernels compiled",
        "num_compiled_later": "{} of them after the first call",
        "most_variants": "{} variants of one at most",
    }

    def __init__(self, config: FirstCallConfig) -> None:
        if not torch.cuda.is_available():
            raise ConfigError(
                "benchmark: got first_call, expected operators or training, because PyTorch finds no NVIDIA GPU here "
                "to compile for"
            )
        self.config = config
        sizes = f"B {config.B}, H {config.H}, K {config.K}, V {config.V}, {config.dtype}"
        others = f"T {config.lengths}, then B {config.batches}, then H {config.heads}"
        super().__init__(
            [FirstCallRow(name, passes) for name in config.operators for passes in config.passes],
            accelerator="gpu",
            settings={"sizes": f"{sizes}; {others}"},
            results_dir=config.results_dir,
            fresh=config.fresh,
        )

    def headlines(self) -> list[str]:
        origin = self.store.origin
        return [f"benchmark: first calls, {origin['device']}; {origin['versions']}", origin["sizes"]]

    def address(self, row: FirstCallRow) -> tuple[str, dict[str, Any]]:
        return KIND, asdict(row)

    def measure(self, row: FirstCallRow, on_step: Callable[[int], None]) -> dict[str, Any]:
        """Measures a row in a process of its own. See `Benchmark.measure`."""
        config = self.config
        shapes = [REGISTRY[row.operator].shape(shape) for shape in calls_of(config)]
        calls = Calls(row.operator, row.passes, config.dtype, config.seed, shapes)
        return measure_with_empty_caches(row, "palimpsa.benchmark.first_calls.process", calls.to_json())

    def draw(self) -> list[Path]:
        return []
