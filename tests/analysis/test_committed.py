"""The committed results: drawn from the committed CSV, of models and budgets that the configs still have."""

import shutil
from pathlib import Path

import pandas as pd
import torch

from palimpsa.analysis.build import build_all
from palimpsa.data.stages import stages_from_config
from palimpsa.model import build_model

REPOSITORY = Path(__file__).resolve().parents[2]
COMMITTED = REPOSITORY / "results/mqar"


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
    for (task, scale, model), rows in runs.groupby(["task", "scale", "model"]):
        folder = "ablation/" if (REPOSITORY / f"configs/model/ablation/{model}.yaml").exists() else ""
        cfg = compose_config(f"task={task}", f"scale={scale}", f"model={folder}{model}")
        with torch.device("meta"):
            built = build_model(cfg.model, None)
        assert set(rows["label"]) == {cfg.model.label}
        assert set(rows["num_parameters"]) == {built.num_parameters}, model
        assert set(rows["state_size"]) == {built.state_size}, model
        stages = stages_from_config(cfg.task)
        found = rows[["stage", "seq_len", "num_pairs"]].drop_duplicates().sort_values("stage").to_numpy().tolist()
        assert found == [[stage.index, stage.spec.seq_len, stage.spec.num_pairs] for stage in stages]
        caps = rows["stage"].map(lambda number, stages=stages: stages[number].max_steps)
        assert (rows["steps"] <= caps).all()
        assert set(rows["vocab_size"]) == {cfg.scale.vocab_size}


def test_the_logs_table_of_the_pilot_is_its_csv():
    runs = pd.read_csv(COMMITTED.parent / "pilot/runs.csv")
    log = (REPOSITORY / "docs/LOG.md").read_text()
    tested = runs[runs["seq_len"].isin([256, 512, 1024])]
    for label, rows in tested.groupby("label"):
        accuracies = rows.pivot(index="lr", columns="seq_len", values="test_accuracy")
        cells = [" / ".join("failed" if a != a else f"{100 * a:.1f}" for a in row) for row in accuracies.to_numpy()]
        assert f"| {label} | {' | '.join(cells)} |" in log


def test_the_logs_numbers_of_the_first_runs_at_the_papers_sizes_are_the_csvs():
    runs = pd.read_csv(COMMITTED / "runs.csv")
    first = runs[(runs["git_revision"].str[:7] == "37dc89f") & (runs["seq_len"] == 1024)]
    found = {key: 100 * rows.sort_values("seed")["test_accuracy"] for key, rows in first.groupby(["model", "lr"])}
    log = " ".join((REPOSITORY / "docs/LOG.md").read_text().split())
    for text, (model, lr) in {
        "twice the keys {}": ("palimpsa_d_nometa_wide", 2.15e-3),
        "Palimpsa-D {} and {}": ("palimpsa_d", 4.64e-3),
        "Gated DeltaNet {} at 4.64e-3": ("gated_deltanet", 4.64e-3),
        "{}, {} at 2.15e-3": ("gated_deltanet", 2.15e-3),
        "Palimpsa-M {} and {}": ("palimpsa_m", 2.15e-3),
        "Mamba-2 {} and {}": ("mamba2", 4.64e-3),
        "GLA {} and {}": ("gla", 2.15e-3),
        "D w/o Meta {} and {} at 1e-3": ("palimpsa_d_nometa", 1e-3),
        "{} and {} at 4.64e-3": ("palimpsa_d_nometa", 4.64e-3),
    }.items():
        assert text.format(*(f"{accuracy:.1f}" for accuracy in found[model, lr])) in log
    together = first[(first["model"] == "palimpsa_d") & (first["seed"] == 2)]
    assert len(together) == 3
    steps = runs.merge(together[["model", "lr", "seed", "task", "scale"]]).groupby("lr")["steps"].sum()
    times = 1000 * together.set_index("lr")["wall_time_s"] / steps
    assert f"took {times.min():.1f} to {times.max():.1f} ms a step there" in log
    assert f"{times.min() / 3:.1f} to {times.max() / 3:.1f} ms of a GPU for each of three" in log
    spreads = [accuracies.max() - accuracies.min() for accuracies in found.values()]
    assert f"differ by up to {max(spreads):.0f} points at L 1,024" in log


def test_every_run_on_a_gpu_is_of_a_session_that_is_written_down():
    runs = pd.read_csv(COMMITTED / "runs.csv").query("scale == 'h200' and status == 'finished'")
    runs = runs.drop_duplicates(["task", "model", "lr", "seed", "run_seq_len"])
    sessions = pd.read_csv(COMMITTED / "gpu_sessions.csv")
    assert set(runs["git_revision"]) <= set(sessions["git_revision"])
    assert set(runs["device"]) == set(sessions["device"])
    assert len(runs) == sessions["num_finished"].sum()
