"""The committed results: drawn from the committed CSV, of models and budgets that the configs still have."""

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import torch

from palimpsa.analysis.build import build_all
from palimpsa.analysis.collect import provenance
from palimpsa.analysis.load import read_gpu_sessions_csv, read_runs_csv
from palimpsa.analysis.select_lr import choose_learning_rates, one_experiment
from palimpsa.analysis.summarize import VALIDATION, summarize
from palimpsa.capacity import RULES
from palimpsa.config import plain
from palimpsa.data.stages import stages_from_config
from palimpsa.model import build_model
from palimpsa.run_directory import config_hash

REPOSITORY = Path(__file__).resolve().parents[2]
COMMITTED = REPOSITORY / "results/mqar"


def test_committed_figures_and_tables_follow_from_the_committed_csv(tmp_path):
    for name in ("runs.csv", "curves.csv"):
        shutil.copy(COMMITTED / name, tmp_path)
    drawn = [path for report in build_all(tmp_path) for path in report.paths]
    assert {path.name for path in drawn} == {p.name for p in COMMITTED.iterdir() if p.suffix in (".png", ".svg", ".md")}
    for path in drawn:
        assert path.read_bytes() == (COMMITTED / path.name).read_bytes(), path.name


def test_committed_provenance_follows_from_the_committed_csv():
    sessions = read_gpu_sessions_csv(COMMITTED / "gpu_sessions.csv")
    found = json.loads((COMMITTED / "provenance.json").read_text())
    assert found == provenance(read_runs_csv(COMMITTED / "runs.csv"), sessions)


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
        stages = stages_from_config(cfg.task)
        found = rows[["stage", "seq_len", "num_pairs"]].drop_duplicates().sort_values("stage").to_numpy().tolist()
        assert found == [[stage.index, stage.spec.seq_len, stage.spec.num_pairs] for stage in stages]
        caps = rows["stage"].map(lambda number, stages=stages: stages[number].max_steps)
        assert (rows["steps"] <= caps).all()
        assert set(rows["vocab_size"]) == {cfg.scale.vocab_size}
        # The whole config of each run, not only what has a column.
        for row in rows.drop_duplicates(["lr", "seed"]).itertuples():
            cfg.optimizer.lr, cfg.seed = row.lr, row.seed
            assert config_hash(plain(cfg)) == row.config_hash, row


def test_the_readmes_table_and_numbers_are_those_of_figure_2(compose_config):
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
    scale = compose_config("scale=h200").scale
    size = math.prod(len(values.split(",")) for values in (scale.models, scale.learning_rates, scale.seeds))
    assert len(rows.drop_duplicates(["model", "lr", "seed"])) == size
    assert set(rows["status"]) == {"finished"}
    assert f"all of its {size} runs" in readme

    longest = summary[summary["seq_len"] == 1024].set_index("model")
    mean = 100 * longest["mean"]
    means = 100 * summary.pivot(index="seq_len", columns="model", values="mean")
    at_longest = 100 * rows[rows["seq_len"] == 1024].set_index(["model", "lr"])["test_accuracy"]
    every = at_longest.groupby(["model", "lr"]).agg(["mean", "var", "size"])
    above, gaps, errors = [], {}, {}
    for ours, twin in (("palimpsa_d", "palimpsa_d_nometa"), ("palimpsa_m", "mamba2")):
        gaps[ours] = means[ours] - means[twin]
        assert gaps[ours].idxmax() == 1024
        errors[ours] = math.hypot(*(100 * longest["std"][[ours, twin]] / longest["num_seeds"][[ours, twin]] ** 0.5))
        assert 0 < gaps[ours][1024] < errors[ours]
        for lr in every.loc[ours].index:
            pair = every.loc[[(ours, lr), (twin, lr)]]
            if abs(pair["mean"].iloc[0] - pair["mean"].iloc[1]) > 2 * (pair["var"] / pair["size"]).sum() ** 0.5:
                above.append((ours, lr, *pair["mean"]))
    told = [f"{gaps[ours][1024]:.1f} ± {error:.1f}" for ours, error in errors.items()]
    assert f"by {told[0]} points (Palimpsa-D; ± standard error) and {told[1]} (Palimpsa-M)" in readme
    ahead = [f"{-gap[512]:.1f}" for gap in gaps.values()]
    assert f"At L 512 the twins are ahead, by {' and '.join(ahead)} points" in readme
    ((model, lr, ours, twin),) = above
    assert (model, lr) == ("palimpsa_d", 1e-2)
    assert f"(Palimpsa-D {ours:.1f}, its twin {twin:.1f})" in readme
    assert (
        every["mean"]
        .groupby("model")
        .idxmin()
        .map(lambda key: key[1])[["palimpsa_d", "palimpsa_d_nometa"]]
        .eq(lr)
        .all()
    )
    delta = mean["gated_deltanet"] - mean["palimpsa_d"]
    assert f"is {delta:.0f} points above it at L 1,024" in readme
    assert 2 * longest["state_size"]["gated_deltanet"] == longest["state_size"]["palimpsa_d"]
    assert means.loc[:256].min(axis=None) > 98
    for length in (512, 1024):
        assert (rows.loc[rows["seq_len"] == length, "ended_by"] == "cap").mean() > 0.5
    control = mean.pop("palimpsa_d_nometa_wide")
    assert f"by {control - mean.drop('transformer').max():.0f} points at L 1,024" in readme
    noise = 100 * longest["std"].drop(["transformer", "palimpsa_d_nometa_wide"])
    assert f"at L 1,024 is {noise.min():.0f} to {noise.max():.0f} points" in readme
    slow = every.loc[("palimpsa_d_nometa", 1e-3)]
    assert f"at which eight reach {slow['mean']:.1f} ± {slow['var'] ** 0.5:.1f}" in readme
    assert f"would have been {mean['palimpsa_d'] - slow['mean']:.0f} points" in readme
    scratch = runs[(runs["task"] == "mqar_scratch") & (runs["lr"] == 4.64e-3)].groupby("model")
    steps = {}
    for model in ("palimpsa_d", "palimpsa_d_nometa"):
        assert scratch.get_group(model)["ended_by"].tolist() == ["accuracy"] * 2
        steps[model] = sorted(scratch.get_group(model)["steps"])
    assert all(twin < ours for ours, twin in zip(*steps.values(), strict=True))


