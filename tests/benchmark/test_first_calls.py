"""benchmark=first_call: its calls, what it counts, and what it says where it cannot run."""

import csv
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from palimpsa.analysis.collect.benchmark_columns import FIRST_CALL_COLUMNS
from palimpsa.benchmark import base
from palimpsa.benchmark.config import load
from palimpsa.benchmark.first_calls.process import Calls, measure_calls
from palimpsa.benchmark.first_calls.rows import KIND, FirstCallBenchmark, calls_of
from palimpsa.benchmark.operators import REGISTRY, Shape
from palimpsa.benchmark.run import benchmark_main
from palimpsa.config.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
MISTAKES = {
    "operators=[palimpas]": ("operators: got 'palimpas'", "did you mean 'palimpsa'"),
    "operators=[]": ("operators: got []",),
    "passes=[backward]": ("passes: got 'backward'", "forward, forward_backward"),
    "dtype=float16": ("dtype: got 'float16'",),
    "lengths=[]": ("lengths: got []",),
    "lengths=[0]": ("lengths: got 0, expected > 0",),
    "batches=[0]": ("batches: got 0, expected > 0",),
    "heads=[-1]": ("heads: got -1, expected > 0",),
    "K=0": ("K: got 0, expected > 0",),
    "seed=-1": ("seed: got -1",),
    "length=[8]": ("length: unknown key", "did you mean 'lengths'"),
}
# Counts what Triton compiles of two kernels for a GPU that is not there, one of them for a second dtype too.
COUNTS = """
import torch
from hopper import pretend
from palimpsa.benchmark.first_calls.process import count_compilations

modules = pretend()
counts = count_compilations()
for dtype in (torch.float32, torch.bfloat16, torch.float32):
    modules["cross_entropy"].row_results(torch.ones(2, 16, dtype=dtype), torch.zeros(2).long(), with_gradient=False)
modules["random_bits"].random_bits_kernel(1, torch.arange(2), 5)
print(dict(counts))
"""


@pytest.fixture
def pretend_there_is_a_gpu(monkeypatch):
    """Of an invented name; nothing can run on it."""
    provenance = base.provenance
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(base, "provenance", lambda accelerator: provenance("cpu") | {"device": "Some GPU"})


@pytest.mark.parametrize("command_line", MISTAKES)
def test_a_mistake_is_one_line_that_names_its_key(command_line):
    with pytest.raises(ConfigError) as caught:
        load(["benchmark=first_call", command_line])
    assert "\n" not in str(caught.value)
    for part in MISTAKES[command_line]:
        assert part in str(caught.value)


def test_without_a_gpu_it_says_that_it_needs_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark_main(["benchmark=first_call", f"results_dir={tmp_path}"]) == 2
    assert "finds no NVIDIA GPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_calls_are_every_length_then_other_batches_and_heads_at_the_first():
    config = load(["benchmark=first_call", "lengths=[64,7]", "batches=[1]", "heads=[2,1]", "B=8", "H=4"])
    assert [(shape.B, shape.T, shape.H) for shape in calls_of(config)] == [
        (8, 64, 4),
        (8, 7, 4),
        (1, 64, 4),
        (8, 64, 2),
        (8, 64, 1),
    ]


@pytest.mark.parametrize("passes", ["forward", "forward_backward"])
def test_each_shape_is_called_once_and_what_comes_later_is_told_apart(passes):
    shapes = [Shape("call", 1, T, 1, 4, 4) for T in (5, 3, 8)]
    calls = Calls("palimpsa", passes, "float32", 0, shapes)
    assert Calls.from_json(calls.to_json()) == calls
    compiled, seen = Counter(), []

    class Recorded(type(REGISTRY["palimpsa"])):
        def forward(self, x):
            seen.append((x["q"].shape[1], torch.is_grad_enabled()))
            compiled["read"] += 2 if len(seen) == 1 else 1
            compiled["write"] += len(seen) == 1
            return super().forward(x)

    cells = measure_calls(calls, Recorded("vector"), "cpu", compiled)
    assert seen == [(T, passes == "forward_backward") for T in (5, 3, 8)]
    assert (cells["num_calls"], cells["num_compiled"], cells["num_compiled_later"]) == (3, 5, 2)
    assert (cells["most_variants"], cells["variants"]) == (4, "read 4, write 1")
    assert 0 < cells["largest_later_s"] < cells["total_s"]
    assert cells["first_s"] + cells["largest_later_s"] <= cells["total_s"]


def test_what_triton_compiles_is_counted_by_kernel(tmp_path):
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests/kernels/gpu")])
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": paths}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", COUNTS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'_loss_kernel': 2, '_bits_kernel': 1}"


def test_rows_are_written_with_their_origin_and_not_measured_twice(
    tmp_path, pretend_there_is_a_gpu, monkeypatch, capsys
):
    asked = []

    def measure(self, row, on_step):
        asked.append(str(row))
        return {"first_s": 2.0, "total_s": 2.5, "num_compiled": 9, "most_variants": 2, "variants": "a 2, b 7"}

    monkeypatch.setattr(FirstCallBenchmark, "measure", measure)
    command = ["benchmark=first_call", f"results_dir={tmp_path}", "operators=[palimpsa]"]
    assert benchmark_main(command) == 0
    assert "first call 2 s, all 2.5 s, 9 kernels compiled" in capsys.readouterr().out
    with (tmp_path / "first_call_some-gpu.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == FIRST_CALL_COLUMNS["first_call"]
    assert [(row["operator"], row["passes"]) for row in rows] == [
        ("palimpsa", "forward"),
        ("palimpsa", "forward_backward"),
    ]
    assert rows[0]["variants"] == "a 2, b 7"
    assert rows[0]["sizes"].startswith("B 8, H 16, K 48, V 96, bfloat16; T [1024,")
    assert "triton" in rows[0]["versions"]
    assert benchmark_main(command) == 0
    assert len(asked) == 2
    # Of other sizes: never added to these.
    assert benchmark_main([*command, "lengths=[8]"]) == 2


def test_a_row_whose_process_fails_is_told_and_left_out(tmp_path, pretend_there_is_a_gpu, capsys):
    if torch.version.cuda is not None:
        pytest.skip("there may be a GPU to run on")
    command = ["benchmark=first_call", f"results_dir={tmp_path}", "operators=[palimpsa]", "passes=[forward]"]
    assert benchmark_main(command) == 1
    error = capsys.readouterr().err
    assert "1 of 1 rows failed" in error
    assert "palimpsa forward: " in error
    assert "CUDA" in error
    assert not (tmp_path / f"{KIND}_some-gpu.csv").exists()
