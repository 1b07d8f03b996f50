"""The benchmark of training without its runs: rows that are added, tried again, shown and never mixed."""

import pytest

from palimpsa.benchmark import training_runs
from palimpsa.benchmark.base import RowFailedError


def test_a_failed_run_leaves_the_others_their_rows_and_is_tried_again(
    bench_training, tmp_path, read_rows, runs_asked_for, monkeypatch, capsys
):
    measure = training_runs.measure_in_own_process

    def fails_once(run, on_step):
        if run.model == "gla":
            raise RowFailedError(f"{run}: OutOfMemoryError: CUDA out of memory")
        return measure(run, on_step)

    monkeypatch.setattr(training_runs, "measure_in_own_process", fails_once)
    command = ("models=[gla,mamba2]", "lengths=[16,32]")
    assert bench_training(*command) == 1
    printed = capsys.readouterr()
    assert "2 of 4 rows failed" in printed.err
    assert printed.err.count("CUDA out of memory") == 2
    assert [row["model"] for row in read_rows("steps")] == ["mamba2", "mamba2"]
    assert (tmp_path / "steps_cpu.png").exists()
    monkeypatch.setattr(training_runs.TrainingBenchmark, "draw", lambda self: [])
    monkeypatch.setattr(training_runs, "measure_in_own_process", measure)
    assert bench_training(*command) == 0
    assert runs_asked_for == ["mamba2 L 16", "mamba2 L 32", "gla L 16", "gla L 32"]
    assert bench_training(*command) == 0
    assert len(runs_asked_for) == 4
    assert bench_training(*command, "fresh=true") == 0
    assert len(runs_asked_for) == 8


def test_the_results_are_shown_as_a_row_a_model_and_a_column_a_length(
    bench_training, runs_asked_for, no_figures, capsys
):
    assert bench_training("models=[mamba2,transformer]", "lengths=[16,32]") == 0
    printed = capsys.readouterr().out
    table = printed[printed.index("Training at scale laptop") :]
    header, *rows = [line for line in table.splitlines() if "┃" in line or "│" in line]
    assert header.split("┃")[2:4] == [f" {length:>14} " for length in ("L 16", "L 32")]
    assert [row.split("│")[2:4] for row in rows] == [[" 16 ms · 62.5/s ", " 32 ms · 31.2/s "]] * 2


@pytest.mark.parametrize(
    ("setting", "column"),
    [
        ("num_steps=24", "num_steps"),
        ("num_warmup_steps=2", "num_warmup_steps"),
        ("lr=1e-3", "lr"),
        ("seed=2", "seed"),
        ("+overrides.trainer.log_every=1", "overrides"),
    ],
)
def test_rows_of_other_settings_are_never_added_to(
    bench_training, tmp_path, read_rows, runs_asked_for, no_figures, capsys, setting, column
):
    assert bench_training("models=[gla]", "lengths=[16]") == 0
    before = (tmp_path / "steps_cpu.csv").read_bytes()
    capsys.readouterr()
    assert bench_training("models=[mamba2]", "lengths=[16]", setting) == 2
    error = capsys.readouterr().err
    assert f"{column} is" in error
    assert "fresh=true" in error
    assert error.count("\n") == 1
    assert (tmp_path / "steps_cpu.csv").read_bytes() == before
    assert bench_training("models=[mamba2]", "lengths=[16]", setting, "fresh=true") == 0
    assert [row["model"] for row in read_rows("steps")] == ["mamba2"]
