"""The committed results: light, drawn from the committed CSV, of models and budgets that the configs still have."""

import json
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import torch

from palimpsa.analysis.build import build_runs
from palimpsa.analysis.collect.provenance_summary import summarize_provenance
from palimpsa.analysis.collect.thin_curves import thin_curves
from palimpsa.config.schema import typed
from palimpsa.model.build import build_model
from palimpsa.runs.read import read_curves_csv, read_gpu_sessions_csv, read_runs_csv
from palimpsa.tasks.stages import stages_from_config
from palimpsa.theory.capacity import RULES

REPOSITORY = Path(__file__).resolve().parents[2]
COMMITTED = REPOSITORY / "results/mqar"


def tracked(folder: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", folder], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return [REPOSITORY / name for name in listed.stdout.split("\0") if name and (REPOSITORY / name).exists()]


def test_committed_results_stay_light():
    """They travel with the tree to every machine."""
    files = tracked("results")
    assert sum(path.stat().st_size for path in files) < 12e6
    assert {
        path.name: path.stat().st_size for path in files if path.name == "curves.csv" and path.stat().st_size > 1e6
    } == {}
    assert [path.name for path in files if path.suffix == ".svg"] == []


@pytest.mark.parametrize("name", ["mqar", "pilot", "recipe"])
def test_committed_curves_are_thinned(name):
    folder = REPOSITORY / "results" / name
    curves = read_curves_csv(folder / "curves.csv")
    pd.testing.assert_frame_equal(thin_curves(read_runs_csv(folder / "runs.csv"), curves), curves)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mqar", "recipe"])
def test_committed_figures_and_tables_follow_from_the_committed_csv(name, tmp_path, png_only):
    committed = REPOSITORY / "results" / name
    for file in ("runs.csv", "curves.csv"):
        shutil.copy(committed / file, tmp_path)
    drawn = [path for report in build_runs(tmp_path) for path in report.paths]
    assert {path.name for path in drawn} == {
        path.name for path in tracked(f"results/{name}") if path.suffix in (".png", ".md")
    }
    for path in drawn:
        assert path.read_bytes() == (committed / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", ["mqar", "pilot", "recipe"])
def test_committed_provenance_follows_from_the_committed_csv(name):
    folder = REPOSITORY / "results" / name
    found = json.loads((folder / "provenance.json").read_text())
    file = folder / "gpu_sessions.csv"
    sessions = read_gpu_sessions_csv(file) if file.exists() else None
    assert found == summarize_provenance(read_runs_csv(folder / "runs.csv"), sessions)


# The ablation had one precision a head with equal importances for all rows: a model of its own name, with the state of
# the published form. name -> (what it is called today, label)
RENAMED = {"palimpsa_d_scalar_beta": ("palimpsa_d_scalar", "Palimpsa-D, scalar beta")}


def test_committed_runs_are_of_the_models_and_stages_that_there_are(compose_config):
    runs = pd.read_csv(COMMITTED / "runs.csv")
    assert len(runs) > 0
    for (task, scale, model), rows in runs.groupby(["task", "scale", "model"]):
        folder = "ablation/" if (REPOSITORY / f"configs/model/ablation/{model}.yaml").exists() else ""
        group = "task" if (REPOSITORY / f"configs/task/{task}.yaml").exists() else "+sweep"
        today, label = RENAMED.get(model, (model, None))
        cfg = compose_config(f"{group}={task}", f"scale={scale}", f"model={folder}{today}")
        with torch.device("meta"):
            built = build_model(cfg.model, None)
            parameters, state_size = built.num_parameters, built.state_size
            if model in RENAMED:
                # Of runs before an importance could serve more than one row.
                cfg.model.mixer.plasticity = "vector"
                state_size = build_model(cfg.model, None).state_size
        assert set(rows["label"]) == {label or cfg.model.label}
        assert set(rows["num_parameters"]) == {parameters}, model
        assert set(rows["state_size"]) == {state_size}, model
        stages = stages_from_config(typed(cfg).task)
        found = rows[["stage", "seq_len", "num_pairs"]].drop_duplicates().sort_values("stage").to_numpy().tolist()
        assert found == [[stage.index, stage.spec.seq_len, stage.spec.num_pairs] for stage in stages]
        caps = rows["stage"].map(lambda number, stages=stages: stages[number].max_steps)
        assert (rows["steps"] <= caps).all()
        assert set(rows["vocab_size"]) == {cfg.task.vocab_size}


def test_the_best_step_of_a_rule_lies_within_those_that_were_tried():
    """Of the delta rule in capacity.csv: the smallest step is as good as linear attention, the largest too large."""
    rows = pd.read_csv(REPOSITORY / "results/illustrations/capacity.csv")
    steps = rows.query("rule == 'delta rule' and accuracy < 1")
    assert (steps["beta"] < max(RULES["delta rule"][1])).all()
    assert (steps.loc[steps["beta"] == min(RULES["delta rule"][1]), "gain"] < 0.001).all()


def test_every_run_on_a_gpu_is_of_a_session_that_is_written_down():
    runs = pd.read_csv(COMMITTED / "runs.csv").query("scale == 'h200' and status == 'finished'")
    runs = runs.drop_duplicates(["task", "model", "lr", "seed", "run_seq_len"])
    sessions = pd.read_csv(COMMITTED / "gpu_sessions.csv")
    assert set(runs["git_revision"]) <= set(sessions["git_revision"])
    assert set(runs["device"]) == set(sessions["device"])
    runs = runs.merge(sessions, on=["git_revision", "device"], suffixes=("", "_session"))
    after = pd.to_datetime(runs["started"]) - pd.to_datetime(runs["started_session"])
    assert after.min() > pd.Timedelta(0)
    assert (after.dt.total_seconds() + runs["wall_time_s"] < runs["held_s"]).all()
    counted = sessions.groupby(["git_revision", "device"])["num_finished"].sum()
    assert runs.groupby(["git_revision", "device"]).size().to_dict() == counted[counted > 0].to_dict()
