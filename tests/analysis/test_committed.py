"""The committed results: drawn from the committed CSV, of models and budgets that the configs still have."""

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from palimpsa.analysis.build import build_all
from palimpsa.analysis.collect.collect import provenance
from palimpsa.analysis.statistics.select_lr import choose_learning_rates, one_experiment
from palimpsa.analysis.statistics.summarize import VALIDATION, summarize
from palimpsa.config.schema import plain, typed
from palimpsa.model.build import build_model
from palimpsa.runs.identity import config_hash
from palimpsa.runs.read import read_gpu_sessions_csv, read_runs_csv
from palimpsa.tasks.stages import stages_from_config
from palimpsa.theory.capacity import RULES

REPOSITORY = Path(__file__).resolve().parents[2]
COMMITTED = REPOSITORY / "results/mqar"


def test_committed_figures_and_tables_follow_from_the_committed_csv(tmp_path):
    for name in ("runs.csv", "curves.csv"):
        shutil.copy(COMMITTED / name, tmp_path)
    drawn = [path for report in build_all(tmp_path) for path in report.paths]
    assert {path.name for path in drawn} == {p.name for p in COMMITTED.iterdir() if p.suffix in (".png", ".svg", ".md")}
    for path in drawn:
        assert path.read_bytes() == (COMMITTED / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", ["mqar", "pilot"])
def test_committed_provenance_follows_from_the_committed_csv(name):
    folder = REPOSITORY / "results" / name
    found = json.loads((folder / "provenance.json").read_text())
    sessions = read_gpu_sessions_csv(folder / "gpu_sessions.csv")
    assert found == provenance(read_runs_csv(folder / "runs.csv"), sessions)


def test_committed_runs_are_of_the_configs_that_there_are(compose_config):
    runs = pd.read_csv(COMMITTED / "runs.csv")
    assert len(runs) > 0
    for (task, scale, model), rows in runs.groupby(["task", "scale", "model"]):
        folder = "ablation/" if (REPOSITORY / f"configs/model/ablation/{model}.yaml").exists() else ""
        group = "task" if (REPOSITORY / f"configs/task/{task}.yaml").exists() else "+sweep"
        trainer = "gpu" if compose_config(f"scale={scale}").scale.requires_gpu else "cpu"
        cfg = compose_config(f"{group}={task}", f"scale={scale}", f"model={folder}{model}", f"trainer={trainer}")
        with torch.device("meta"):
            built = build_model(cfg.model, None)
        assert set(rows["label"]) == {cfg.model.label}
        assert set(rows["num_parameters"]) == {built.num_parameters}, model
        assert set(rows["state_size"]) == {built.state_size}, model
        stages = stages_from_config(typed(cfg).task)
        found = rows[["stage", "seq_len", "num_pairs"]].drop_duplicates().sort_values("stage").to_numpy().tolist()
        assert found == [[stage.index, stage.spec.seq_len, stage.spec.num_pairs] for stage in stages]
        caps = rows["stage"].map(lambda number, stages=stages: stages[number].max_steps)
        assert (rows["steps"] <= caps).all()
        assert set(rows["vocab_size"]) == {cfg.task.vocab_size}
        # The whole config of each run, not only what has a column.
        for row in rows.drop_duplicates(["lr", "seed"]).itertuples():
            cfg.optimizer.lr, cfg.seed = row.lr, row.seed
            assert config_hash(plain(typed(cfg))) == row.config_hash, row


def test_the_readmes_table_and_numbers_are_those_of_figure_2(compose_config, difference):
    runs = read_runs_csv(COMMITTED / "runs.csv")
    rows = one_experiment(runs, "mqar_curriculum", "h200")
    summary = summarize(rows, choose_learning_rates(rows)).sort_values("seq_len")
    summary = summary[summary["rule"] == VALIDATION]
    readme = " ".join((REPOSITORY / "README.md").read_text().split())
    for label, own in summary.groupby("label"):
        first = own.iloc[0]
        state = f"{int(first['state_size']):,}" if first["state_size"] else "grows"
        cells = [f"{100 * mean:.1f} ± {100 * std:.1f}" for mean, std in zip(own["mean"], own["std"], strict=True)]
        line = [label, state, f"{first['lr']:g}", f"{first['num_seeds']}", *cells]
        assert f"| {' | '.join(line)} |" in readme
    sweep = compose_config("scale=h200").task.sweep
    size = math.prod(len(values.split(",")) for values in (sweep.models, sweep.learning_rates, sweep.seeds))
    assert len(rows.drop_duplicates(["model", "lr", "seed"])) == size
    assert set(rows["status"]) == {"finished"}
    assert f"all of its {size} runs" in readme

    longest = summary[summary["seq_len"] == 1024].set_index("model")
    mean = 100 * longest["mean"]
    means = 100 * summary.pivot(index="seq_len", columns="model", values="mean")
    seeds = 100 * rows[rows["seq_len"] == 1024].set_index(["model", "lr", "seed"])["test_accuracy"]
    at_chosen = {model: seeds[model, lr] for model, lr in longest["lr"].items()}
    pairs = {"palimpsa_d": "palimpsa_d_nometa", "palimpsa_m": "mamba2"}
    gaps = {ours: means[ours] - means[twin] for ours, twin in pairs.items()}
    assert all(gap.idxmax() == 1024 for gap in gaps.values())
    told = [difference(at_chosen[ours], at_chosen[twin]) for ours, twin in pairs.items()]
    text = "by {} points for Palimpsa-D (standard error {} and {} for Palimpsa-M {},"
    assert text.format(*told[0].split(" ("), *told[1].split(" ")) in readme
    ahead = [f"{-gap[512]:.1f}" for gap in gaps.values()]
    assert f"At L 512 the twins are ahead, by {' and '.join(ahead)}." in readme
    every = seeds.groupby(["model", "lr"]).mean()
    assert sum((every[ours] > every[twin]).sum() for ours, twin in pairs.items()) == 7
    over_rates = seeds.groupby(["model", "seed"]).mean()
    told = [difference(over_rates[ours], over_rates[twin]) for ours, twin in pairs.items()]
    assert f"they average {told[0]} and {told[1]}." in readme

    repeats = runs[(runs["task"] == "mqar_ablation") & (runs["seq_len"] == 1024)].set_index(["model", "seed"])
    first = rows[(rows["seq_len"] == 1024) & (rows["lr"] == 4.64e-3)].set_index(["model", "seed"])["device"]
    on_one_card, moved = [], []
    for model in ("palimpsa_d", "palimpsa_d_nometa"):
        other = 100 * repeats.loc[model, "test_accuracy"]
        assert first[model].str.contains("H100").tolist() == [True] * 2 + [False] * 6
        assert repeats.loc[model, "device"].str.contains("H200").tolist() == [True] * 2
        moved += (other - at_chosen[model][[1, 2]]).abs().tolist()
        on_one_card.append(pd.concat([other, at_chosen[model][2:]]))
    assert f"that gap is {difference(*on_one_card)}." in readme
    assert f"on another card moved by {min(moved):.1f} to {max(moved):.1f} points, in four cases" in readme

    delta = difference(at_chosen["gated_deltanet"], at_chosen["palimpsa_d"]).replace(" ", " points ")
    assert f"is {delta} above Palimpsa-D at L 1,024" in readme
    assert 2 * longest["state_size"]["gated_deltanet"] == longest["state_size"]["palimpsa_d"]
    assert means.loc[:256].min(axis=None) > 98
    for length in (512, 1024):
        assert (rows.loc[rows["seq_len"] == length, "ended_by"] == "cap").mean() > 0.5
    devices = rows.drop_duplicates(["model", "lr", "seed"])["device"]
    assert f"{devices.str.contains('H100').sum()} of the runs were made on H100s, the others on H200s" in readme
    assert rows["versions"].str.contains("torch=2.11").all()
    control = mean.pop("palimpsa_d_nometa_wide")
    assert f"by {control - mean.drop('transformer').max():.0f} points or more at L 1,024" in readme
    sizes = longest["num_parameters"]
    more = 100 * sizes["palimpsa_d_nometa_wide"] / sizes.drop(["palimpsa_d_nometa_wide", "transformer"]) - 100
    assert set(more.round()) == {5}
    noise = 100 * longest["std"].drop(["transformer", "palimpsa_d_nometa_wide"])
    assert f"at L 1,024 is {noise.min():.0f} to {noise.max():.0f} points" in readme
    slow = seeds["palimpsa_d_nometa", 1e-3]
    assert f"at which eight reach {slow.mean():.1f} ± {slow.std():.1f}" in readme
    assert f"would have been {mean['palimpsa_d'] - slow.mean():.0f} points" in readme
    scratch = runs[(runs["task"] == "mqar_scratch") & (runs["scale"] == "h200")]
    assert f"with up to {scratch['steps'].max():,} steps" in readme
    assert set(scratch.loc[scratch["ended_by"] == "cap", "steps"]) == {scratch["steps"].max()}
    steps = scratch.set_index(["model", "lr"]).sort_index()
    assert [key for key in longest["lr"].items() if key not in steps.index or len(steps.loc[[key]]) < 2] == []
    assert "done at L 512 with two seeds a model at its rate above" in readme
    for model in ("palimpsa_d", "palimpsa_d_nometa"):
        assert steps.loc[[(model, 4.64e-3)], "ended_by"].tolist() == ["accuracy"] * 2
    ablation = runs[runs["task"] == "mqar_ablation"].groupby("model")["seed"].nunique()
    assert set(ablation) == {2}


def test_of_the_ablation_normal_forgetting_alone_leaves_the_seeds_spread():
    """As the README says, at L 512: both of its seeds are below all of Palimpsa-D's, and so of no other variant."""
    runs = read_runs_csv(COMMITTED / "runs.csv").query("seq_len == 512 and lr == 4.64e-3")
    spread = 100 * runs.query("task == 'mqar_curriculum' and model == 'palimpsa_d'")["test_accuracy"]
    ablation = runs.query("task == 'mqar_ablation'").groupby("model")["test_accuracy"]
    outside = [model for model, seeds in ablation if (100 * seeds < spread.min()).all()]
    assert outside == ["palimpsa_d_normal_forgetting"]
    assert not any((100 * seeds > spread.max()).all() for _, seeds in ablation)
    readme = " ".join((REPOSITORY / "README.md").read_text().split())
    cost = spread.mean() - 100 * ablation.get_group(outside[0]).mean()
    assert f"costs Palimpsa-D {cost:.0f} points at L 512" in readme
    twin = runs.query("task == 'mqar_curriculum' and model == 'palimpsa_d_nometa'")["test_accuracy"]
    assert ablation.get_group("palimpsa_d_nometa_normal_forgetting").min() > twin.min()


def test_the_readmes_and_the_logs_capacities_are_the_csvs():
    rows = (
        pd.read_csv(REPOSITORY / "results/illustrations/capacity.csv")
        .set_index(["rule", "K", "num_pairs"])
        .sort_index()
    )
    rows[["accuracy", "gain", "gain_error"]] *= 100
    log, readme = (" ".join((REPOSITORY / name).read_text().split()) for name in ("docs/LOG.md", "README.md"))
    plain = rows.loc["linear attention", "accuracy"]
    text = "recalls {:.1f}% of 128 pairs and {:.1f}% of 256 as linear attention"
    assert text.format(plain[16, 128], plain[16, 256]) in log
    assert f"32 keys recall {plain[32, 256]:.1f}% of 256" in log
    for rule, text in {
        "Palimpsa": "importances add {:.1f} points ({:.1f}) and {:.1f} ({:.1f}), the full",
        "full covariance": "the diagonal, {:.1f} ({:.1f}) and {:.1f} ({:.1f}), the delta",
        "delta rule": "constant step {:.1f} ({:.1f}) and {:.1f} ({:.1f});",
    }.items():
        gains = [rows.loc[(rule, 16, n), name] for n in (128, 256) for name in ("gain", "gain_error")]
        assert text.format(*gains) in log
    # The smallest step is as good as linear attention; the largest is too large.
    steps = rows.loc["delta rule"].query("accuracy < 100")
    assert (steps["beta"] < max(RULES["delta rule"][1])).all()
    assert (steps.loc[steps["beta"] == min(RULES["delta rule"][1]), "gain"] < 0.1).all()
    found = [rows.loc[(rule, 16, 256), "accuracy"] for rule in ("linear attention", "Palimpsa", "full covariance")]
    text = "{:.0f}% as linear attention, {:.0f}% with importances, {:.0f}% with the full covariance, and {:.0f}% with"
    assert text.format(*found, plain[32, 256]) in readme


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
    told = sessions.groupby(["git_revision", "device"])["num_finished"].sum()
    assert runs.groupby(["git_revision", "device"]).size().to_dict() == told[told > 0].to_dict()
    log = " ".join((REPOSITORY / "docs/LOG.md").read_text().split())
    for revision, text in {
        "aa0660c": "Eight H200s for half an hour",
        "48937cf": "Four H200s for 28 minutes",
        "bef290e": "Four H200s for nine minutes",
    }.items():
        (session,) = sessions[sessions["git_revision"].str.startswith(revision)].to_dict("records")
        hours = session["num_gpus"] * session["held_s"] / 3600
        assert f"**{text}**: {session['num_finished']} runs for {hours:.1f} GPU hours" in log
