"""Benchmarks of a few seconds on the CPU."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from palimpsa.benchmark.run import benchmark_main

STAGES = (
    "[{seq_len:8,num_pairs:2,max_steps:7,in_figure:false},{seq_len:16,num_pairs:4,max_steps:7},"
    "{seq_len:32,num_pairs:8,max_steps:7}]"
)
OVERRIDES = {
    **{"scale.d_model": 16, "scale.num_heads": 2, "scale.head_k_dim": 4},
    **{"scale.head_v_dim": 4, "task.vocab_size": 64, "task.tokens_per_step": 64, "task.num_validation": 8},
    **{"task.validation_every": 3, "task.stages": STAGES},
    **{"trainer.log_every": 2, "trainer.probe_every": 5, "trainer.checkpoint_every": 4},
}


@pytest.fixture(autouse=True)
def origin(monkeypatch) -> None:
    """Rows of a revision and command that do not depend on the tests' own."""
    monkeypatch.setenv("PALIMPSA_REVISION", "0" * 40)
    monkeypatch.setattr(sys, "argv", ["benchmark.py"])


@pytest.fixture
def no_figures(monkeypatch) -> None:
    """Drawing takes longest: left out where it is not what is tested."""
    for kind in ("cases.OperatorsBenchmark", "training_runs.TrainingBenchmark"):
        monkeypatch.setattr(f"palimpsa.benchmark.{kind}.draw", lambda self: [])


@pytest.fixture
def bench(tmp_path: Path, tiny_benchmark, monkeypatch):
    """Runs a tiny benchmark of operators into tmp_path: `bench("cases=[table]")`; returns its exit code."""
    # As long as it takes to see a missing term, and no longer.
    monkeypatch.setattr("palimpsa.benchmark.measure.CHECK_LENGTHS", (40, 21))
    return lambda *overrides: benchmark_main([*tiny_benchmark, f"results_dir={tmp_path}", *overrides])


@pytest.fixture
def tiny_training(tmp_path: Path) -> list[str]:
    """The command line of a benchmark of training, on models of a few numbers and lengths of a few tokens."""
    overrides = ",".join(f"{key}:{value}" for key, value in OVERRIDES.items())
    sizes = ["benchmark=training", "scale=laptop", "trainer=cpu", f"overrides={{{overrides}}}"]
    return [*sizes, f"results_dir={tmp_path}"]


@pytest.fixture
def bench_training(tiny_training):
    """Runs a tiny benchmark of training into tmp_path: `bench_training("models=[gla]")`; returns its exit code."""
    return lambda *overrides: benchmark_main([*tiny_training, *overrides])


@pytest.fixture
def tiny_run(tiny_training):
    """One run of the tiny benchmark of training: `tiny_run("models=[gla]", "lengths=[16]")`."""

    def plan(*overrides: str):
        from palimpsa.benchmark.config import load
        from palimpsa.benchmark.training_config import plan_runs

        (run,) = plan_runs(load([*tiny_training, *overrides]))
        return run

    return plan


@pytest.fixture
def runs_asked_for(monkeypatch) -> list[str]:
    """Training runs are not run: a step takes as many ms as it has tokens. Holds the runs that were asked for."""
    asked = []

    def measure(run, on_step):
        asked.append(str(run))
        return {"ms_per_step": float(run.seq_len), "steps_per_s": 1e3 / run.seq_len, "tokens_per_step": 64}

    monkeypatch.setattr("palimpsa.benchmark.training_runs.measure_in_own_process", measure)
    return asked


@pytest.fixture
def read_rows(tmp_path: Path):
    """The rows of a file of tmp_path: `read_rows("operators")`; none where there is no file."""

    def read(kind: str) -> list[dict[str, str]]:
        path = tmp_path / f"{kind}_cpu.csv"
        if not path.exists():
            return []
        with path.open(newline="") as file:
            return list(csv.DictReader(file))

    return read
