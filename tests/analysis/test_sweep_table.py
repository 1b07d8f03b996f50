"""The table that ends a sweep over learning rates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from palimpsa.analysis.sweep_table import learning_rate_cells, print_learning_rates
from palimpsa.runs.read import read_run_dir, runs_frame


def printed(folders, capsys, width: int = 80) -> list[str]:
    capsys.readouterr()
    print_learning_rates(folders, console=Console(width=width))
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_one_model_over_two_rates(add_run, capsys):
    folders = [
        add_run(model="gla", lr=5e-3, validation=[0.9, 0.8], test=[0.91, 0.82], steps=None),
        add_run(model="gla", lr=1e-2, validation=[0.9, 0.6], test=[0.99, 0.99], steps=None),
    ]
    lines = printed(folders, capsys)
    assert lines[1:3] == [
        "Learning rates: MQAR (associative recall), curriculum protocol",
        "laptop scale: demonstrates the pipeline",
    ]
    assert [line.split() for line in lines[4:9] if "─" not in line] == [
        ["lr", "seeds", "valid.", "L", "32", "L", "64"],
        ["GLA"],
        # Validation accuracy decides, not the test accuracy.
        ["0.005", "best", "1/1", "85.0", "91.0", "82.0"],
        ["0.01", "1/1", "75.0", "99.0", "99.0"],
    ]
    assert lines[-1] == "best at the smallest rate tried, a smaller one may be better: GLA"


def test_means_failures_and_rates_that_are_not_compared(add_run):
    frames = []
    for lr, seeds in ((1e-3, 3), (2e-3, 3), (4e-3, 1)):
        for seed in range(1, seeds + 1):
            status = "failed" if (lr, seed) == (2e-3, 3) else "finished"
            add = {"validation": [0.9, 0.6], "test": [0.8 + 0.1 * (seed - 2), 0.5], "status": status}
            frames.append(read_run_dir(add_run(lr=lr, seed=seed, steps=None, **add)))
    frames.append(read_run_dir(add_run(model="gla", lr=1e-3, status="failed", validation=[], lengths=[], steps=None)))
    rows = runs_frame([row for frame in frames for row in frame.astype(object).to_dict("records")])
    assert learning_rate_cells(rows) == {
        "Palimpsa-D": [
            ["0.001 best", "3/3", "75.0", "80.0±10.0", "50.0±0.0"],
            ["0.002", "2/3", "50.0", "75.0±7.1", "50.0±0.0"],
            ["0.004", "1/1", "-", "70.0", "50.0"],
        ],
        "GLA": [["0.001", "0/1", "0.0", "-", "-"]],
    }


def test_what_is_missing_or_damaged_is_told(add_run, tmp_path, capsys):
    folders = [add_run(lr=lr, steps=None) for lr in (1e-3, 2e-3, 4e-3)]
    damaged = add_run(lr=8e-3, steps=None)
    (damaged / "result.json").write_text("{")
    (tmp_path / "started").mkdir()
    lines = printed([*folders, damaged, tmp_path / "started", tmp_path / "not-started"], capsys, width=300)
    assert "runs of this sweep without a result, not in the table: 2" in lines
    assert any(line.startswith(f"not in the table: {damaged / 'result.json'}: got ") for line in lines)
    assert sum(line.startswith("  0.00") for line in lines) == 3


def test_four_lengths_and_several_seeds_fit_into_80_columns(add_run, capsys):
    folders = [
        add_run(
            model="mamba2",
            lr=lr,
            seed=seed,
            scale="h200",
            lengths=[128, 256, 512, 1024],
            validation=[0.1 * seed, 0.99, 0.5, 1.0],
            steps=None,
        )
        for lr in (1e-3, 2.15e-3, 4.64e-3, 1e-2)
        for seed in (1, 9)
    ]
    lines = printed(folders, capsys)
    assert "50.0±56.6" in " ".join(lines)
    assert not any("…" in line for line in lines)
    assert max(len(line) for line in lines if not line.startswith("best at")) <= 80


def test_stages_of_one_length_are_told_apart(add_run, capsys):
    folders = []
    for lr in (1e-3, 1e-2):
        folder = add_run(lr=lr, lengths=[32, 64], steps=None)
        path = folder / "result.json"
        path.write_text(path.read_text().replace('"seq_len": 64', '"seq_len": 32'))
        folders.append(folder)
    (header,) = [line for line in printed(folders, capsys) if line.startswith("lr")]
    assert header.split("  ")[-2:] == ["L 32, 8 pairs", "L 32, 16 pairs"]


@pytest.mark.parametrize("rates", [(), (1e-3,)], ids=["no-result", "one-rate"])
def test_a_sweep_over_something_else_prints_nothing(add_run, tmp_path, capsys, rates):
    folders = [add_run(model=model, lr=lr, steps=None) for lr in rates for model in ("gla", "mamba2")]
    assert printed([*folders, tmp_path / "not-started"], capsys) == []


def test_tasks_have_tables_of_their_own(add_run, capsys):
    folders = [add_run(lr=lr, steps=None) for lr in (1e-3, 1e-2)]
    for lr in (1e-3, 1e-2):
        folders += [
            add_run(task="mqar_scratch", lr=lr, lengths=[length], validation=[0.5], plateau=[5], steps=None)
            for length in (32, 64)
        ]
    titles = [line for line in printed(folders, capsys) if line.startswith("Learning rates: ")]
    assert [title.rpartition(", ")[2] for title in titles] == ["curriculum protocol", "scratch protocol"]


def test_it_needs_neither_torch_nor_matplotlib(add_run):
    folders = [str(add_run(lr=lr, steps=None)) for lr in (1e-3, 1e-2)]
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'matplotlib', 'hydra', 'lightning', 'wandb')))\n"
        "from pathlib import Path\n"
        "from palimpsa.analysis.sweep_table import print_learning_rates\n"
        f"print_learning_rates(map(Path, {folders!r}))\n"
    )
    source = str(Path(__file__).parents[2] / "src")
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": source}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0.001 best" in done.stdout