def test_of_the_ablation_normal_forgetting_alone_leaves_the_seeds_spread():
    """As the README says: both of its seeds are below every other run, and no other variant's are on one side."""
    runs = read_runs_csv(COMMITTED / "runs.csv").query("task == 'mqar_ablation' and seq_len >= 512")
    for _, rows in runs.groupby("seq_len"):
        accuracy = rows.set_index("model")["test_accuracy"]
        others = accuracy.drop("palimpsa_d_normal_forgetting")
        assert accuracy["palimpsa_d_normal_forgetting"].max() < others.min()
        for model in others.index.unique():
            rest = others.drop(model)
            assert others[model].max() > rest.min()
            assert others[model].min() < rest.max()


def test_the_readmes_and_the_logs_capacities_are_the_csvs():
    rows = pd.read_csv(REPOSITORY / "results/illustrations/capacity.csv")
    recalled = 100 * rows.set_index(["rule", "K", "num_pairs"])["accuracy"]
    linear, ours, delta, full = (
        recalled[rule] for rule in ("linear attention", "Palimpsa", "delta rule", "full covariance")
    )
    log, readme = (" ".join((REPOSITORY / name).read_text().split()) for name in ("docs/LOG.md", "README.md"))
    at = [(16, 128), (16, 256), (32, 256)]
    text = "recalls {:.1f}% of 128 pairs and {:.1f}% of 256, with 32 keys {:.1f}% of 256"
    assert text.format(*(linear[place] for place in at)) in log
    gains = [ours[place] - linear[place] for place in at]
    assert "add {:.1f} points at 128 pairs and {:.1f} at 256, and {:.1f} with 32 keys".format(*gains) in log
    gains = [full[place] - linear[place] for place in at]
    assert "adds {:.1f} and {:.1f}, and {:.1f};".format(*gains) in log
    gains = [delta[place] - linear[place] for place in at]
    assert "constant steps {:.1f}, {:.1f} and {:.1f}.".format(*gains) in log
    # No best step is one at the end of those that were tried.
    steps = rows[(rows["rule"] == "delta rule") & (rows["accuracy"] < 1)]["beta"]
    assert steps.between(*sorted(RULES["delta rule"][1])[:: len(RULES["delta rule"][1]) - 1], inclusive="neither").all()
    found = [linear[16, 256], ours[16, 256], full[16, 256], linear[32, 256]]
    text = "{:.0f}% as linear attention, {:.0f}% with importances, {:.0f}% with the full covariance, and {:.0f}% with"
    assert text.format(*found) in readme


def test_every_run_on_a_gpu_is_of_a_session_that_is_written_down():
    runs = pd.read_csv(COMMITTED / "runs.csv").query("scale == 'h200' and status == 'finished'")
    runs = runs.drop_duplicates(["task", "model", "lr", "seed", "run_seq_len"])
    sessions = pd.read_csv(COMMITTED / "gpu_sessions.csv")
    assert set(runs["git_revision"]) <= set(sessions["git_revision"])
    assert set(runs["device"]) == set(sessions["device"])
    told = sessions.groupby(["git_revision", "device"])["num_finished"].sum()
    assert runs.groupby(["git_revision", "device"]).size().to_dict() == told[told > 0].to_dict()
    log = " ".join((REPOSITORY / "docs/LOG.md").read_text().split())
    for revision, text in (("aa0660c", "Eight H200s for half an hour"), ("48937cf", "Four H200s for 28 minutes")):
        (session,) = sessions[sessions["git_revision"].str.startswith(revision)].to_dict("records")
        hours = session["num_gpus"] * session["held_s"] / 3600
        assert f"**{text}**: {session['num_finished']} runs for {hours:.1f} GPU hours" in log
