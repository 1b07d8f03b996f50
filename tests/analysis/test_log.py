"""The numbers in docs/LOG.md: those of the committed CSV, an entry by the commits that its runs were made at."""

from pathlib import Path

import pandas as pd
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
COMMITTED = REPOSITORY / "results/mqar"


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


PAIRS = {"palimpsa_d": "palimpsa_d_nometa", "palimpsa_m": "mamba2"}


@pytest.fixture(scope="module")
def grid():
    """Of the entry "the whole grid": its text; runs.csv by task; test accuracy in % by length, model, rate and seed."""
    runs = pd.read_csv(COMMITTED / "runs.csv").query("scale == 'h200'")
    runs = runs[runs["git_revision"].str[:7].isin(["37dc89f", "aa0660c", "48937cf"])].sort_values("seed")
    (entry,) = (part for part in (REPOSITORY / "docs/LOG.md").read_text().split("\n## ") if "the whole grid at" in part)
    tasks = {task.removeprefix("mqar_"): rows for task, rows in runs.groupby("task")}
    accuracy = 100 * tasks["curriculum"].set_index(["seq_len", "model", "lr", "seed"])["test_accuracy"].dropna()
    return " ".join(entry.split()), tasks, accuracy.sort_index()


def test_the_grids_numbers_of_palimpsa_and_its_twins(grid, difference):
    log, tasks, accuracy = grid
    assert {"finished"} == {status for rows in tasks.values() for status in rows["status"]}
    sizes = {task: len(rows[["model", "lr", "seed"]].drop_duplicates()) for task, rows in tasks.items()}
    assert sizes == {"ablation": 16, "curriculum": 256, "long": 4, "scratch": 24}

    gaps = {}
    for label, (ours, twin) in zip("DM", PAIRS.items(), strict=True):
        for length, text in ((512, "512"), (1024, "1,024")):
            values = [(accuracy[length, ours, lr], accuracy[length, twin, lr]) for lr in (1e-3, 2.15e-3, 4.64e-3, 1e-2)]
            cells = [difference(*pair) for pair in values]
            assert f"| Palimpsa-{label}, L {text} | {' | '.join(cells)} |" in log
            gaps[ours, length] = [tuple(float(number.strip("()")) for number in cell.split()) for cell in cells]
    assert [abs(gap) > 2 * error for row in gaps.values() for gap, error in row].count(True) == 1
    assert sum(gap > 0 for (_, length), row in gaps.items() for gap, _ in row if length == 1024) == 7
    longest = accuracy[1024]
    ours, twin = longest["palimpsa_d", 1e-2], longest["palimpsa_d_nometa", 1e-2]
    assert f"({ours.mean():.1f} against {twin.mean():.1f}, mostly by two seeds of eight)" in log
    assert ours.sort_values().iloc[:6].mean() - twin.mean() < (ours.mean() - twin.mean()) / 2
    # Of two means of eight, t tests at 5% find a difference of 3.01 standard errors in 80% of the cases.
    powers = [3.01 * gaps[ours, 1024][2][1] for ours in PAIRS]
    assert "if it is of {:.0f} points (Palimpsa-D) or {:.0f} (Palimpsa-M)".format(*powers) in log
    over_rates, best = (longest.groupby(["model", "seed"]).agg(how) for how in ("mean", "max"))
    means = [difference(over_rates[ours], over_rates[twin]) for ours, twin in PAIRS.items()]
    assert "over the four rates is {} for Palimpsa-D and {} for Palimpsa-M".format(*means) in log
    told = [difference(best[ours], best[twin]) for ours, twin in PAIRS.items()]
    assert "each seed at its best rate on the test, it is {} and {}.".format(*told) in log
    repeats = 100 * tasks["ablation"].query("seq_len == 1024").set_index(["model", "seed"])["test_accuracy"]
    on_one_card = [pd.concat([repeats[m], longest[m, 4.64e-3][2:]]) for m in ("palimpsa_d", "palimpsa_d_nometa")]
    text = f"the means are {{:.1f}} and {{:.1f}}, and the gap is {difference(*on_one_card)}."
    assert text.format(*(seeds.mean() for seeds in on_one_card)) in log

    for text, model in {
        "Palimpsa-D has {}": "palimpsa_d",
        "and its twin {}, Palimpsa": "palimpsa_d_nometa",
        "Palimpsa-M {} and": "palimpsa_m",
        "and Mamba-2 {}.": "mamba2",
        "GLA, the last at {},": "gla",
    }.items():
        seeds = longest[model, 4.64e-3]
        assert text.format(f"{seeds.mean():.1f} ± {seeds.std():.1f}") in log
    delta, palimpsa = ([accuracy[n, model, lr] for n in (1024, 512)] for model, lr in CHOSEN[:2])
    told = [difference(*pair) for pair in zip(delta, palimpsa, strict=True)]
    assert "is {} above Palimpsa-D, and at L 512 {};".format(*told) in log
    control = longest["palimpsa_d_nometa_wide", 2.15e-3]
    assert f"is {difference(control, delta[0])} above Gated DeltaNet" in log
    assert f"GLA is {difference(longest['mamba2', 4.64e-3], longest['gla', 4.64e-3])} below Mamba-2" in log
    normal = tasks["ablation"].query("model == 'palimpsa_d_normal_forgetting'").set_index("seq_len")["test_accuracy"]
    costs = [difference(accuracy[n, "palimpsa_d", 4.64e-3], 100 * normal[n]) for n in (512, 1024)]
    assert "costs it {} points ({} at L 512 and {} at L 1,024".format(*costs[0].split(" ("), costs[1]) in log


