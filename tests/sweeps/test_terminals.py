"""A sweep from its command line to its figures, in a terminal that knows ASCII alone and from within a notebook."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **{"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "0"},
    **{"MPLBACKEND": "module://matplotlib_inline.backend_inline", "TERM": "dumb", "NO_COLOR": "1"},
}
LABEL = "GLA [ours]"


def test_a_sweep_ends_and_is_drawn_in_any_terminal(tmp_path, tiny_overrides):
    """All of it was trained, and then lost its table and figures to one character."""
    sweep = ["model=gla", f'model.label="{LABEL}"', "optimizer.lr=1e-3,1e-2", "seed=1,2"]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", f"results_dir={tmp_path}"]
    out = run("train.py", "-m", *tiny_overrides, *sweep, *launcher)
    assert "[4/4] gla lr" in out
    assert LABEL in out
    assert "+-" in out
    run("collect_results.py", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "mqar"))
    out = run("plot_figures.py", "--results", str(tmp_path / "mqar"))
    assert LABEL in out
    assert str(tmp_path / "mqar" / "figure2_laptop.png") in out.splitlines()
    assert LABEL in (tmp_path / "mqar" / "table_laptop.md").read_text(encoding="utf-8").replace("\\", "")


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "scripts" / script), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode("ascii")
