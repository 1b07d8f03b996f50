"""The committed figures and tables are what the committed CSV files give, byte for byte."""

import shutil
from pathlib import Path

from palimpsa.analysis.build import build_all

COMMITTED = Path(__file__).resolve().parents[2] / "results/mqar"


def test_committed_figures_and_tables_follow_from_the_committed_csv(tmp_path):
    for name in ("runs.csv", "curves.csv"):
        shutil.copy(COMMITTED / name, tmp_path)
    drawn = [path for report in build_all(tmp_path) for path in report.paths]
    assert {path.name for path in drawn} == {p.name for p in COMMITTED.iterdir() if p.suffix in (".png", ".svg", ".md")}
    for path in drawn:
        assert path.read_bytes() == (COMMITTED / path.name).read_bytes(), path.name
