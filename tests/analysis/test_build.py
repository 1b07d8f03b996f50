"""What a folder of results becomes: figures and tables of every task and scale, and notes of what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from palimpsa.analysis.build import build_runs
from palimpsa.analysis.collect.result_files import collect, write_collected

REPOSITORY = Path(__file__).parents[2]


def test_script_without_torch_gives_the_same_bytes(example_results, tmp_path, png_only):
    results = Path(shutil.copytree(example_results, tmp_path / "mqar"))
    script = str(REPOSITORY / "scripts" / "plot_figures.py")
    blocked = ("torch", "triton", "hydra", "omegaconf", "lightning", "wandb")
    code = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({blocked!r}))\n"
        f"sys.argv = [{script!r}, '--results', 'mqar']\n"
        f"runpy.run_path({script!r}, run_name='__main__')\n"
    )
    first = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src")},
        capture_output=True,
        text=True,
    )
    assert first.returncode == 0, first.stderr
    names = ["figure2_laptop", "sensitivity_laptop", "figure3_laptop", "figure3_heads_laptop"]
    files = [f"mqar/{name}.{suffix}" for name in names for suffix in ("png", "svg")]
    files.append("mqar/table_laptop.md")
    assert first.stdout.splitlines()[-9:] == files
    assert "Palimpsa-D" in first.stdout
    drawn = {name: (tmp_path / name).read_bytes() for name in files}
    assert drawn["mqar/figure2_laptop.png"].startswith(b"\x89PNG")
    assert all(len(content) > 500 for content in drawn.values())
    # In this process, after other figures, into files that exist.
    (report,) = build_runs(results)
    again = {f"mqar/{path.name}": path.read_bytes() for path in report.paths}
    assert again == {name: content for name, content in drawn.items() if not name.endswith(".svg")}
    assert {path.name for path in results.iterdir()} == {
        *(Path(name).name for name in files),
        *("curves.csv", "provenance.json", "runs.csv"),
    }


def test_every_task_and_scale_has_files_of_its_own(add_run, run_script, tmp_path, png_only):
    add_run(steps=None)
    add_run(scale="h200", steps=None)
    add_run(scale="h200", lr=0.01, steps=None)
    add_run(task="mqar_scratch", lengths=[32], validation=[0.5], steps=100)
    out = tmp_path / "mqar"
    write_collected(collect([tmp_path / "runs"], out), out)
    code, printed, err = run_script("plot_figures.py", "--results", "mqar", "--scale", "h200")
    assert (code, err) == (0, "")
    assert "demonstrates" not in printed
    assert "note: mqar_curriculum/h200: curves.csv holds no curve" in printed
    assert {path.name for path in out.glob("*.png")} == {
        "figure2_h200.png",
        "figure2_laptop.png",
        "figure2_scratch_laptop.png",
        # Of models with several rates alone.
        "sensitivity_h200.png",
        "figure3_scratch_laptop.png",
        "figure3_heads_scratch_laptop.png",
    }
    assert {path.name for path in out.glob("*.md")} == {
        "table_h200.md",
        "table_laptop.md",
        "table_scratch_laptop.md",
    }


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("no-folder", "runs.csv: cannot be read as a CSV file"),
        ("no-curves", "curves.csv: cannot be read as a CSV file"),
        ("bad-column", "runs.csv: column lr is missing"),
        ("no-rows", "runs.csv: holds no runs"),
        ("unwritable", "Is a directory"),
        ("scale", "no runs of scale paper: mqar/runs.csv holds laptop"),
    ],
)
def test_script_errors_are_one_line(add_run, run_script, tmp_path, problem, message):
    out = tmp_path / "mqar"
    if problem != "no-folder":
        add_run(steps=50)
        write_collected(collect([tmp_path / "runs"], out), out)
    if problem == "no-curves":
        (out / "curves.csv").unlink()
    if problem == "bad-column":
        text = (out / "runs.csv").read_text()
        (out / "runs.csv").write_text(text.replace(",lr,", ",rate,", 1))
    if problem == "no-rows":
        (out / "runs.csv").write_text((out / "runs.csv").read_text().splitlines()[0] + "\n")
    if problem == "unwritable":
        # A folder where a file should be: refused to every user, root too.
        (out / "figure2_laptop.png").mkdir()
    arguments = ["--scale", "paper"] if problem == "scale" else []
    code, _, err = run_script("plot_figures.py", "--results", "mqar", *arguments)
    assert code == 1
    assert message in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "beside-a-finished-model"])
def test_runs_that_failed_half_way_are_drawn_as_failed(add_run, tmp_path, png_only, others):
    add_run(model="gla", status="failed", validation=[0.9], lengths=[32], steps=100)
    add_run(model="gla", seed=2, status="failed", steps=100)
    for _ in range(others):
        add_run(model="mamba2", steps=100)
    out = tmp_path / "mqar"
    write_collected(collect([tmp_path / "runs"], out), out)
    (report,) = build_runs(out)
    gla = report.summary.loc[report.summary["model"] == "gla"]
    assert gla["num_seeds"].eq(0).all()
    assert gla["mean"].isna().all()
    assert (out / "table_laptop.md").exists()


def test_rates_that_are_not_compared_are_in_the_notes(add_run, tmp_path, png_only):
    for lr, seeds in ((5e-3, 3), (1e-2, 3), (4.64e-3, 1)):
        for seed in range(1, seeds + 1):
            add_run(lr=lr, seed=seed, steps=None)
    out = tmp_path / "mqar"
    write_collected(collect([tmp_path / "runs"], out), out)
    (report,) = build_runs(out)
    assert "Palimpsa-D: lr 0.00464 not compared (1 seed)" in report.notes


def test_a_chosen_rate_without_curves_is_in_the_notes(add_run, tmp_path, png_only):
    """Its curves were thinned away when another rate was the best, or its history.csv is missing."""
    add_run(steps=None, lr=2e-3)
    add_run(model="gla", steps=100)
    write_collected(collect([tmp_path / "runs"], tmp_path / "mqar"), tmp_path / "mqar")
    (report,) = build_runs(tmp_path / "mqar")
    assert report.notes == ["Palimpsa-D: curves.csv holds no curve at lr 0.002: not in Figure 3"]
