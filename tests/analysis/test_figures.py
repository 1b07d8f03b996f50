"""Figures: what their axes hold, and that they can be drawn anywhere, to the same bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from palimpsa.analysis.build import build_all
from palimpsa.analysis.collect.collect import collect, write_collected
from palimpsa.analysis.draw.drawing import log_axis, new_figure, save_figure
from palimpsa.analysis.draw.figures import figure2, figure3
from palimpsa.analysis.draw.heads import figure3_heads
from palimpsa.analysis.statistics.curves import MAX_POINTS, mean_curve
from palimpsa.analysis.statistics.select_lr import choose_learning_rates, one_experiment
from palimpsa.analysis.statistics.summarize import summarize
from palimpsa.analysis.style import MODEL_STYLES, model_styles

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(run_writer, tmp_path_factory) -> Path:
    """Two models, two lengths, three seeds of two rates; one seed of GLA failed at its best rate."""
    root = tmp_path_factory.mktemp("figures")
    add_run = run_writer(root)
    for model in ("palimpsa_d", "gla"):
        for lr, accuracy in ((3e-3, 0.5), (1e-2, 0.9)):
            for seed in (1, 2, 3):
                failed = (model, lr, seed) == ("gla", 1e-2, 3)
                add_run(
                    model=model,
                    lr=lr,
                    seed=seed,
                    validation=[accuracy, accuracy - 0.01 * seed],
                    status="failed" if failed else "finished",
                    steps=200 + 100 * seed,
                )
    out = root / "mqar"
    write_collected(collect([root / "runs"], out), out)
    return out


def experiment(results, scale="laptop"):
    from palimpsa.runs.read import read_curves_csv, read_runs_csv

    rows = one_experiment(read_runs_csv(results / "runs.csv"), "mqar_curriculum", scale)
    return rows, read_curves_csv(results / "curves.csv"), choose_learning_rates(rows)


def draw_figure2(results, scale="laptop"):
    rows, _, chosen = experiment(results)
    return figure2(rows, summarize(rows, chosen), chosen, task="mqar_curriculum", scale=scale)


def test_figure2_has_a_bar_a_model_and_length_and_a_dot_a_seed(results):
    (axes,) = draw_figure2(results).axes
    bars = {c.get_label(): c.patches for c in axes.containers if isinstance(c, BarContainer)}
    assert {model: len(patches) for model, patches in bars.items()} == {"palimpsa_d": 2, "gla": 2}
    assert [bar.get_height() for bar in bars["palimpsa_d"]] == pytest.approx([0.9, 0.88])
    dots = {c.get_gid(): c.get_offsets() for c in axes.collections if c.get_gid()}
    assert {name: len(offsets) for name, offsets in dots.items()} == {
        "seeds-palimpsa_d-32": 3,
        "seeds-palimpsa_d-64": 3,
        "seeds-gla-32": 2,
        "seeds-gla-64": 2,
    }
    assert sorted(dots["seeds-palimpsa_d-64"][:, 1]) == pytest.approx([0.87, 0.88, 0.89])
    # Every dot lies over its own bar.
    bar = bars["palimpsa_d"][1]
    places = dots["seeds-palimpsa_d-64"][:, 0]
    assert bar.get_x() < places.min() < places.max() < bar.get_x() + bar.get_width()
    assert axes.get_ylim() == (0, 1.04)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["32\n8 pairs", "64\n16 pairs"]


def test_figure2_legend_names_state_rate_and_failures(results):
    (legend,) = draw_figure2(results).legends
    labels = [text.get_text() for text in legend.get_texts() if text.get_text()]
    assert labels == [
        "Palimpsa-D · state 1,024 · lr 0.01",
        "GLA · state 1,024 · lr 0.01",
        "one seed",
        "mean ±1 std (bar, whisker)",
        "median",
        "failed seeds (not in the mean)",
        "chance, 1.6%",
    ]


def test_only_the_laptop_figures_are_a_demonstration(results):
    rows, curves, chosen = experiment(results)
    for scale, text in (("laptop", "demonstrates the pipeline"), ("h200", "h200 scale")):
        place = {"task": "mqar_curriculum", "scale": scale}
        for figure in (
            draw_figure2(results, scale),
            figure3(rows, curves, chosen, **place),
            figure3_heads(rows, curves, chosen, **place),
        ):
            assert text in figure.get_suptitle()
            assert ("demonstrates" in figure.get_suptitle()) == (scale == "laptop")


def test_figure2_without_a_finished_run_of_a_model(add_run, tmp_path):
    add_run(model="gla", status="failed", steps=None)
    add_run(model="mamba2", steps=None)
    out = tmp_path / "mqar"
    write_collected(collect([tmp_path / "runs"], out), out)
    (report,) = build_all(out)
    assert report.notes[0] == "GLA: no finished run, no learning rate chosen"
    (legend,) = draw_figure2(out).legends
    assert "GLA · state 1,024 · no finished run" in [t.get_text() for t in legend.get_texts()]


def test_figure3_panels(results):
    rows, curves, chosen = experiment(results)
    figure = figure3(rows, curves, chosen, task="mqar_curriculum", scale="laptop")
    window, ratio, loss = figure.axes
    assert [len(axes.lines) for axes in figure.axes] == [2, 1, 2]
    assert [line.get_label() for line in ratio.lines] == ["palimpsa_d"]
    assert (window.get_yscale(), ratio.get_yscale(), loss.get_yscale()) == ("log", "symlog", "linear")
    # Seeds train 300, 400 and 500 steps: two of three remain up to 400. The third of GLA failed:
    # both remain up to 300.
    assert [line.get_xdata()[-1] for line in loss.lines] == [400, 300]


def test_figure3_heads_has_a_line_a_head(results):
    rows, curves, chosen = experiment(results)
    figure = figure3_heads(rows, curves, chosen, task="mqar_curriculum", scale="laptop")
    assert [len(axes.lines) for axes in figure.axes] == [4, 4, 4, 0]
    assert [text.get_text() for text in figure.axes[3].texts] == ["no importance\nto measure"]


def test_figure3_heads_names_a_ratio_that_is_zero(results):
    """A line along the axis would look like none."""
    rows, curves, chosen = experiment(results)
    ratios = [name for name in curves if name.startswith("metaplasticity/")]
    none = curves.assign(**{name: curves[name].where(curves[name].isna(), 0.0) for name in ratios})
    figure = figure3_heads(rows, none, chosen, task="mqar_curriculum", scale="laptop")
    notes = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert notes == [[], [], ["0, without\nmetaplasticity"], ["no importance\nto measure"]]


def test_figure3_heads_has_no_line_of_another_scales_heads(results):
    """curves.csv has the columns of all scales, empty where a model has no such head."""
    rows, curves, chosen = experiment(results)
    more = curves.assign(**{"window/layer7/head9": np.nan, "metaplasticity/layer7/head9": np.nan})
    figure = figure3_heads(rows, more, chosen, task="mqar_curriculum", scale="laptop")
    assert [len(axes.lines) for axes in figure.axes] == [4, 4, 4, 0]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["head 0", "head 1", "layer 0", "layer 1"]


def test_a_figure_is_as_wide_as_its_legend(tmp_path):
    figure = new_figure(4.0, 3.0)
    figure.add_subplot()
    labels = [f"a model with a long name, number {i}" for i in range(6)]
    figure.legend([Line2D([], []) for _ in labels], labels, loc="outside lower center", ncols=3)
    save_figure(figure, tmp_path / "figure")
    box, (width, _) = figure.legends[0].get_window_extent(), figure.canvas.get_width_height()
    assert -1 <= box.x0 < box.x1 <= width + 1
    narrow = new_figure(4.0, 3.0)
    narrow.legend([Line2D([], [])], ["short"], loc="outside lower center")
    save_figure(narrow, tmp_path / "narrow")
    assert narrow.get_figwidth() == 4.0


def frame(**seeds):
    rows = [(int(seed[1:]), *row) for seed, points in seeds.items() for row in points]
    return pd.DataFrame(rows, columns=["seed", "step", "loss"])


def test_mean_curve_is_over_the_seeds_still_training():
    own = frame(
        s1=[(0, 1.0), (10, 2.0), (20, 3.0)],
        s2=[(0, 3.0), (20, 5.0), (30, 6.0)],
        s3=[(0, 5.0), (10, 6.0)],
        s4=[(0, 7.0), (10, np.nan), (20, np.inf)],
    )
    curve = mean_curve(own, "loss")
    # Seed 2 has no record at 10: between its neighbours it is 4. Seed 4 ends at 0. At 30 one seed
    # of four remains: not drawn.
    assert curve["step"].tolist() == [0, 10, 20]
    assert curve["num_seeds"].tolist() == [4, 3, 2]
    assert curve["mean"].tolist() == [4.0, 4.0, 4.0]
    std = [np.std([1, 3, 5, 7], ddof=1), 2, np.sqrt(2)]
    assert (curve["high"] - curve["mean"]).tolist() == pytest.approx(std)
    assert (curve["mean"] - curve["low"]).tolist() == pytest.approx(std)


def test_a_geometric_mean_curve_is_not_the_largest_seeds():
    curve = mean_curve(frame(s1=[(0, 1e3), (10, 1e4)], s2=[(0, 1e3), (10, 1e12)]), "loss", geometric=True)
    assert curve["mean"].tolist() == pytest.approx([1e3, 1e8])
    assert np.log10(curve["high"]).tolist() == pytest.approx([3, 8 + np.std([4, 12], ddof=1)])
    assert np.log10(curve["low"]).tolist() == pytest.approx([3, 8 - np.std([4, 12], ddof=1)])


def test_a_geometric_mean_curve_of_a_ratio_that_is_0_stays_0():
    curve = mean_curve(frame(s1=[(0, 0.0), (10, 0.0)], s2=[(0, 0.0), (10, 0.0)]), "loss", geometric=True)
    assert (curve[["mean", "low", "high"]] == 0).all(axis=None)


@pytest.mark.parametrize("high", [3e3, 9e4, 2e8, 5e20])
def test_a_logarithmic_axis_has_labels_whatever_it_spans(high):
    figure = Figure()
    axes = figure.add_subplot()
    axes.plot([0, 1], [2e3, high])
    log_axis(axes)
    figure.draw_without_rendering()
    low, top = axes.get_ylim()
    ticks = zip(axes.get_yticks(), axes.get_yticklabels(), strict=True)
    assert 2 <= len([label for at, label in ticks if low <= at <= top and label.get_text()]) <= 15


def test_mean_curve_ends_where_fewer_than_half_of_the_seeds_remain():
    lengths = {"s1": 40, "s2": 40, "s3": 20, "s4": 10, "s5": 10}
    own = frame(**{seed: [(step, 1.0) for step in range(0, end + 1, 10)] for seed, end in lengths.items()})
    assert mean_curve(own, "loss")[["step", "num_seeds"]].to_numpy().tolist() == [[0, 5], [10, 5], [20, 3]]


def test_mean_curve_of_one_seed_and_of_none():
    curve = mean_curve(frame(s1=[(0, 1.0), (10, 2.0)]), "loss")
    assert curve["mean"].tolist() == [1.0, 2.0]
    assert curve[["low", "high"]].isna().all(axis=None)
    assert mean_curve(frame(s1=[(0, np.nan)]), "loss").empty


def test_mean_curve_of_a_long_run_is_thinned():
    points = [(step, float(step)) for step in range(0, 20_000, 10)]
    curve = mean_curve(frame(s1=points, s2=points), "loss")
    assert MAX_POINTS // 2 < len(curve) <= MAX_POINTS
    assert (curve["mean"] == curve["step"]).all()


def test_colours_are_fixed_and_distinct():
    some, more = (
        model_styles(["gla", "mine"]),
        model_styles(["palimpsa_d_nometa_k2", "mine", "gla", "mamba2"]),
    )
    assert some["gla"] == more["gla"] == MODEL_STYLES["gla"]
    assert some["mine"] == more["mine"]
    for styles in (more, model_styles(MODEL_STYLES)):
        assert len({style.color for style in styles.values()}) == len(styles)


def test_script_without_torch_gives_the_same_bytes(results, tmp_path):
    results = Path(shutil.copytree(results, tmp_path / "mqar"))
    script = str(REPOSITORY / "scripts" / "plot_figures.py")
    blocked = ("torch", "triton", "hydra", "omegaconf", "lightning", "wandb")
    code = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({blocked!r}))\n"
        f"sys.argv = [{script!r}, '--results', 'mqar']\n"
        f"runpy.run_path({script!r}, run_name='__main__')\n"
    )
    first = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src")},
        capture_output=True,
        text=True,
    )
    assert first.returncode == 0, first.stderr
    names = ["figure2_laptop", "sensitivity_laptop", "figure3_laptop", "figure3_heads_laptop"]
    files = [f"mqar/{name}.{suffix}" for name in names for suffix in ("png", "svg")]
    files.append("mqar/table_laptop.md")
    assert first.stdout.splitlines()[-9:] == files
    assert "Palimpsa-D" in first.stdout
    drawn = {name: (tmp_path / name).read_bytes() for name in files}
    assert drawn["mqar/figure2_laptop.png"].startswith(b"\x89PNG")
    assert all(len(content) > 500 for content in drawn.values())
    # In this process, after other figures, into files that exist.
    (report,) = build_all(results)
    assert {f"mqar/{path.name}": path.read_bytes() for path in report.paths} == drawn
    assert sorted(path.name for path in results.iterdir()) == sorted(
        [path.name for path in report.paths] + ["curves.csv", "provenance.json", "runs.csv"]
    )


def test_every_task_and_scale_has_files_of_its_own(add_run, run_script, tmp_path):
    add_run(steps=None)
    add_run(scale="h200", steps=None)
    add_run(scale="h200", lr=0.01, steps=None)
    add_run(task="mqar_scratch", lengths=[32], validation=[0.5], steps=100)
    out = tmp_path / "mqar"
    write_collected(collect([tmp_path / "runs"], out), out)
    code, printed, err = run_script("plot_figures.py", "--results", "mqar", "--scale", "h200")
    assert (code, err) == (0, "")
    assert "demonstrates" not in printed
    assert "note: mqar_curriculum/h200: curves.csv holds no curve" in printed
    assert {path.name for path in out.glob("*.svg")} == {
        "figure2_h200.svg",
        "figure2_laptop.svg",
        "figure2_scratch_laptop.svg",
        # Of models with several rates alone.
        "sensitivity_h200.svg",
        "figure3_scratch_laptop.svg",
        "figure3_heads_scratch_laptop.svg",
    }
    assert {path.name for path in out.glob("*.md")} == {
        "table_h200.md",
        "table_laptop.md",
        "table_scratch_laptop.md",
    }


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("no-folder", "runs.csv: cannot be read as a CSV file"),
        ("no-curves", "curves.csv: cannot be read as a CSV file"),
        ("bad-column", "runs.csv: column lr is missing"),
        ("no-rows", "runs.csv: holds no runs"),
        ("unwritable", "Is a directory"),
        ("scale", "no runs of scale paper: mqar/runs.csv holds laptop"),
    ],
)
def test_script_errors_are_one_line(add_run, run_script, tmp_path, problem, message):
    out = tmp_path / "mqar"
    if problem != "no-folder":
        add_run(steps=50)
        write_collected(collect([tmp_path / "runs"], out), out)
    if problem == "no-curves":
        (out / "curves.csv").unlink()
    if problem == "bad-column":
        text = (out / "runs.csv").read_text()
        (out / "runs.csv").write_text(text.replace(",lr,", ",rate,", 1))
    if problem == "no-rows":
        (out / "runs.csv").write_text((out / "runs.csv").read_text().splitlines()[0] + "\n")
    if problem == "unwritable":
        # A folder where a file should be: refused to every user, root too.
        (out / "figure2_laptop.png").mkdir()
    arguments = ["--scale", "paper"] if problem == "scale" else []
    code, _, err = run_script("plot_figures.py", "--results", "mqar", *arguments)
    assert code == 1
    assert message in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
