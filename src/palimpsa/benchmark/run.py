"""The command line of scripts/benchmark.py, and the operators' benchmark from its first row to its figures."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from palimpsa.analysis.collect.benchmark_columns import NEED_CUDA
from palimpsa.benchmark.config import load
from palimpsa.benchmark.schema import OperatorsConfig
from palimpsa.benchmark.store import OPERATOR_TABLES, Store, slug
from palimpsa.config.errors import ConfigError

PACKAGES = ("python", "torch", "triton", "flash-linear-attention")
USAGE = """usage: benchmark.py [KEY=VALUE ...], for instance

  benchmark.py                                          the operators, on the GPU if there is one
  benchmark.py cases=[table] operators=[palimpsa]       a part of them
  benchmark.py lengths=[512,1024] results_dir=/tmp/out  other lengths, another folder
  benchmark.py benchmark=training                       steps a second of training, each model and length
  benchmark.py benchmark=training models=[gla]          a part of them

The keys, with their defaults and units, are in configs/benchmark/operators.yaml and configs/benchmark/training.yaml."""


def benchmark_main(arguments: list[str]) -> int:
    """Runs the benchmark that a command line asks for and draws its figures.

    Returns:
        0; 1 where an operator is wrong or failed, or a training run did; 2 where the command line or the results
        folder is; 130 where it was interrupted. Rows that were measured stay.
    """
    if {"-h", "--help"} & set(arguments):
        print(USAGE)
        return 0
    try:
        flags = [word for word in arguments if word.startswith("-")]
        if flags:
            raise ConfigError(f"{flags[0]}: got an option, expected KEY=VALUE; -h shows examples")
        config = load(arguments)
        if isinstance(config, OperatorsConfig):
            return run(config)
        from palimpsa.benchmark.training import run_training

        return run_training(config)
    except ConfigError as error:
        _tell(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        _tell("interrupted; the same command goes on where it stopped")
        return 130


def run(config: OperatorsConfig) -> int:
    """Measures what a checked config asks for. Returns and raises as `benchmark_main`."""
    from palimpsa.benchmark.cases import Bench, jobs
    from palimpsa.benchmark.measure import WrongResultError

    origin = _origin(config)
    device_slug = "cpu" if config.device == "cpu" else slug(origin["device"])
    store = Store(OPERATOR_TABLES, Path(config.results_dir), device_slug, origin, fresh=config.fresh)
    console = Console(soft_wrap=True, markup=False, highlight=False)
    console.print(f"benchmark: {origin['device']}, sizes {config.sizes}, {config.preset.dtype}; {origin['versions']}")
    if config.left_out:
        console.print(f"left out: {', '.join(config.left_out)} (flash-linear-attention's need an NVIDIA GPU)")
    bench, failures = Bench(config, store), []
    planned = jobs(config)
    todo = [job for job in planned if store.find(job.kind, **bench.key(job)) is None]
    if len(todo) < len(planned):
        console.print(f"{len(planned) - len(todo)} of {len(planned)} rows are there already; fresh=true starts over")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=len(todo))
        for place, job in enumerate(todo, start=1):
            progress.update(bar, description=str(job))
            begun = time.perf_counter()
            try:
                row = bench.row(job)
            except WrongResultError as error:
                # An operator of others is left without a row; a wrong one of ours is worth nobody's time.
                if job.operator not in NEED_CUDA:
                    _tell(f"error: {error}")
                    return 1
                failures.append(str(error))
                console.print(f"[{place}/{len(todo)}] {failures[-1]}")
                continue
            except Exception as error:
                # Out of memory, or a kernel that refuses this device: the others are still worth their rows.
                failures.append(f"{job}: {type(error).__name__}: {_first_line(error)}")
                console.print(f"[{place}/{len(todo)}] {failures[-1]}")
                continue
            finally:
                progress.advance(bar)
                _free(config.device)
            store.append(job.kind, row | {"date": datetime.now(UTC).isoformat(timespec="seconds")})
            took = time.perf_counter() - begun
            console.print(f"[{place}/{len(todo)}] {job}: {_summary(row)}; took {took:.1f} s")
    for path in _draw(config, device_slug):
        console.print(str(path))
    if failures:
        _tell(f"error: {len(failures)} of {len(planned)} rows failed, and the same command tries them again:")
        for failure in failures:
            _tell(f"  {failure}")
        return 1
    return 0


def _origin(config: OperatorsConfig) -> dict[str, Any]:
    from palimpsa.runs.provenance import provenance

    found = provenance("cpu" if config.device == "cpu" else "gpu")
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in PACKAGES)
    against = config.preset.against_length
    sizes = f"{config.sizes}: {against.tokens_per_call} tokens a call, H {against.H}, K {against.K}, V {against.V}"
    return {name: found[name] for name in ("device", "git_revision", "git_dirty", "command")} | {
        "versions": versions,
        "sizes": f"{sizes}, {config.preset.dtype}",
        "warmup_ms": config.warmup_ms,
        "repeat_ms": config.repeat_ms,
    }


def _summary(row: dict[str, Any]) -> str:
    units = {
        "forward_ms": "forward {:.4g} ms",
        "forward_backward_ms": "with backward {:.4g} ms",
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
    return ", ".join(form.format(row[name]) for name, form in units.items() if row.get(name) is not None)


def _draw(config: OperatorsConfig, device_slug: str) -> list[Path]:
    from palimpsa.analysis.build import build_operator_benchmark

    return build_operator_benchmark(Path(config.results_dir), device_slug)


def _free(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")


def _tell(line: str) -> None:
    Console(stderr=True).print(line, style="red", markup=False, highlight=False, soft_wrap=True)
