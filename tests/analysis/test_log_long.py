"""The numbers in docs/LOG.md, of the entry "four times the steps": those of the committed CSV."""

from pathlib import Path

import pandas as pd
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
COMMITTED = REPOSITORY / "results/mqar"
KEYS = ["model", "lr", "seed"]


@pytest.fixture(scope="module")
def log():
    """The entry's lines of tables, and its text in one line."""
    (entry,) = (
        part for part in (REPOSITORY / "docs/LOG.md").read_text().split("\n## ") if "four times the steps," in part
    )
    return entry.splitlines(), " ".join(entry.split())


@pytest.fixture(scope="module")
def runs():
    return pd.read_csv(COMMITTED / "runs.csv").query("scale == 'h200'").sort_values("seed")


@pytest.fixture(scope="module")
def losses():
    """The training loss by step, of every task, model, rate and seed."""
    curves = pd.read_csv(COMMITTED / "curves.csv").query("scale == 'h200'").dropna(subset="loss")
    return {key: rows.set_index("step")["loss"].sort_index() for key, rows in curves.groupby(["task", *KEYS])}


def test_the_long_runs(log, runs, losses, difference):
    lines, text = log
    last = runs[(runs["seq_len"] == 1024)].set_index(["task", "model", "lr"]).sort_index()
    long = last.loc["mqar_long"]
    assert long["seed"].tolist() == [1, 2] * 7
    assert set(long["steps"]) == {16_000}
    accuracy, gains, by = {}, {}, {}
    for (model, lr), rows in long.groupby(["model", "lr"]):
        for seed in (1, 2):
            loss = losses["mqar_long", model, lr, seed]
            steps = loss.index - (loss.index[-1] - 16_000)
            by[model, seed] = {e: loss[(steps > e - 500) & (steps <= e)].mean() for e in range(4000, 16001, 4000)}
        accuracy[model] = 100 * rows["test_accuracy"]
        eight = 100 * last.loc[("mqar_curriculum", model, lr), "test_accuracy"]
        assert len(eight) == 8
        gains[model] = accuracy[model].mean() - eight.mean()
        cells = [
            rows["label"].iloc[0],
            f"{1000 * lr:g}e-3",
            *(", ".join(f"{by[model, seed][end]:.2f}" for seed in (1, 2)) for end in (4000, 16_000)),
            ", ".join(f"{value:.1f}" for value in accuracy[model]),
            f"{eight.mean():.1f} ± {eight.std():.1f}",
        ]
        assert f"| {' | '.join(cells)} |" in lines
    means = {model: values.mean() for model, values in accuracy.items()}
    ordered = sorted(means, key=lambda model: means[model])
    assert (ordered[0], ordered[-2:]) == ("gla", ["gated_deltanet", "palimpsa_d_nometa_wide"])
    gaps = [
        difference(accuracy[ours], accuracy[twin])
        for ours, twin in (("palimpsa_d", "palimpsa_d_nometa"), ("palimpsa_m", "mamba2"))
    ]
    assert f"minus its twin is {gaps[0].replace(')', '; standard errors in brackets)')}" in text
    assert f"Palimpsa-M minus Mamba-2 {gaps[1]}:" in text
    assert f"Means are {min(gains.values()):.1f} to {max(gains.values()):.1f} points above" in text
    assert (
        "has a loss of {:.2f} by step 8,000 and of {:.2f} by 12,000".format(*list(by["gla", 1].values())[1:3]) in text
    )
    readme = " ".join((REPOSITORY / "README.md").read_text().split())
    order = ["palimpsa_d_nometa_wide", "gated_deltanet", "palimpsa_d", "palimpsa_d_nometa", "palimpsa_m", "mamba2"]
    told = (
        "the control {:.1f}, Gated DeltaNet {:.1f}, Palimpsa-D {:.1f} and its twin {:.1f}, "
        "Palimpsa-M {:.1f} and Mamba-2 {:.1f}, GLA {:.1f}."
    )
    assert told.format(*(means[model] for model in [*order, "gla"])) in readme


def test_the_same_seed_on_the_same_card(log, runs, losses):
    _, text = log
    last = runs[runs["seq_len"] == 1024].set_index(["task", *KEYS])["device"]
    first_differences, same = {}, {}
    for (task, *run), card in last.items():
        if task not in ("mqar_ablation", "mqar_curriculum") or last.get(("mqar_long", *run)) != card:
            continue
        ours, other = losses["mqar_long", *run], losses[task, *run]
        both = ours.index.intersection(other.index)
        assert len(both) > 160
        differing = both[ours[both] != other[both]]
        at = runs[(runs[KEYS] == run).all(axis=1) & (runs["seq_len"] >= 512) & runs["task"].isin(["mqar_long", task])]
        at = at.pivot(index="seq_len", columns="task", values="test_accuracy")
        if len(differing):
            first_differences[tuple(run)] = differing[0], 100 * abs(at.loc[512, "mqar_long"] - at.loc[512, task])
        else:
            same[tuple(run)] = [f"{100 * at.loc[1024, name]:.1f}" for name in (task, "mqar_long")]
    assert (len(same), len(first_differences)) == (2, 6)
    steps, moved = (max(values) for values in zip(*first_differences.values(), strict=True))
    assert f"six differ by step {steps} or before, and by up to {moved:.1f} points at L 512" in text
    readme = " ".join((REPOSITORY / "README.md").read_text().split())
    assert f"at L 512 by up to {moved:.1f} on another machine with the same card" in readme
    assert "of eight runs that were begun again on another machine with the same card, two went the same way" in readme
    for run, told in {
        ("palimpsa_d_nometa", 4.64e-3, 1): "the twin's seed 1 went from {} to {}",
        ("gated_deltanet", 4.64e-3, 2): "Gated DeltaNet's seed 2 from {} to {}.",
    }.items():
        assert told.format(*same[run]) in text


def test_the_runs_from_scratch_at_several_rates(log, runs):
    _, text = log
    scratch = runs[runs["task"] == "mqar_scratch"]
    own = scratch[scratch["model"] == "gated_deltanet"].set_index("lr").sort_index()
    low, high = own.loc[2.15e-3], own.loc[4.64e-3]
    ends = [f"{100 * value:.1f}" for value in low["test_accuracy"]]
    assert "ends at {} and {} after {:,} steps".format(*ends, low["steps"].max()) in text
    assert set(low["ended_by"]) == {"cap"}
    assert "99% of the validation after {:,} and {:,}.".format(*high["steps"]) in text
    assert set(high["ended_by"]) == {"accuracy"}
    means = scratch.groupby(["model", "lr"])["validation_accuracy"].mean().unstack("lr")
    several = means[means.notna().sum(axis=1) > 1]
    assert len(several) == 4
    assert (several.idxmax(axis=1) == 4.64e-3).all()
