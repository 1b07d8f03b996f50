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
    assert f"{len(rows.drop_duplicates(['model', 'lr', 'seed']))} of its {size} runs" in readme

    longest = summary[summary["seq_len"] == 1024].set_index("model")
    mean = 100 * longest["mean"]
    means = summary.pivot(index="seq_len", columns="model", values="mean")
    for ours, twin in (("palimpsa_d", "palimpsa_d_nometa"), ("palimpsa_m", "mamba2")):
        gaps = means[ours] - means[twin]
        assert gaps.idxmax() == 1024
        assert 0 < gaps[1024] < longest["std"][[ours, twin]].min()
    assert mean["gated_deltanet"] > mean["palimpsa_d"]
    assert 2 * longest["state_size"]["gated_deltanet"] == longest["state_size"]["palimpsa_d"]
    assert means.loc[:256].min(axis=None) > 0.98
    for length in (512, 1024):
        assert (rows.loc[rows["seq_len"] == length, "ended_by"] == "cap").mean() > 0.5
    control = mean.pop("palimpsa_d_nometa_wide")
    assert f"by {control - mean.drop('transformer').max():.0f} points at L 1,024" in readme
    noise = 100 * longest["std"].drop(["transformer", "palimpsa_d_nometa_wide"])
    assert f"at L 1,024 is {noise.min():.0f} to {noise.max():.0f} points" in readme
    slow = (
        100
        * rows[(rows["model"] == "palimpsa_d_nometa") & (rows["lr"] == 1e-3) & (rows["seq_len"] == 1024)][
            "test_accuracy"
        ]
    )
    assert f"eight seeds reach {slow.mean():.1f} ± {slow.std():.1f}" in readme
    assert f"would have been {mean['palimpsa_d'] - slow.mean():.0f} points" in readme
    for model in ("palimpsa_d", "gated_deltanet"):
        scratch = runs[(runs["task"] == "mqar_scratch") & (runs["model"] == model)]
        assert scratch["ended_by"].tolist() == ["accuracy"] * 2


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


def test_the_logs_numbers_of_the_first_205_runs_are_the_csvs():
    runs = pd.read_csv(COMMITTED / "runs.csv")
    runs = runs[runs["git_revision"].str[:7].isin(["37dc89f", "aa0660c"])]
    log = " ".join((REPOSITORY / "docs/LOG.md").read_text().split())
    tasks = dict(list(runs.groupby("task")))
    curriculum, scratch, ablation = (tasks[f"mqar_{name}"] for name in ("curriculum", "scratch", "ablation"))
    num_runs = {name: len(rows[["model", "lr", "seed"]].drop_duplicates()) for name, rows in tasks.items()}
    assert list(num_runs.values()) == [16, 174, 15]

    longest = curriculum[curriculum["seq_len"] == 1024].sort_values("seed")
    accuracy = 100 * longest.set_index(["model", "lr"])["test_accuracy"]
    for text, (model, lr) in {
        "eight seeds reach {:.1f} ± {:.1f}, at the last": ("palimpsa_d_nometa", 1e-3),
        "four reach {:.1f} ± {:.1f};": ("palimpsa_d_nometa", 4.64e-3),
        "Palimpsa-D has {:.1f} ± {:.1f}.": ("palimpsa_d", 4.64e-3),
        "twice the keys at {:.1f} ± {:.1f}.": ("palimpsa_d_nometa_wide", 2.15e-3),
        "Gated DeltaNet gains, {:.1f} ± {:.1f} with half": ("gated_deltanet", 4.64e-3),
    }.items():
        assert text.format(accuracy[model, lr].mean(), accuracy[model, lr].std()) in log
    ours, twins = accuracy["palimpsa_d", 4.64e-3].mean(), accuracy["palimpsa_d_nometa"].groupby("lr").mean()
    assert f"is {ours - twins[1e-3]:.1f} points or {ours - twins[4.64e-3]:.1f}, by" in log
    for text, model in {
        "Palimpsa-D {}; its": "palimpsa_d",
        "its twin {};": "palimpsa_d_nometa",
        "Gated DeltaNet {}.": "gated_deltanet",
    }.items():
        rows = longest[(longest["model"] == model) & (longest["lr"] == 4.64e-3)]
        ages = 100 * rows["test_accuracy_by_age"].str.split(";", expand=True).astype(float).mean()
        assert text.format(", ".join(f"{age:.1f}" for age in ages)) in log
    done = curriculum[curriculum["stage"] > 0]
    early = (done["ended_by"] == "accuracy").groupby(done["seq_len"]).sum().tolist()
    text = "L 128 ended by accuracy in {} of 174 runs, L 256 in {}, L 512 in {}, and L 1,024 in {}, all of softmax"
    assert text.format(*early) in log
    assert set(longest.loc[longest["ended_by"] == "accuracy", "model"]) == {"transformer"}

    scratch = scratch.sort_values("seed")
    for text, model in {
        "Palimpsa-D reaches 99% after {:,} and {:,} steps": "palimpsa_d",
        "Gated DeltaNet after {:,} and {:,}": "gated_deltanet",
        "twice the keys after {:,} and {:,}": "palimpsa_d_nometa_wide",
    }.items():
        rows = scratch[scratch["model"] == model]
        assert text.format(*rows["steps"]) in log
        assert set(rows["ended_by"]) == {"accuracy"}
    for text, model in {
        "D w/o Meta ends at {:.1f} and {:.1f}": "palimpsa_d_nometa",
        "Palimpsa-M at {:.1f} and {:.1f}": "palimpsa_m",
        "Mamba-2 at {:.1f} and, after 41,300 steps, {:.1f}": "mamba2",
        "GLA at {:.1f} (one run)": "gla",
    }.items():
        assert text.format(*(100 * scratch.loc[scratch["model"] == model, "test_accuracy"])) in log

    means = 100 * ablation.groupby(["label", "seq_len"])["test_accuracy"].mean()
    for label, rows in ablation.sort_values("seed").groupby("label"):
        cells = [
            ", ".join(f"{100 * a:.1f}" for a in rows.loc[rows["seq_len"] == n, "test_accuracy"]) for n in (512, 1024)
        ]
        assert f"| {label} | {' | '.join(cells)} |" in log
    losses = [means["Palimpsa-D", n] - means["Palimpsa-D, normal forgetting", n] for n in (512, 1024)]
    assert "Palimpsa-D {:.1f} points at L 512 and {:.1f} at L 1,024".format(*losses) in log
    keys = ["model", "lr", "seed", "seq_len", "stage"]
    both = ablation.merge(curriculum, on=keys, suffixes=("", "_figure"))
    assert (both["device"] != both["device_figure"]).all()
    differences = 100 * (both["test_accuracy"] - both["test_accuracy_figure"]).abs().groupby(both["seq_len"]).max()
    assert f"up to {differences[512]:.1f} points at L 512 and {differences[1024]:.1f} at L 1,024" in log


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
    (eight,) = sessions[sessions["git_revision"].str.startswith("aa0660c")].to_dict("records")
    hours = eight["num_gpus"] * eight["held_s"] / 3600
    log = " ".join((REPOSITORY / "docs/LOG.md").read_text().split())
    assert f"{eight['num_finished']} runs for {hours:.1f} GPU hours" in log
