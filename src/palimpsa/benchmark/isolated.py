"""What is measured in a process of its own: its memory, its kernels and its failure are nobody else's.

What a GPU's profiler leaves behind would also slow the training run that comes next.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any, Protocol

from palimpsa.benchmark.base import RowFailedError
from palimpsa.config.process import prepare_process
from palimpsa.runs.progress import JobProgress

REFRESH_S = 0.5
# flash-linear-attention, which starts CUDA when it is imported where there is a GPU.
PRELOADED_ON_CPU = ("fla.ops",)
# How long a process that has sent its result may take to end.
PATIENCE_S = 30.0


class MeasuredRun(Protocol):
    """A run that times itself; `str` names it. It is pickled on its way."""

    @property
    def on_cpu(self) -> bool:
        """Whether it trains on the CPU."""
        ...

    @property
    def num_steps(self) -> int:
        """The optimiser steps that it tells of."""
        ...

    def measure(self, folder: Path, progress: JobProgress) -> dict[str, Any]:
        """Trains in a directory that is its own, tells of its steps, and returns the cells of its row."""
        ...


def measure_in_own_process(run: MeasuredRun, on_step: Callable[[int], None]) -> dict[str, Any]:
    """Measures a run.

    Args:
        run: which.
        on_step: told, now and then, of the optimiser steps done.

    Returns:
        the cells that `run.measure` returns.

    Raises:
        RowFailedError: the run failed, or its process ended.
    """
    _start_forkserver(on_cpu=run.on_cpu)
    context = multiprocessing.get_context("forkserver")
    with tempfile.TemporaryDirectory(prefix="palimpsa-benchmark-") as name:
        folder = Path(name)
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_measure_and_send, args=(run, folder, sender))
        process.start()
        # Now the process has the only end to write to: the pipe closes when it ends.
        sender.close()
        try:
            while not receiver.poll(REFRESH_S):
                on_step(_num_steps_done(folder))
            status, result = receiver.recv()
            process.join(PATIENCE_S)
        except EOFError:
            process.join()
            reason = f"its process ended with exit code {process.exitcode}{_last_line(folder)}"
            raise RowFailedError(f"{run}: {reason}") from None
        finally:
            process.kill()
            process.join()
            receiver.close()
    if status == "failed":
        raise RowFailedError(f"{run}: {result}")
    return result


def measure_with_empty_caches(row: Any, module: str, request: str) -> dict[str, Any]:
    """The cells that `python -m MODULE RESULT` writes to the file RESULT as JSON, where `request` is its stdin.

    Args:
        row: names it in an error.

    Raises:
        RowFailedError: it failed, with the last line that it wrote to stderr.
    """
    with tempfile.TemporaryDirectory(prefix="palimpsa-benchmark-") as folder:
        environment = os.environ | {"TRITON_CACHE_DIR": f"{folder}/triton", "TORCHINDUCTOR_CACHE_DIR": folder}
        # The result apart from what a package prints.
        result = Path(folder) / "result.json"
        command = [sys.executable, "-m", module, str(result)]
        done = subprocess.run(
            command, env=environment, input=request, capture_output=True, encoding="utf-8", errors="replace"
        )
        if done.returncode != 0:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            raise RowFailedError(f"{row}: {lines[-1] if lines else f'exit code {done.returncode}'}")
        return json.loads(result.read_text(encoding="utf-8"))


def _start_forkserver(*, on_cpu: bool) -> None:
    """Starts the process that runs are forked from, unless it runs: imports take seconds, and are done there once.

    It must not start CUDA, which no fork survives.
    """
    forkserver.set_forkserver_preload(["palimpsa.benchmark.steps", *(PRELOADED_ON_CPU if on_cpu else ())])
    # A look for GPUs that asks CUDA itself would start it.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    # On a CPU flash-linear-attention's reference code is what is meant to run.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:Triton is not supported")
    # Interrupts are for this process alone, which ends the others.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, handler)


def _measure_and_send(run: MeasuredRun, folder: Path, sender: connection.Connection) -> None:
    """What the process does: measures, and sends ("measured", cells) or ("failed", why)."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # So that runs after the first need not time the variants of each kernel again.
    os.environ.setdefault("TRITON_CACHE_AUTOTUNING", "1")
    with (folder / "log").open("w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    prepare_process()
    try:
        progress = JobProgress(str(folder), str(run), run.num_steps)
        sender.send(("measured", run.measure(folder / "run", progress)))
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        sender.send(("failed", f"{type(error).__name__}: {reason}"))


def _end_with_parent() -> None:
    """Waits until the benchmark is gone, however it ended, and then ends this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _num_steps_done(folder: Path) -> int:
    for file in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            return int(json.loads(file.read_text(encoding="utf-8"))["step"])
    return 0


def _last_line(folder: Path) -> str:
    """The last line that the process printed, in brackets; nothing where it printed none."""
    text = (folder / "log").read_text(encoding="utf-8", errors="replace") if (folder / "log").exists() else ""
    printed = [line.strip() for line in text.split("\n") if line.strip()]
    return f" ({printed[-1]})" if printed else ""
