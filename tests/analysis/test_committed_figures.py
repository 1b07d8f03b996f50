"""Committed figures and sentences of language models, calibration and fine-tuning: they are what the CSV files have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from palimpsa.analysis.calibration.build import build_calibration
from palimpsa.analysis.finetuning.build import build_finetuning
from palimpsa.analysis.language.evaluation_report import build_evaluation

from .test_committed import REPOSITORY, tracked

FOLDERS = {"calibration": build_calibration, "commonsense": build_evaluation, "finetuning": build_finetuning}


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


def test_pairs_are_what_the_committed_runs_have():
    from palimpsa.analysis.finetuning.pairs import metrics_of_stage, read_pairs

    folder = REPOSITORY / "results/finetuning"
    found = set()
    for path in tracked("results/finetuning/runs"):
        if path.name == "result.json":
            result, measured = json.loads(path.read_text()), path.with_name("long_range.json")
            points = [row for stage in result["stages"] for row in metrics_of_stage(stage)]
            points += json.loads(measured.read_text())["points"] if measured.exists() else []
            of = [
                result["config_hash"],
                *(result["provenance"][name] for name in ("device", "git_revision", "started")),
            ]
            found |= {(*of, row["measure"], str(row["at"]), row["value"]) for row in points}
    rows = read_pairs(folder)
    columns = ["config_hash", "device", "git_revision", "date", "measure", "at", "value"]
    assert set(rows[columns].itertuples(index=False, name=None)) == found


def test_documents_and_strengths_are_those_of_the_committed_runs():
    from palimpsa.analysis.finetuning.pairs import read_documents
    from palimpsa.runs.result import run_of

    folder = REPOSITORY / "results/finetuning"
    losses, own = set(), {}
    for path in tracked("results/finetuning/runs"):
        if path.name == "long_range.json":
            losses.add(tuple(json.loads(path.read_text())["documents"]))
            run = run_of(json.loads(path.with_name("config.json").read_text()))
            stage = json.loads(path.with_name("result.json").read_text())["stages"][-1]
            own[f"{run['model']}_{run['scale']}_lr_{run['lr']}_seed_{run['seed']}"] = stage["validation_loss"]
    documents = (
        read_documents(folder).sort_values("document").groupby(["demonstration", "model", "seed", "arm"])["loss"]
    )
    assert set(documents.apply(tuple)) == losses
    assert len(documents) == len(losses)
    rows = pd.read_csv(folder / "strength.csv").query("metric == 'loss' and strength == 1")
    # At strength 1 a model is as it was trained; bf16 rounds in another order outside of training.
    language = rows.loc[rows["at"] == "L 4096"].set_index("name")["value"]
    assert dict(language) == pytest.approx({name: own[name] for name in language.index}, rel=1e-5)
    continuum = {}
    for path in tracked("results/finetuning/continuum"):
        if path.name == "result.json":
            run = run_of(json.loads(path.with_name("config.json").read_text()))
            name = f"{run['model']}_{run['scale']}_lr_{run['lr']}_seed_{run['seed']}"
            continuum[name] = json.loads(path.read_text())["stages"][-1]["test_loss"]
    recall = rows.loc[rows["at"] == "L 1024"].set_index("name")["value"]
    assert dict(recall) == pytest.approx(continuum, rel=2e-4)
    assert len(language) + len(recall) == rows["name"].nunique()


def words(page):
    """Of a file, with one space between them."""
    return " ".join((REPOSITORY / page).read_text().split())


LANGUAGE_PAIRS = ("mamba2_44m", "palimpsa_d_nometa_44m")


def test_what_pages_say_of_conversion_is_what_the_rows_say():
    from palimpsa.analysis.finetuning.comparison import compare
    from palimpsa.analysis.finetuning.pairs import read_pairs

    folder = REPOSITORY / "results/finetuning"
    page, readme = words("docs/finetuning.md"), words("README.md")
    rows = read_pairs(folder)
    by = {(one.model, one.at): one for one in compare(rows.loc[rows["demonstration"] == "recall"])}
    mamba2, twin, longer = by["mamba2", "512"], by["palimpsa_d_nometa", "512"], by["mamba2", "1024"]

    def points(one, digits):
        numbers = (one.difference, *one.interval)
        return [f"{100 * number:.{digits}f}" for number in numbers]

    assert "recalls {} points more of 512 tokens (Student's 95%: {} to {})".format(*points(mamba2, 2)) in page
    assert "Palimpsa-D w/o Meta {} ({} to {})".format(*points(twin, 2)) in page
    assert "by {} points in the mean, and the interval goes from {} to {}".format(*points(longer, 1)) in page
    margin = 100 * (mamba2.interval[1] - mamba2.interval[0]) / 2
    assert f"worth {100 * mamba2.difference:.1f} ± {margin:.1f} points of recall at L 512" in readme
    ratios = [
        pd.read_csv(path)["metaplasticity_mean"].dropna()
        for path in tracked("results/finetuning/runs/recall_further")
        if path.name == "history.csv" and "_converted" in str(path)
    ]
    last = [one.iloc[-1] for one in ratios]
    assert max(one.iloc[0] for one in ratios) < 0.001
    assert f"from under 0.001 to between {min(last):.0f} and {max(last):.0f}" in page
    losses = rows.loc[rows["measure"] == "validation_loss"].pivot_table("value", ["model", "seed"], "arm")
    ahead = losses["continued"] - losses["converted"]
    assert set(losses.index) == {(f"lm/{name}", seed) for name in LANGUAGE_PAIRS for seed in (1, 2, 3)}
    assert ahead.loc["lm/palimpsa_d_nometa_44m"].abs().max() < 4e-5
    assert "end within 0.00004 nats a token of their controls" in page
    own = [one for one in compare(rows.loc[rows["demonstration"] == "language"]) if one.model == "lm/mamba2_44m"]
    (loss,) = (one for one in own if one.measure == "validation_loss")
    leads = [ahead["lm/mamba2_44m"].min(), ahead["lm/mamba2_44m"].max(), -loss.difference]
    assert "by {:.3f} to {:.3f} nats and {:.3f} in the mean".format(*leads) in page
    assert "Student's interval, {:.3f} to {:.3f}, has 0 in it".format(*loss.interval) in page
    assert f"three pairs would have found {loss.detectable:.3f}" in page
    sure = [one for one in own if one.interval[0] > 0 or one.interval[1] < 0]
    assert (len(own), len(sure), {one.measure for one in sure} & {"phonebook", "repeat_copy"}) == (48, 7, set())
    assert max(one.difference for one in sure) < 0
    twins = [one for one in compare(rows) if one.model == "lm/palimpsa_d_nometa_44m"]
    sizes = [abs(one.difference) for one in twins if one.interval[0] > 0 or one.interval[1] < 0]
    assert (len(twins), len(sizes), f"{max(sizes):.4f}") == (48, 2, "0.0014")
    assert "two of Palimpsa-D, of 0.0014 and less" in page
    strengths = pd.read_csv(folder / "strength.csv").pivot_table("value", ["metric", "name", "at"], "strength")
    worth = strengths.loc["loss"].query("name.str.contains('_44m_')").diff(axis=1, periods=7)[1.0]
    assert {f"{-one:.4f}" for one in worth} == {"0.0001", "0.0002"}
    assert "without them the trained models lose 0.0001 to 0.0002 nats a token" in page
    recalled = strengths.loc["accuracy"].xs("L 1024", level="at")[[0.0, 1.0]].to_numpy().flat
    told = "recalls {:.1f}% of 1,024 tokens in place of {:.1f}%, and Palimpsa-M {:.1f}% in place of {:.1f}%"
    assert told.format(*(100 * one for one in recalled)) in page


def test_what_is_said_of_forced_forgetting_is_what_the_rows_say():
    results = words("docs/results.md")
    curves = pd.read_csv(REPOSITORY / "results/recipe/curves.csv").query("task == 'mqar_forced'")
    windows = [name for name in curves if name.startswith("window/")]
    ended = curves.dropna(subset=windows, how="all").sort_values("step").groupby(["model", "seed"]).tail(1)
    medians = ended.set_index("model")[windows].median(axis=1)
    slow = medians.index.isin(["palimpsa_m", "mamba2"])
    ends = [f"{one:.0e}" for part in (medians[~slow], medians[slow]) for one in (part.min(), part.max())]
    assert ends == ["4e+08", "1e+14", "4e+03", "1e+05"]
    assert "4 · 10^8 to 1 · 10^14 tokens, that of Mamba-2 and Palimpsa-M at 4 · 10^3 to 1 · 10^5" in results
    assert ((ended[windows] < 100).sum().sum(), ended[windows].notna().sum().sum()) == (9, 384)
    assert "of 384 heads nine are under 100" in results
    assert (len(ended), ended["model"].nunique()) == (24, 6)
    # The table is written by make figures.
    row, pairs = "| curriculum, A and d's bias decay by 0.1, L 1,024 | {} minus {} | 4 | ", []
    for pair in (
        ("Palimpsa-D", "D w/o Meta"),
        ("Palimpsa-D, scalar", "D w/o Meta"),
        ("Palimpsa-M", "Mamba-2 (M w/o Meta)"),
    ):
        pairs.append(results.partition(row.format(*pair))[2].partition(" |")[0])
    assert "twin at L 1,024, by {}, {} (scalar) and {} points (M)".format(*pairs) in results
    runs = pd.read_csv(REPOSITORY / "results/recipe/runs.csv").query("task == 'mqar_forced' and seq_len == 1024")
    best = runs.groupby("model")["test_accuracy"].mean().sort_values()
    assert (best.index[-1], f"{100 * best.iloc[-1]:.1f}") == ("gated_deltanet", "81.9")
    assert "Gated DeltaNet, at 81.9, is ahead of all" in results


def test_a_control_of_language_differs_from_its_pair_in_rate_and_freezing_alone():
    def what_trains(path):
        config = json.loads(path.read_text())
        optimizer = {name: value for name, value in config["optimizer"].items() if name not in ("lr", "freeze")}
        task = {name: value for name, value in config["task"].items() if name not in ("name", "directory", "data")}
        mixer = config["model"]["mixer"]
        return {
            "optimizer": optimizer,
            "task": task,
            "mixer": mixer,
            **{name: config[name] for name in ("seed", "recipe", "scale")},
            **{"weights": config["start"]["digest"], "precision": config["trainer"]["precision"]},
        }

    folder = REPOSITORY / "results/finetuning"
    controls = [path for path in tracked("results/finetuning/controls") if path.name == "config.json"]
    assert len(controls) == 6
    for path in controls:
        kind = "metaplastic_converted" if "metaplastic" in str(path) else "continued"
        pair = folder / f"runs/language_further/h200/mamba2_44m_{kind}/lr_0.001" / path.parent.name / path.name
        assert what_trains(path) == what_trains(pair), path


def test_what_is_said_of_the_controls_of_language_is_what_the_runs_say():
    from palimpsa.analysis.finetuning.controls import AS_IT_WAS, FROZEN, TRAINED, control_runs

    runs = pd.DataFrame(control_runs(REPOSITORY / "results/finetuning"))
    page = words("docs/finetuning.md")
    own = runs.loc[(runs["seed"] == 101) & (runs["kind"] == AS_IT_WAS), "loss"]
    assert f"spread the control over {own.max() - own.min():.3f}" in page
    means = runs.pivot_table("loss", "seed", "kind")
    kernel, trained = means[AS_IT_WAS] - means[FROZEN], means[FROZEN] - means[TRAINED]
    assert f"has {kernel[101]:.3f} (seed 101) and {kernel[103]:.3f} (seed 103) of the lead" in page
    assert f"The other {trained[101]:.3f} and {trained[103]:.3f} come with training the importances" in page
