"""The operators' benchmark: its cases, and how each row of the CSV files comes about."""

# B batch, T time, H heads, K key dim, V value dim
from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from palimpsa.analysis.collect.benchmark_columns import BASELINE, NEED_CUDA
from palimpsa.benchmark import measure
from palimpsa.benchmark.base import Benchmark, RowFailedError, WrongResultError
from palimpsa.benchmark.operators import REGISTRY, Operator, Shape
from palimpsa.benchmark.schema import OperatorsConfig
from palimpsa.benchmark.store import OPERATOR_TABLES

COPY = Shape("copy", 1, 1, 1, 1, 1)


@dataclass(frozen=True)
class OperatorRow:
    """One row to be: the kind of its file, and its case, operator and sizes."""

    kind: str
    case: str
    operator: str
    shape: Shape

    def __str__(self) -> str:
        return self.case if self.case == "copy" else f"{self.case} {self.operator} ({self.shape})"


def operator_rows(config: OperatorsConfig) -> list[OperatorRow]:
    """Everything that a config asks for, the copy first: later rows state a share of its bandwidth."""
    sizes, against = config.preset, config.preset.against_length
    lengths = config.lengths or []
    shapes = [
        Shape("against_length", against.tokens_per_call // T, T, against.H, against.K, against.V) for T in lengths
    ]
    step = Shape("against_length", against.decode_batch, 1, against.H, against.K, against.V)
    table = [Shape(**asdict(shape)) for shape in sizes.table]
    planned = {
        "table": [("operators", "table", shape) for shape in table],
        "decode": [("operators", "decode", Shape(**asdict(sizes.decode)))],
        "lengths": [("operators", "lengths", shape) for shape in shapes],
        "throughput": [*(("throughput", "prefill", shape) for shape in shapes), ("throughput", "decode", step)],
    }
    found = [OperatorRow("operators", "copy", "copy", COPY)]
    for case, rows in planned.items():
        names = config.operators_of(case) if case in config.cases else []
        for kind, column, shape in rows:
            found += [OperatorRow(kind, column, name, REGISTRY[name].shape(shape)) for name in names]
    return found


class OperatorsBenchmark(Benchmark[OperatorRow]):
    """The operators on one device, each checked against float64 before it is timed.

    Args:
        config: from `config.load`.
    """

    tables = OPERATOR_TABLES
    packages = ("python", "torch", "triton", "flash-linear-attention")
    summary_formats: ClassVar = {
        "forward_ms": "forward {:.4g} ms",
        "forward_backward_ms": "with backward {:.4g} ms",
        "forward_device_ms": "of the GPU alone {:.4g} ms",
        "forward_backward_device_ms": "with backward {:.4g} ms",
        "peak_memory_mib": "{:.4g} MiB",
        "forward_ps_per_element": "{:.3g} ps/el",
        "forward_backward_ps_per_element": "with backward {:.3g} ps/el",
        "bandwidth_gb_s": "{:.4g} GB/s",
        "bandwidth_share": "{:.0%} of a copy",
        "ms": "{:.4g} ms",
        "thousand_tokens_per_s": "{:.5g} thousand tokens/s",
        "slowdown": "{:.3g}x simple GLA's time",
        "error_forward": "error {:.1e}",
        "error_backward": "of gradients {:.1e}",
    }

    def __init__(self, config: OperatorsConfig) -> None:
        self.config = config
        self.dtype: torch.dtype = getattr(torch, config.preset.dtype)
        self.clock = measure.Clock(config.device, config.warmup_ms, config.repeat_ms)
        self._checked: dict[tuple[Any, ...], measure.Errors] = {}
        against = config.preset.against_length
        sizes = f"{config.sizes}: {against.tokens_per_call} tokens a call, H {against.H}, K {against.K}, V {against.V}"
        super().__init__(
            operator_rows(config),
            accelerator="cpu" if config.device == "cpu" else "gpu",
            settings={
                "sizes": f"{sizes}, {config.preset.dtype}",
                "warmup_ms": config.warmup_ms,
                "repeat_ms": config.repeat_ms,
            },
            results_dir=config.results_dir,
            fresh=config.fresh,
        )

    def headlines(self) -> list[str]:
        config, origin = self.config, self.store.origin
        lines = [f"benchmark: {origin['device']}, sizes {config.sizes}, {config.preset.dtype}; {origin['versions']}"]
        if config.left_out:
            lines.append(f"left out: {', '.join(config.left_out)} (flash-linear-attention's need an NVIDIA GPU)")
        return lines

    def address(self, row: OperatorRow) -> tuple[str, dict[str, Any]]:
        sizes = asdict(row.shape)
        name = sizes.pop("name")
        if row.case == "copy":
            key = {"case": "copy", "shape": f"{self.config.preset.copy_mib} MiB", "operator": "copy"}
            return row.kind, key | sizes | {"dtype": "uint8"}
        key = {"case": row.case, "shape": name, "operator": row.operator}
        return row.kind, key | sizes | {"dtype": self.config.preset.dtype}

    def measure(self, row: OperatorRow, on_step: Callable[[int], None]) -> dict[str, Any]:
        """Checks the row's operator and times it. See `Benchmark.measure`."""
        measure_by_case: dict[tuple[str, str], Callable[[OperatorRow], dict[str, Any]]] = {
            ("operators", "copy"): self._measure_copy,
            ("operators", "table"): self._measure_training_call,
            ("operators", "lengths"): self._measure_training_call,
            ("operators", "decode"): self._measure_step,
            ("throughput", "prefill"): self._measure_prefill,
            ("throughput", "decode"): self._measure_decoding,
        }
        if self.config.device == "cuda":
            # What the row before took is the device's again: also what a failed call held until now.
            torch.cuda.empty_cache()
        try:
            return measure_by_case[row.kind, row.case](row)
        except WrongResultError as error:
            # An operator of others is left without a row; a wrong one of ours is worth nobody's time.
            if row.operator not in NEED_CUDA:
                raise
            raise RowFailedError(str(error)) from error
        except Exception as error:
            # Out of memory, or a kernel that refuses this device: the others are still worth their rows.
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
            raise RowFailedError(f"{row}: {type(error).__name__}: {reason}") from error

    def draw(self) -> list[Path]:
        from palimpsa.analysis.build import build_operator_benchmark

        return build_operator_benchmark(self.folder, self.device_slug)

    def _generator(self) -> torch.Generator:
        return torch.Generator(self.config.device).manual_seed(self.config.seed)

    def _tolerance(self, name: str) -> float:
        # torch's own attention is held to what ours is. Without metaplasticity a GPU runs the library's kernel.
        is_library = name in NEED_CUDA or (self.config.device == "cuda" and name == "palimpsa_without_metaplasticity")
        tolerance = self.config.baseline_tolerance if is_library else self.config.tolerance
        return getattr(tolerance, self.config.preset.dtype)

    def _error_cells(self, row: OperatorRow, check: Callable[..., measure.Errors]) -> dict[str, Any]:
        """The cells of the errors; each operator, K and V is checked once."""
        tolerance, shape = self._tolerance(row.operator), row.shape
        wanted = (check, row.operator, shape.K, shape.V)
        if wanted not in self._checked:
            operator = REGISTRY[row.operator]
            self._checked[wanted] = check(operator, shape.K, shape.V, self.dtype, self._generator())
        errors = self._checked[wanted]
        errors.check(str(row), tolerance)
        return {"error_forward": errors.forward, "error_backward": errors.backward, "tolerance": tolerance}

    def _measure_copy(self, row: OperatorRow) -> dict[str, Any]:
        num_bytes = self.config.preset.copy_mib * 2**20
        ms, gb_s = self.clock.copy_gb_s(num_bytes)
        return {"forward_ms": ms, "bytes_moved": 2 * num_bytes, "bandwidth_gb_s": gb_s, "bandwidth_share": 1.0}

    def _measure_training_call(self, row: OperatorRow) -> dict[str, Any]:
        operator, shape = REGISTRY[row.operator], row.shape
        generator = self._generator()
        x = operator.inputs(shape, self.dtype, generator)
        # Kernels that tune themselves do so at their first call: at the size that is timed, not at that of the check.
        operator.forward(x).sum().backward()
        cells = self._error_cells(row, measure.check_operator)
        measure.check_batch(operator, x).check(f"{row}, half of the batch alone", self._tolerance(row.operator))
        with torch.no_grad():
            forward = self.clock.median_ms(lambda: operator.forward(x))
            forward_alone = self.clock.device_ms(lambda: operator.forward(x))
            output_gradient = torch.randn_like(operator.forward(x))

        def training_call() -> None:
            measure.forward_backward(operator, x, output_gradient)

        both = self.clock.median_ms(training_call, x.values())
        cells |= {
            "forward_ms": forward,
            "forward_backward_ms": both,
            "forward_device_ms": forward_alone,
            "forward_backward_device_ms": self.clock.device_ms(training_call, x.values()),
            "peak_memory_mib": measure.peak_memory_mib(operator, x, output_gradient),
            "note": operator.note,
        }
        if row.case == "table":
            cells["forward_ps_per_element"] = forward * 1e9 / shape.num_elements
            cells["forward_backward_ps_per_element"] = both * 1e9 / shape.num_elements
            if operator.divides and self.config.device == "cuda":
                cells["limit_ps_per_element"], cells["note"] = measure.device_limit()
        return cells

    def _decode_call(self, operator: Operator, shape: Shape, num_steps: int) -> Callable[[], None]:
        """A call that decodes `num_steps` tokens, from one state on."""
        x = operator.inputs(
            Shape(shape.name, shape.B, num_steps, shape.H, shape.K, shape.V), self.dtype, self._generator()
        )
        tokens = [operator.token(x, t) for t in range(num_steps)]
        state = operator.start(x)

        def call() -> None:
            nonlocal state
            for token in tokens:
                _, state = operator.step(token, state)

        return call

    @torch.no_grad()
    def _measure_step(self, row: OperatorRow) -> dict[str, Any]:
        operator, shape = REGISTRY[row.operator], row.shape
        cells = self._error_cells(row, measure.check_decode)
        call = self._decode_call(operator, shape, 1)
        ms = self.clock.median_ms(call)
        alone = self.clock.device_ms(call)
        # Float32, read and written.
        moved = 2 * 4 * operator.state_size(shape)
        gb_s = moved / (ms if alone is None else alone) / 1e6
        copy = self.store.find("operators", case="copy")
        share = None if copy is None else gb_s / float(copy["bandwidth_gb_s"])
        cells |= {"forward_ms": ms, "forward_device_ms": alone, "bytes_moved": moved}
        cells |= {"bandwidth_gb_s": gb_s, "bandwidth_share": share}
        return cells | {"note": "one token; bytes are the state's, read and written"}

    @torch.no_grad()
    def _measure_prefill(self, row: OperatorRow) -> dict[str, Any]:
        operator = REGISTRY[row.operator]
        cells = self._error_cells(row, measure.check_prefill)
        x = operator.inputs(row.shape, self.dtype, self._generator())
        ms = self.clock.median_ms(lambda: operator.prefill(x))
        return cells | self._throughput_cells(row, ms, row.shape.B * row.shape.T)

    @torch.no_grad()
    def _measure_decoding(self, row: OperatorRow) -> dict[str, Any]:
        cells = self._error_cells(row, measure.check_decode)
        num_steps = self.config.preset.against_length.decode_steps
        ms = self.clock.median_ms(self._decode_call(REGISTRY[row.operator], row.shape, num_steps)) / num_steps
        cells |= self._throughput_cells(row, ms, row.shape.B)
        return cells | {"note": f"mean of {num_steps} steps in a row; a step costs the same after any length"}

    def _throughput_cells(self, row: OperatorRow, ms: float, num_tokens: int) -> dict[str, Any]:
        thousands = num_tokens / ms
        baseline = self.store.find("throughput", case=row.case, operator=BASELINE, T=row.shape.T)
        slowdown = 1.0 if row.operator == BASELINE else None
        if baseline is not None:
            slowdown = float(baseline["thousand_tokens_per_s"]) / thousands
        return {"ms": ms, "thousand_tokens_per_s": thousands, "slowdown": slowdown}
