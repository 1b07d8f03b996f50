"""What the benchmark of first calls runs in a process of its own: calls an operator at each of some sizes, once.

python -m palimpsa.benchmark.first_calls.process RESULT reads `Calls` as JSON from stdin and writes cells to RESULT.
"""

# B batch, T time, H heads, K key dim, V value dim
from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from palimpsa.analysis.collect.benchmark_columns import NEED_FLA, PASSES
from palimpsa.benchmark.operators import REGISTRY, Operator, Shape

FORWARD, FORWARD_BACKWARD = PASSES


@dataclass(frozen=True)
class Calls:
    """One row's calls.

    operator: of `REGISTRY`. passes: one of `PASSES`. dtype: of q, k, v and beta. shapes: of the calls, in their order.
    """

    operator: str
    passes: str
    dtype: str
    seed: int
    shapes: list[Shape]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Calls:
        fields = json.loads(text)
        return cls(**fields | {"shapes": [Shape(**shape) for shape in fields["shapes"]]})


def measure_calls(calls: Calls, operator: Operator, device: str, compiled: Counter[str]) -> dict[str, Any]:
    """Calls `operator` once at each shape.

    Args:
        device: "cuda", or "cpu", where nothing is compiled.
        compiled: counts what is compiled of each kernel while the operator is called.

    Returns:
        the cells of a row, without its key.
    """
    generator = torch.Generator(device).manual_seed(calls.seed)
    seconds, compiled_first = [], 0
    for shape in calls.shapes:
        x = operator.inputs(shape, getattr(torch, calls.dtype), generator)
        _synchronize(device)
        started = time.perf_counter()
        with torch.set_grad_enabled(calls.passes == FORWARD_BACKWARD):
            o = operator.forward(x)
        if calls.passes == FORWARD_BACKWARD:
            o.sum().backward()
        _synchronize(device)
        seconds.append(time.perf_counter() - started)
        if len(seconds) == 1:
            compiled_first = compiled.total()
    return {
        "num_calls": len(seconds),
        "first_s": seconds[0],
        "largest_later_s": max(seconds[1:], default=0.0),
        "total_s": sum(seconds),
        "num_compiled": compiled.total(),
        "num_compiled_later": compiled.total() - compiled_first,
        "most_variants": max(compiled.values(), default=0),
        "variants": ", ".join(f"{name} {count}" for name, count in sorted(compiled.items())),
    }


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def count_compilations() -> Counter[str]:
    """Counts, from now on, what Triton compiles of each kernel in this process."""
    from triton import knobs

    counts: Counter[str] = Counter()

    def count(*, fn: Any, **_: Any) -> None:
        counts[fn.name.rpartition(".")[2]] += 1

    knobs.runtime.jit_post_compile_hook = count
    return counts


def main() -> None:
    """Raises whatever the operator does; its last line is what the benchmark tells."""
    calls = Calls.from_json(sys.stdin.read())
    # A process's own start: the device's, and slow imports.
    torch.ones(1, device="cuda").item()
    if calls.operator in NEED_FLA:
        import_module("fla.ops")
    cells = measure_calls(calls, REGISTRY[calls.operator], "cuda", count_compilations())
    Path(sys.argv[1]).write_text(json.dumps(cells), encoding="utf-8")


if __name__ == "__main__":
    main()
