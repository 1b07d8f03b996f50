"""The figure of the training benchmark, from its CSV file alone."""

import csv
import importlib.util
import sys
from pathlib import Path

import pytest

from palimpsa.analysis.build import build_benchmarks, build_training_benchmark
from palimpsa.analysis.collect.benchmark_columns import TRAINING_COLUMNS, TRAINING_SHARED
from palimpsa.analysis.draw.training_speed import training_speed
from palimpsa.config.compose import CONFIG_DIR
from palimpsa.runs.schema import ResultError

ROOT = CONFIG_DIR.parent
COMMITTED = sorted((ROOT / "results/training").glob("steps_nvidia-*.csv"))


def write(folder: Path, busy: bool, slug: str = "nvidia-h200") -> None:
    shared = dict.fromkeys(TRAINING_SHARED, "1") | {"device": "NVIDIA H200", "scale": "h200", "precision": "bf16-mixed"}
    shared |= {"num_steps": 500, "tokens_per_step": 65536, "date": "2026-11-26T00:00:00+00:00", "command": "bench"}
    with (folder / f"steps_{slug}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, TRAINING_COLUMNS["steps"], restval="", lineterminator="\n")
        writer.writeheader()
        for place, model in enumerate(("palimpsa_d", "gla")):
            for length in (128, 256):
                cells = {"model": model, "label": model.upper(), "seq_len": length, "ms_per_step": 4.0 + place}
                writer.writerow(shared | cells | ({"busy_share": 0.9} if busy else {}))


def drawn_figure(folder: Path):
    import pandas as pd

    return training_speed(pd.read_csv(folder / "steps_nvidia-h200.csv"))


def test_the_figure_has_a_line_a_model_and_the_busy_share_where_it_was_measured(tmp_path):
    write(tmp_path, busy=True)
    times, share = drawn_figure(tmp_path).axes
    assert [line.get_label() for line in times.lines] == ["palimpsa_d", "gla"]
    assert [list(line.get_xdata()) for line in times.lines] == [[128, 256]] * 2
    assert [list(line.get_ydata()) for line in times.lines] == [[4, 4], [5, 5]]
    assert [list(line.get_ydata()) for line in share.lines] == [[0.9, 0.9]] * 2
    assert "NVIDIA H200 · bf16-mixed · 2026-11-26" in drawn_figure(tmp_path).get_suptitle()
    write(tmp_path, busy=False)
    assert len(drawn_figure(tmp_path).axes) == 1


def test_a_damaged_file_is_one_error_that_names_it(tmp_path):
    write(tmp_path, busy=False)
    path = tmp_path / "steps_nvidia-h200.csv"
    for damaged in (path.read_text().replace("seq_len", "length"), path.read_text().replace(",4.0,", ",fast,")):
        path.write_text(damaged)
        with pytest.raises(ResultError, match=r"steps_nvidia-h200\.csv"):
            build_training_benchmark(tmp_path, "nvidia-h200")
        write(tmp_path, busy=False)
    path.write_text(",".join(TRAINING_COLUMNS["steps"]) + "\n")
    with pytest.raises(ResultError, match="holds no row"):
        build_training_benchmark(tmp_path, "nvidia-h200")
    with pytest.raises(ResultError, match="operators_"):
        build_benchmarks(tmp_path / "empty")


def test_the_script_draws_the_figures_again(tmp_path, monkeypatch, capsys):
    write(tmp_path, busy=True)
    spec = importlib.util.spec_from_file_location("plot_benchmark", ROOT / "scripts/plot_benchmark.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(sys, "argv", ["plot_benchmark.py", "--results", str(tmp_path)])
    drawn = {path: path.read_bytes() for path in build_training_benchmark(tmp_path, "nvidia-h200")}
    for path in drawn:
        path.unlink()
    assert script.main() == 0
    assert capsys.readouterr().out.splitlines() == [str(path) for path in drawn]
    assert {path: path.read_bytes() for path in drawn} == drawn


def test_committed_figures_follow_from_the_committed_csv(tmp_path, png_only):
    assert COMMITTED
    for path in COMMITTED:
        (tmp_path / path.name).write_bytes(path.read_bytes())
        (figure,) = build_training_benchmark(tmp_path, path.stem.partition("_")[2])
        assert figure.read_bytes() == (path.parent / figure.name).read_bytes(), figure.name


# Models that came after a card was last measured.
NOT_MEASURED = {"steps_nvidia-h100-80gb-hbm3": {"palimpsa_d_scalar", "palimpsa_m_scalar"}}


def test_committed_rows_are_of_every_model_at_every_length_of_the_figure():
    for path in COMMITTED:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        models = {config.stem for config in (CONFIG_DIR / "model").glob("*.yaml")} - NOT_MEASURED.get(path.stem, set())
        expected = {(model, length) for model in models for length in ("128", "256", "512", "1024")}
        assert {(row["model"], row["seq_len"]) for row in rows} == expected
        assert {row["tokens_per_step"] for row in rows} == {"65536"}
