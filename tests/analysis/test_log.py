"""The numbers in docs/LOG.md: those of the committed CSV, an entry by the commits that its runs were made at."""

from pathlib import Path

import pandas as pd

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


def test_the_logs_numbers_of_the_whole_grid_are_the_csvs():
    runs = pd.read_csv(COMMITTED / "runs.csv").query("scale == 'h200'")
    runs = runs[runs["git_revision"].str[:7].isin(["37dc89f", "aa0660c", "48937cf"])].sort_values("seed")
    log = " ".join((REPOSITORY / "docs/LOG.md").read_text().split())
    assert set(runs["status"]) == {"finished"}
    tasks = dict(list(runs.groupby("task")))
    curriculum, scratch, longer = (tasks[f"mqar_{name}"] for name in ("curriculum", "scratch", "long"))
    sizes = [len(rows[["model", "lr", "seed"]].drop_duplicates()) for rows in (curriculum, scratch, longer)]
    assert sizes == [256, 24, 4]

    accuracy = 100 * curriculum.set_index(["seq_len", "model", "lr"])["test_accuracy"].dropna()
    cells = accuracy.groupby(level=[0, 1, 2]).agg(["mean", "std", "var", "size"])
    cells["square"] = cells["var"] / cells["size"]

    def difference(ours, twin):
        return f"{ours['mean'] - twin['mean']:.1f} ± {(ours['square'] + twin['square']) ** 0.5:.1f}"

    rates = sorted(curriculum["lr"].unique())
    for label, ours, twin in (("D", "palimpsa_d", "palimpsa_d_nometa"), ("M", "palimpsa_m", "mamba2")):
        for length, text in ((512, "512"), (1024, "1,024")):
            found = [difference(cells.loc[length, ours, lr], cells.loc[length, twin, lr]) for lr in rates]
            assert f"| Palimpsa-{label}, L {text} | {' | '.join(found)} |" in log
    at = {model: cells.loc[1024, model, 4.64e-3] for model in curriculum["model"].unique()}
    at |= {model: cells.loc[1024, model, 2.15e-3] for model in ("gated_deltanet", "palimpsa_d_nometa_wide")}
    for text, model in {
        "Palimpsa-D has {}": "palimpsa_d",
        "and its twin {}, Palimpsa": "palimpsa_d_nometa",
        "Palimpsa-M {} and": "palimpsa_m",
        "and Mamba-2 {}.": "mamba2",
        "GLA is last, {},": "gla",
    }.items():
        assert text.format(f"{at[model]['mean']:.1f} ± {at[model]['std']:.1f}") in log
    assert f"by {difference(at['gated_deltanet'], at['palimpsa_d'])} over Palimpsa-D" in log
    assert f"by {difference(at['palimpsa_d_nometa_wide'], at['gated_deltanet'])} over Gated DeltaNet" in log
    ours, twin = (accuracy[1024, model, 1e-2] for model in ("palimpsa_d", "palimpsa_d_nometa"))
    assert f"{ours.mean():.1f} against {twin.mean():.1f}, mostly by two seeds" in log
    assert ours.sort_values().iloc[:6].mean() - twin.mean() < (ours.mean() - twin.mean()) / 2

    third = curriculum[(curriculum["seq_len"] == 256) & (curriculum["lr"] == 4.64e-3)]
    steps = third.groupby("model")["steps"].median().map("{:,.0f}".format)
    text = "in {palimpsa_d_nometa} steps with the median seed, Palimpsa-D in {palimpsa_d}, Mamba-2 in {mamba2} and {}"
    assert text.format(f"Palimpsa-M in {steps['palimpsa_m']}.", **steps) in log
    keys = ["model", "lr", "seed", "seq_len"]
    both = longer[longer["seq_len"] == 1024].merge(curriculum, on=keys, suffixes=("", "_short")).set_index("model")
    assert len(both) == 4
    assert (both["device"] != both["device_short"]).all()
    for text, model in {
        "the twin comes to {:.1f} (from {:.1f})": "palimpsa_d_nometa",
        "of Mamba-2 to {:.1f} ({:.1f})": "mamba2",
        "of Palimpsa-M to {:.1f} ({:.1f})": "palimpsa_m",
        "of the control to {:.1f} ({:.1f})": "palimpsa_d_nometa_wide",
    }.items():
        assert text.format(*100 * both.loc[model, ["test_accuracy", "test_accuracy_short"]].astype(float)) in log

    end = scratch.set_index(["model", "lr"])
    for text, place, column in (
        ("At 1e-3 it ended at {:.1f} and {:.1f}", ("palimpsa_d_nometa", 1e-3), "test_accuracy"),
        ("reaches 99% after {:,} and {:,} steps, where", ("palimpsa_d_nometa", 4.64e-3), "steps"),
        ("Palimpsa-D needs {:,} and {:,}.", ("palimpsa_d", 4.64e-3), "steps"),
        ("GLA: {:.1f} and {:.1f} at 2.15e-3", ("gla", 2.15e-3), "test_accuracy"),
        ("{:.1f} and {:.1f} at 4.64e-3; Palimpsa-M", ("gla", 4.64e-3), "test_accuracy"),
        ("Palimpsa-M: {:.1f} and {:.1f}, then", ("palimpsa_m", 2.15e-3), "test_accuracy"),
        ("then {:.1f} and {:.1f}.", ("palimpsa_m", 4.64e-3), "test_accuracy"),
    ):
        values = end.loc[place, column] * (100 if column == "test_accuracy" else 1)
        assert text.format(*values) in log

    scores = (
        100 * curriculum.dropna(subset="test_accuracy").groupby(["model", "lr", "seed"])["validation_accuracy"].mean()
    )
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