CHOSEN = [("gated_deltanet", 2.15e-3), ("palimpsa_d", 4.64e-3), ("palimpsa_d_nometa", 4.64e-3), ("mamba2", 4.64e-3)]
CHOSEN += [("gla", 4.64e-3), ("palimpsa_m", 4.64e-3), ("palimpsa_d_nometa_wide", 2.15e-3)]


def test_the_grids_numbers_of_steps_and_heads(grid):
    log, tasks, accuracy = grid
    curves = pd.read_csv(COMMITTED / "curves.csv").query("scale == 'h200'").sort_values("step")
    keys = ["model", "lr", "seed"]

    # The long run of the twin is the ablation's, with more steps.
    twin = {"model": "palimpsa_d_nometa", "lr": 4.64e-3, "seed": 1}
    of = {task: rows[(rows[keys] == pd.Series(twin)).all(axis=1)] for task, rows in curves.groupby("task")}
    losses = [of[f"mqar_{task}"].set_index("step")["loss"].dropna() for task in ("ablation", "long")]
    assert len(losses[0]) > 180
    assert losses[0].equals(losses[1][losses[0].index])
    ends = [tasks[task].query("seq_len == 1024").set_index(keys)["test_accuracy"] for task in ("long", "ablation")]
    text = "the twin's seed 1 comes to {:.1f} from {:.1f} ("
    assert text.format(*(100 * end[tuple(twin.values())] for end in ends)) in log
    last = curves.query("task == 'mqar_long' and stage == 4 and seed == 1").dropna(subset="loss")
    for text, model in {
        "was {:.2f} and {:.2f} for Mamba-2": "mamba2",
        "{:.2f} and {:.2f} for Palimpsa-M": "palimpsa_m",
        "and {:.2f} and {:.2f} for the control": "palimpsa_d_nometa_wide",
    }.items():
        loss = last[last["model"] == model].set_index("step")["loss"]
        steps = loss.index - (loss.index[-1] - 16_000)
        assert text.format(*(loss[(steps > end - 500) & (steps <= end)].mean() for end in (4_000, 16_000))) in log
    assert f"ends at {100 * ends[0]['palimpsa_d_nometa_wide'].item():.1f}." in log

    curves = curves[(curves["task"] == "mqar_curriculum") & (curves["stage"] == 4)]
    ends, correlations = {}, {}
    for model, lr in CHOSEN:
        runs = curves[(curves["model"] == model) & (curves["lr"] == lr)]
        windows = runs.dropna(subset="window_mean").groupby("seed").last().filter(like="window/layer")
        num_kept = (windows > 1e7).sum(axis=1)
        correlations[model] = num_kept.corr(accuracy[1024, model, lr])
        loss = runs.dropna(subset="loss").set_index(["seed", "step"])["loss"]
        last_step = loss.reset_index().groupby("seed")["step"].max()
        ends[model] = [
            pd.Series({s: loss[s].loc[last_step[s] - before - 400 : last_step[s] - before].mean() for s in range(1, 9)})
            for before in (600, 0)
        ]
    for text, model, seed in (
        ("GLA's seed 7 from {:.2f} to {:.2f} (others come to {:.2f})", "gla", 7),
        ("the twin's seed 1 from {:.2f} to {:.2f} (others to {:.2f})", "palimpsa_d_nometa", 1),
    ):
        before, after = ends[model]
        assert text.format(before[seed], after[seed], after.min()) in log
    text = (
        "a correlation of {palimpsa_d_nometa:.2f} for the twin, {mamba2:.2f} for Mamba-2, {gla:.2f} for GLA, "
        "{palimpsa_m:.2f} for Palimpsa-M, {gated_deltanet:.2f} for Gated DeltaNet and {palimpsa_d:.2f} for Palimpsa-D, "
        "and not for the control ({palimpsa_d_nometa_wide:.2f})"
    )
    assert text.format(**correlations) in log
    at = tasks["curriculum"].merge(pd.DataFrame(CHOSEN, columns=["model", "lr"])).query("seq_len == 256")
    early = (at["ended_by"] == "accuracy").groupby(at["model"]).sum()
    assert early["gla"] == 1
    assert early.drop("gla").min() == 6


