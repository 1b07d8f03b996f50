"""The committed results: drawn from the committed CSV, of models and budgets that the configs still have."""

import shutil
from pathlib import Path

import pandas as pd
import torch

from palimpsa.analysis.build import build_all
from palimpsa.model import build_model

COMMITTED = Path(__file__).resolve().parents[2] / "results/mqar"


def test_committed_figures_and_tables_follow_from_the_committed_csv(tmp_path):
    for name in ("runs.csv", "curves.csv"):
        shutil.copy(COMMITTED / name, tmp_path)
    drawn = [path for report in build_all(tmp_path) for path in report.paths]
    assert {path.name for path in drawn} == {p.name for p in COMMITTED.iterdir() if p.suffix in (".png", ".svg", ".md")}
    for path in drawn:
        assert path.read_bytes() == (COMMITTED / path.name).read_bytes(), path.name


def test_committed_runs_are_of_the_models_and_budgets_that_the_configs_have(compose_config):
    runs = pd.read_csv(COMMITTED / "runs.csv")
    assert len(runs) > 0
    for (scale, model), rows in runs.groupby(["scale", "model"]):
        cfg = compose_config(f"scale={scale}", f"model={model}")
        with torch.device("meta"):
            built = build_model(cfg.model, None)
        assert set(rows["label"]) == {cfg.model.label}
        assert set(rows["num_parameters"]) == {built.num_parameters}, model
        assert set(rows["state_size"]) == {built.state_size}, model
        stages = [(stage.seq_len, stage.num_pairs) for stage in cfg.scale.curriculum]
        assert set(zip(rows["seq_len"], rows["num_pairs"], strict=True)) == set(stages)
        caps = rows["stage"].map(lambda stage, cfg=cfg: cfg.scale.curriculum[stage].max_steps)
        assert (rows["steps"] <= caps).all()
        assert set(rows["vocab_size"]) == {cfg.scale.vocab_size}


def test_the_logs_table_of_the_pilot_is_its_csv():
    runs = pd.read_csv(COMMITTED.parent / "pilot/runs.csv")
    log = (COMMITTED.parents[1] / "docs/LOG.md").read_text()
    tested = runs[runs["seq_len"].isin([256, 512, 1024])]
    for label, rows in tested.groupby("label"):
        accuracies = rows.pivot(index="lr", columns="seq_len", values="test_accuracy")
        cells = [" / ".join("failed" if a != a else f"{100 * a:.1f}" for a in row) for row in accuracies.to_numpy()]
        assert f"| {label} | {' | '.join(cells)} |" in log
