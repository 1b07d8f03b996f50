"""What one benchmark measures, in its order, and how each row of the CSV files comes about."""

# B batch, T time, H heads, K key dim, V value dim
from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from palimpsa.analysis.collect.benchmark_columns import BASELINE, NEED_CUDA
from palimpsa.benchmark import measure
from palimpsa.benchmark.operators import REGISTRY, Operator, Shape
from palimpsa.benchmark.schema import OperatorsConfig
from palimpsa.benchmark.store import Store

COPY = Shape("copy", 1, 1, 1, 1, 1)


@dataclass(frozen=True)
class Job:
    """One row to be: its file, and its case, operator and sizes."""

    kind: str
    case: str
    operator: str
    shape: Shape

    def __str__(self) -> str:
        return self.case if self.case == "copy" else f"{self.case} {self.operator} ({self.shape})"


def jobs(config: OperatorsConfig) -> list[Job]:
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
    found = [Job("operators", "copy", "copy", COPY)]
    for case, rows in planned.items():
        for kind, what, shape in rows if case in config.cases else []:
            found += [Job(kind, what, name, REGISTRY[name].shape(shape)) for name in config.operators_of(case)]
    return found


class Bench:
    """Measures jobs on one device.

    Args:
        config: from `config.load`.
        store: where rows of earlier jobs are found.
    """

    def __init__(self, config: OperatorsConfig, store: Store) -> None:
        self.config, self.store = config, store
        self.dtype: torch.dtype = getattr(torch, config.preset.dtype)
        self.clock = measure.Clock(config.device, config.warmup_ms, config.repeat_ms)
        self._checked: dict[tuple[Any, ...], measure.Errors] = {}

    def key(self, job: Job) -> dict[str, Any]:
        """The cells that tell the job's row from others."""
        sizes = asdict(job.shape)
        name = sizes.pop("name")
        if job.case == "copy":
            return {"case": "copy", "shape": f"{self.config.preset.copy_mib} MiB", "operator": "copy", **sizes} | {
                "dtype": "uint8"
            }
        return {"case": job.case, "shape": name, "operator": job.operator, **sizes, "dtype": self.config.preset.dtype}

    def row(self, job: Job) -> dict[str, Any]:
        """Checks a job's operator and measures it: the row without its origin.

        Raises:
            WrongResultError: the operator errs above its tolerance.
        """
        makers: dict[tuple[str, str], Callable[[Job], dict[str, Any]]] = {
            ("operators", "copy"): self._copy,
            ("operators", "table"): self._training,
            ("operators", "lengths"): self._training,
            ("operators", "decode"): self._decode,
            ("throughput", "prefill"): self._prefill,
            ("throughput", "decode"): self._decode_throughput,
        }
        return self.key(job) | makers[job.kind, job.case](job)

    def _generator(self) -> torch.Generator:
        return torch.Generator(self.config.device).manual_seed(self.config.seed)

    def _tolerance(self, name: str) -> float:
        # torch's own attention is held to what ours is. Without metaplasticity a GPU runs the library's kernel.
        is_library = name in NEED_CUDA or (self.config.device == "cuda" and name == "palimpsa_without_metaplasticity")
        tolerance = self.config.baseline_tolerance if is_library else self.config.tolerance
        return getattr(tolerance, self.config.preset.dtype)

    def _check(self, job: Job, check: Callable[..., measure.Errors]) -> dict[str, Any]:
        """The cells of the errors; each operator, K and V is checked once."""
        tolerance, shape = self._tolerance(job.operator), job.shape
        wanted = (check, job.operator, shape.K, shape.V)
        if wanted not in self._checked:
            operator = REGISTRY[job.operator]
            self._checked[wanted] = check(operator, shape.K, shape.V, self.dtype, self._generator())
        errors = self._checked[wanted]
        errors.check(str(job), tolerance)
        return {"error_forward": errors.forward, "error_backward": errors.backward, "tolerance": tolerance}

    def _copy(self, job: Job) -> dict[str, Any]:
        num_bytes = self.config.preset.copy_mib * 2**20
        ms, gb_s = self.clock.copy_gb_s(num_bytes)
        return {"forward_ms": ms, "bytes_moved": 2 * num_bytes, "bandwidth_gb_s": gb_s, "bandwidth_share": 1.0}

    def _training(self, job: Job) -> dict[str, Any]:
        operator, shape = REGISTRY[job.operator], job.shape
        generator = self._generator()
        x = operator.inputs(shape, self.dtype, generator)
        # Kernels that tune themselves do so at their first call: at the size that is timed, not at that of the check.
        operator.forward(x).sum().backward()
        cells = self._check(job, measure.check_operator)
        measure.check_batch(operator, x).check(f"{job}, half of the batch alone", self._tolerance(job.operator))
        with torch.no_grad():
            forward = self.clock.median_ms(lambda: operator.forward(x))
            output_gradient = torch.randn_like(operator.forward(x))
        both = self.clock.median_ms(lambda: measure.forward_backward(operator, x, output_gradient), x.values())
        cells |= {
            "forward_ms": forward,
            "forward_backward_ms": both,
            "peak_memory_mib": measure.peak_memory_mib(operator, x, output_gradient),
            "note": operator.note,
        }
        if job.case == "table":
            cells["forward_ps_per_element"] = forward * 1e9 / shape.num_elements
            cells["forward_backward_ps_per_element"] = both * 1e9 / shape.num_elements
            if operator.divides and self.config.device == "cuda":
                cells["limit_ps_per_element"], cells["note"] = measure.device_limit()
        return cells

    def _steps(self, operator: Operator, shape: Shape, num_steps: int) -> Callable[[], None]:
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
    def _decode(self, job: Job) -> dict[str, Any]:
        operator, shape = REGISTRY[job.operator], job.shape
        cells = self._check(job, measure.check_decode)
        ms = self.clock.median_ms(self._steps(operator, shape, 1))
        # Float32, read and written.
        moved = 2 * 4 * operator.num_states * shape.num_elements
        gb_s = moved / ms / 1e6
        copy = self.store.find("operators", case="copy")
        share = None if copy is None else gb_s / float(copy["bandwidth_gb_s"])
        cells |= {"forward_ms": ms, "bytes_moved": moved, "bandwidth_gb_s": gb_s, "bandwidth_share": share}
        return cells | {"note": "one token; bytes are the state's, read and written"}

    @torch.no_grad()
    def _prefill(self, job: Job) -> dict[str, Any]:
        operator = REGISTRY[job.operator]
        cells = self._check(job, measure.check_prefill)
        x = operator.inputs(job.shape, self.dtype, self._generator())
        ms = self.clock.median_ms(lambda: operator.prefill(x))
        return cells | self._throughput(job, ms, job.shape.B * job.shape.T)

    @torch.no_grad()
    def _decode_throughput(self, job: Job) -> dict[str, Any]:
        cells = self._check(job, measure.check_decode)
        num_steps = self.config.preset.against_length.decode_steps
        ms = self.clock.median_ms(self._steps(REGISTRY[job.operator], job.shape, num_steps)) / num_steps
        cells |= self._throughput(job, ms, job.shape.B)
        return cells | {"note": f"mean of {num_steps} steps in a row; a step costs the same after any length"}

    def _throughput(self, job: Job, ms: float, num_tokens: int) -> dict[str, Any]:
        thousands = num_tokens / ms
        baseline = self.store.find("throughput", case=job.case, operator=BASELINE, T=job.shape.T)
        slowdown = 1.0 if job.operator == BASELINE else None
        if baseline is not None:
            slowdown = float(baseline["thousand_tokens_per_s"]) / thousands
        return {"ms": ms, "thousand_tokens_per_s": thousands, "slowdown": slowdown}
