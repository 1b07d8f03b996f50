"""Runs in processes of their own, and the whole benchmark of training over them."""

import multiprocessing
import re

import pytest

from palimpsa.analysis.collect.benchmark_columns import TRAINING_COLUMNS
from palimpsa.benchmark import isolated
from palimpsa.benchmark.base import RowFailedError
from palimpsa.benchmark.config import load
from palimpsa.benchmark.isolated import measure_in_own_process
from palimpsa.benchmark.training_config import plan_runs


@pytest.fixture(autouse=True)
def only_torch_beforehand(monkeypatch):
    """flash-linear-attention takes ten seconds to import without a GPU, and no model here uses it."""
    monkeypatch.setattr(isolated, "PRELOADED_ON_CPU", ())


def test_a_benchmark_writes_a_row_a_run_with_its_origin_goes_on_and_draws(bench_training, tmp_path, read_rows, capsys):
    window = ("models=[mamba2]", "num_warmup_steps=1", "num_steps=12")
    assert bench_training("lengths=[16]", *window) == 0
    first = read_rows("steps")
    assert bench_training("lengths=[8,16]", *window) == 0
    printed = capsys.readouterr().out
    assert "1 of 2 rows are there already" in printed
    assert "12 measured" in printed
    rows = read_rows("steps")
    assert rows[:1] == first
    assert [(row["model"], row["seq_len"]) for row in rows] == [("mamba2", "16"), ("mamba2", "8")]
    for row in rows:
        assert list(row) == list(TRAINING_COLUMNS["steps"])
        assert float(row["steps_per_s"]) == pytest.approx(1e3 / float(row["ms_per_step"]), rel=1e-4)
        assert float(row["tokens_per_s"]) == pytest.approx(64 * float(row["steps_per_s"]), rel=1e-4)
        assert 0 < float(row["loop_ms_per_step"]) < float(row["ms_per_step"])
        assert float(row["first_step_s"]) > 0
        assert row["busy_share"] == row["peak_memory_mib"] == row["note"] == ""
        assert row["device"].endswith("threads a run: 1")
        assert (row["git_revision"], row["scale"], row["trainer"], row["lr"]) == ("0" * 40, "laptop", "cpu", "0.00464")
        assert "torch " in row["versions"]
        assert "lightning " in row["versions"]
        assert "scale.d_model=16" in row["overrides"]
        assert row["command"] == "benchmark.py"
        assert row["date"].endswith("+00:00")
    assert (rows[0]["num_warmup_steps"], rows[0]["num_steps"]) == ("1", "12")
    assert (tmp_path / "steps_cpu.png").exists()


def test_a_run_that_diverges_is_a_failed_row(bench_training, read_rows, capsys):
    assert bench_training("models=[mamba2]", "lengths=[16]", "lr=1e30") == 1
    assert re.search(r"mamba2 L 16: \w+Error: \S+", capsys.readouterr().err)
    assert not read_rows("steps")


def test_a_run_that_dies_is_a_failed_row_and_one_that_is_interrupted_ends(tiny_run):
    endless = tiny_run("models=[mamba2]", "lengths=[16]", "num_steps=1000000")

    def kill(step):
        (process,) = multiprocessing.active_children()
        process.kill()

    with pytest.raises(RowFailedError, match=r"mamba2 L 16: .* exit code -9"):
        measure_in_own_process(endless, kill)

    def interrupt(step):
        if step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_in_own_process(endless, interrupt)
    assert not multiprocessing.active_children()


@pytest.mark.gpu
def test_a_gpu_tells_its_busy_share_and_memory(tmp_path):
    # As it is shipped, compiled and replayed, and at laptop scale.
    sizes = ("scale=laptop", "trainer=gpu", "models=[transformer]", "lengths=[16]")
    (run,) = plan_runs(load(["benchmark=training", f"results_dir={tmp_path}", *sizes]))
    cells = measure_in_own_process(run, lambda step: None)
    assert "note" not in cells
    assert 0 < cells["busy_share"] < 1.2
    assert cells["peak_memory_mib"] > 0
    assert cells["loop_ms_per_step"] < cells["ms_per_step"]
