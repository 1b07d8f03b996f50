"""Benchmarks of a few seconds on the CPU."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from palimpsa.benchmark.run import benchmark_main


@pytest.fixture
def bench(tmp_path: Path, tiny_benchmark, monkeypatch):
    """Runs a tiny benchmark into tmp_path: `bench("cases=[table]")`; returns its exit code. Drawing takes longest, and
    is left out unless `figures`."""
    monkeypatch.setenv("PALIMPSA_REVISION", "0" * 40)
    monkeypatch.setattr(sys, "argv", ["benchmark.py"])
    # As long as it takes to see a missing term, and no longer.
    monkeypatch.setattr("palimpsa.benchmark.measure.CHECK_LENGTHS", (40, 21))

    def run(*overrides: str, figures: bool = False) -> int:
        if not figures:
            monkeypatch.setattr("palimpsa.benchmark.run._draw", lambda *_: [])
        return benchmark_main([*tiny_benchmark, f"results_dir={tmp_path}", *overrides])

    return run


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