def test_the_grids_numbers_from_scratch_and_of_few_seeds(grid):
    log, tasks, _ = grid
    end = tasks["scratch"].set_index(["model", "lr"]).sort_index()
    for text, place, column in (
        ("At 1e-3 it ended at {:.1f} and {:.1f}", ("palimpsa_d_nometa", 1e-3), "test_accuracy"),
        ("at 2.15e-3 at {:.1f} and {:.1f}; at", ("palimpsa_d_nometa", 2.15e-3), "test_accuracy"),
        ("99% of the validation after {:,} and {:,} steps", ("palimpsa_d_nometa", 4.64e-3), "steps"),
        ("and Palimpsa-D after {:,} and {:,}.", ("palimpsa_d", 4.64e-3), "steps"),
        ("GLA: {:.1f} and {:.1f} at 2.15e-3", ("gla", 2.15e-3), "test_accuracy"),
        ("{:.1f} and {:.1f} at 4.64e-3; Palimpsa-M", ("gla", 4.64e-3), "test_accuracy"),
        ("Palimpsa-M: {:.1f} and {:.1f}, then", ("palimpsa_m", 2.15e-3), "test_accuracy"),
        ("then {:.1f} and {:.1f}.", ("palimpsa_m", 4.64e-3), "test_accuracy"),
    ):
        values = end.loc[place].sort_values("seed")[column] * (100 if column == "test_accuracy" else 1)
        assert text.format(*values) in log

    figure = tasks["curriculum"].dropna(subset="test_accuracy")
    scores = 100 * figure.groupby(["model", "lr", "seed"])["validation_accuracy"].mean()
    chosen = {}
    for num_seeds in (2, 4, 8):
        means = scores[scores.index.get_level_values("seed") <= num_seeds].groupby(["model", "lr"]).mean()
        chosen[num_seeds] = dict(means.groupby("model").idxmax().tolist())
    moved = {model: (chosen[2][model], lr) for model, lr in chosen[8].items() if chosen[2][model] != lr}
    assert moved == {
        "palimpsa_d_nometa": (1e-3, 4.64e-3),
        "palimpsa_m": (2.15e-3, 4.64e-3),
        "gla": (2.15e-3, 4.64e-3),
        "gated_deltanet": (4.64e-3, 2.15e-3),
    }
    assert [model for model, lr in chosen[8].items() if chosen[4][model] != lr] == ["gated_deltanet"]
    tie = [means["gated_deltanet", lr] for lr in (4.64e-3, 2.15e-3)]
    assert "over lengths {:.2f} and {:.2f})".format(*tie) in log
