"""Committed figures and sentences of language models and of calibration: they are what the CSV files have today."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from palimpsa.analysis.calibration.build import build_calibration
from palimpsa.analysis.language.evaluation_report import build_evaluation

from .test_committed import REPOSITORY, tracked

FOLDERS = {"calibration": build_calibration, "commonsense": build_evaluation}


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_figures_and_tables_follow_from_the_committed_csv(name, tmp_path, png_only):
    build: Callable[[Path], list[Path]] = FOLDERS[name]
    committed = [path for path in tracked(f"results/{name}") if path.parent.name == name]
    for path in committed:
        if path.suffix == ".csv":
            shutil.copy(path, tmp_path)
    drawn = {path.name: path.read_bytes() for path in build(tmp_path) if path.suffix in (".png", ".md")}
    assert drawn.keys() == {path.name for path in committed if path.suffix in (".png", ".md")}
    stale = [path.name for path in committed if path.name in drawn and path.read_bytes() != drawn[path.name]]
    assert stale == [], "make figures draws them again"


# What README.md and docs/evaluation.md say in words beside the tables.
def test_what_pages_say_of_the_evaluated_models_is_what_the_rows_say():
    from palimpsa.analysis.collect.benchmark_files import read_evaluation_speed_csv
    from palimpsa.analysis.collect.evaluation_files import read_evaluation_csv
    from palimpsa.analysis.language.evaluation_tables import TASKS

    rows = read_evaluation_csv(REPOSITORY / "results/commonsense")
    page = (REPOSITORY / "docs/evaluation.md").read_text()
    guesses = {task: guess for task, (_, guess) in TASKS.items() if guess}
    metric = {"hellaswag": "acc_norm", "arc_challenge": "acc_norm"}
    own = rows.loc[rows["measure"].isin(guesses)]
    own = own.loc[own["metric"] == own["measure"].map(lambda task: metric.get(task, "acc"))]
    above = own.loc[own["value"] > own["measure"].map(guesses) + 3 * own["stderr"]]
    assert sorted(above["measure"]) == ["arc_easy"] * rows["name"].nunique()
    assert "Only in ARC-e are they above guessing by more than three standard errors" in " ".join(page.split())
    assert {round(tokens / 1e6) for tokens in rows["tokens"]} == {92}
    assert (rows["tokens"] / rows["num_parameters"]).between(1.9, 2.2).all()
    assert "a tenth of the 20 a parameter" in " ".join(page.split())
    speed = read_evaluation_speed_csv(REPOSITORY / "results/commonsense", "nvidia-h200").set_index(["model", "path"])
    assert 0.95 <= speed.loc[("lm/palimpsa_d_170m", "ours"), "speed_ratio"] <= 1.2
    assert "Palimpsa-D 170M is scored as fast as the harness scores a Llama of its size" in page
