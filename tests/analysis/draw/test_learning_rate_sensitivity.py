"""The learning-rate sensitivity figure: its dots are the cells of runs.csv, its marks those of Figure 2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection

from palimpsa.analysis.build import build_runs
from palimpsa.analysis.collect.result_files import collect, write_collected
from palimpsa.analysis.draw.canvas import save_figure
from palimpsa.analysis.draw.figure2 import figure2
from palimpsa.analysis.draw.learning_rate_sensitivity import learning_rate_sensitivity, sensitivity_points
from palimpsa.analysis.statistics.learning_rate import choose_learning_rates, one_experiment
from palimpsa.analysis.statistics.summary import summarize
from palimpsa.runs.read import read_runs_csv

PLACE = {"task": "mqar_curriculum", "scale": "laptop"}


def rows_below(root: Path, task: str = "mqar_curriculum"):
    out = root / "mqar"
    write_collected(collect([root / "runs"], out), out)
    return one_experiment(read_runs_csv(out / "runs.csv"), task, "laptop")


def draw(rows, task: str = "mqar_curriculum"):
    return learning_rate_sensitivity(rows, choose_learning_rates(rows), task=task, scale="laptop")


def dots(figure) -> dict[str, np.ndarray]:
    """The dots by gid, seeds-MODEL-LENGTH-RATE: [seeds, 2]."""
    found = [c for axes in figure.axes for c in axes.collections if isinstance(c, PathCollection)]
    return {str(c.get_gid()): np.asarray(c.get_offsets()) for c in found if len(c.get_offsets())}


def panels(figure) -> dict[str, Axes]:
    return {str(axes.get_gid()): axes for axes in figure.axes}


def crosses(axes) -> dict[float, str]:
    """Rate -> the number beside its cross."""
    places = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "X"]
    return dict(zip(places, [text.get_text() for text in axes.texts], strict=True))


@pytest.fixture(scope="module")
def rows(run_writer, tmp_path_factory):
    """Two phases: Palimpsa-D has 5 seeds at its best rate and 2 at the others; every seed of GLA failed at 1e-2."""
    root = tmp_path_factory.mktemp("sensitivity")
    add_run = run_writer(root)
    for lr, accuracy, seeds in ((1e-3, 0.5, 2), (3e-3, 0.9, 5), (1e-2, 0.7, 2)):
        for seed in range(1, seeds + 1):
            # Test and validation accuracy differ: the figure shows the former.
            test = [accuracy + 0.01 * seed, accuracy - 0.02 * seed]
            add_run(lr=lr, seed=seed, validation=[accuracy, accuracy], test=test, steps=None)
    for lr in (1e-3, 3e-3, 1e-2):
        for seed in (1, 2):
            failed = lr == 1e-2 or (lr, seed) == (3e-3, 2)
            status = "failed" if failed else "finished"
            # A failed run may have ended its first lengths.
            add_run(model="gla", lr=lr, seed=seed, validation=[0.6, 0.3], status=status, steps=None)
    return rows_below(root)


@pytest.fixture(scope="module")
def figure(rows):
    return draw(rows)


def test_every_finished_stage_of_runs_csv_is_a_dot(rows, figure):
    drawn = dots(figure)
    csv = rows.loc[(rows["status"] == "finished") & rows["test_accuracy"].notna()]
    assert len(csv) == 2 * (9 + 3)
    expected = {
        f"seeds-{model}-{seq_len}-{lr:g}": sorted(own["test_accuracy"])
        for (model, seq_len, lr), own in csv.groupby(["model", "seq_len", "lr"])
    }
    assert {name: sorted(places[:, 1]) for name, places in drawn.items()} == expected
    # Each cloud stands at its rate, and keeps far from the next one.
    for name, places in drawn.items():
        rate = float(name.rpartition("-")[2])
        assert np.abs(np.log10(places[:, 0] / rate)).max() < np.log10(3) / 3


def test_axes_are_logarithmic_and_say_what_they_show(figure):
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}
    bottom = figure.axes[-3:]
    assert {axes.get_xlabel() for axes in bottom} == {"learning rate"}
    assert [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()] == [
        "L 32, 8 pairs\ntest accuracy",
        "L 64, 16 pairs\ntest accuracy",
    ]
    ticks = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert ticks == ["0.001", "0.003", "0.01"]
    (legend,) = figure.legends
    caption = legend.get_title().get_text().replace("\n", " ")
    assert caption.startswith(
        "Test accuracy; the rate that the bars of these runs show was chosen by mean validation accuracy."
    )
    assert "demonstrates the pipeline" in figure.get_suptitle()


def test_failed_seeds_are_counted_below_zero_and_break_the_line(figure):
    gla = panels(figure)["gla-32"]
    assert crosses(gla) == {3e-3: "1", 1e-2: "2"}
    assert all(line.get_ydata()[0] < 0 for line in gla.lines if line.get_marker() == "X")
    assert gla.get_ylim()[0] < -0.1
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()][-1] == "failed"
    line = next(line for line in gla.lines if len(line.get_xdata()) == 3 and line.get_linestyle() != "None")
    assert line.get_ydata()[:2].tolist() == [0.6, 0.6]
    assert np.isnan(line.get_ydata()[2])


def test_no_place_for_failures_where_nothing_failed(add_run, tmp_path):
    for lr in (1e-3, 1e-2):
        add_run(lr=lr, steps=None)
    figure = draw(rows_below(tmp_path))
    assert figure.axes[0].get_ylim() == (0, 1.04)
    (legend,) = figure.legends
    assert not any("failed" in text.get_text() for text in legend.get_texts())


def test_mean_and_deviation_are_those_of_the_seeds(rows, figure):
    axes = panels(figure)["palimpsa_d-64"]
    tested = rows.loc[(rows["model"] == "palimpsa_d") & (rows["seq_len"] == 64)].groupby("lr")["test_accuracy"]
    means = axes.lines[0].get_ydata()
    assert means == pytest.approx(tested.mean().to_numpy())
    (whiskers,) = [c for c in axes.collections if not isinstance(c, PathCollection)]
    low, high = np.array([segment[:, 1] for segment in whiskers.get_segments()]).T
    assert high - means == pytest.approx(tested.std(ddof=1).to_numpy())
    assert means - low == pytest.approx(tested.std(ddof=1).to_numpy())


def test_whiskers_stop_at_zero_and_a_single_seed_has_none(add_run, tmp_path):
    for seed, accuracy in ((1, 0.02), (2, 1.0)):
        add_run(lr=1e-3, seed=seed, validation=[accuracy], lengths=[32], steps=None)
    add_run(lr=1e-2, seed=1, validation=[0.7], lengths=[32], steps=None)
    (axes,) = draw(rows_below(tmp_path)).axes
    (whiskers,) = [c for c in axes.collections if not isinstance(c, PathCollection)]
    assert [segment[:, 1].min() for segment in whiskers.get_segments()] == [0.0, 0.7]
    assert [segment[:, 1].max() for segment in whiskers.get_segments()][1] == 0.7


def test_the_marked_rate_and_its_dots_are_those_of_figure_2(rows, figure):
    chosen = choose_learning_rates(rows)
    assert dict(zip(chosen["model"], chosen["lr"], strict=True)) == {"palimpsa_d": 3e-3, "gla": 1e-3}
    bars = figure2(rows, summarize(rows, chosen), chosen, **PLACE)
    shown = {str(c.get_gid()): np.asarray(c.get_offsets())[:, 1] for c in bars.axes[0].collections if c.get_gid()}
    drawn = dots(figure)
    for name, axes in panels(figure).items():
        if name == "None":
            continue
        model, _, seq_len = name.rpartition("-")
        lr = chosen.set_index("model").loc[model, "lr"]
        (band,) = [patch for patch in axes.patches if patch.get_gid() == f"chosen-{name}"]
        assert band.get_x() < lr < band.get_x() + band.get_width()
        other = [rate for rate in (1e-3, 3e-3, 1e-2) if rate != lr]
        assert not any(band.get_x() < rate < band.get_x() + band.get_width() for rate in other)
        assert drawn[f"seeds-{name}-{lr:g}"][:, 1].tolist() == shown[f"seeds-{model}-{seq_len}"].tolist()
        # All of them within the band.
        places = drawn[f"seeds-{name}-{lr:g}"][:, 0]
        assert band.get_x() < places.min() <= places.max() < band.get_x() + band.get_width()
    stars = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
    assert [line.get_xdata().tolist() for line in stars] == [[3e-3], [1e-3]]
    assert stars[0].get_ydata() == pytest.approx(shown["seeds-palimpsa_d-32"].mean())
    titles = [axes.get_title() for axes in figure.axes[:3]]
    assert titles == ["all models, means", "Palimpsa-D\nlr 0.003", "GLA\nlr 0.001"]


def test_one_model_has_no_panel_of_all_models(add_run, tmp_path):
    for lr in (1e-3, 1e-2):
        add_run(lr=lr, steps=None)
    figure = draw(rows_below(tmp_path))
    assert [axes.get_gid() for axes in figure.axes] == ["palimpsa_d-32", "palimpsa_d-64"]


def test_one_rate_stands_in_the_middle(add_run, tmp_path):
    for model in ("palimpsa_d", "gla"):
        add_run(model=model, lr=5e-3, steps=None)
    figure = draw(rows_below(tmp_path))
    assert [axes.get_gid() for axes in figure.axes[:2]] == ["palimpsa_d-32", "gla-32"]
    low, high = figure.axes[0].get_xlim()
    assert np.sqrt(low * high) == pytest.approx(5e-3)
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == ["0.005"]


def test_models_may_differ_in_rates_and_lengths(add_run, tmp_path):
    for lr in (1e-3, 1e-2):
        add_run(lr=lr, steps=None)
    # Another rate near one of the others, and one length less.
    add_run(model="gla", lr=1.05e-3, validation=[0.9], lengths=[32], steps=None)
    figure = draw(rows_below(tmp_path))
    assert [text.get_text() for text in panels(figure)["gla-64"].texts] == ["no run"]
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    # Their labels would lie on each other: one of them goes, the tick stays.
    assert labels in (["0.001", "", "0.01"], ["", "0.00105", "0.01"])


def test_a_failed_length_of_the_scratch_protocol_fails_at_that_length_only(add_run, tmp_path):
    for lr in (1e-3, 1e-2):
        for length in (32, 64):
            status = "failed" if (lr, length) == (1e-2, 64) else "finished"
            add_run(
                task="mqar_scratch", lr=lr, lengths=[length], validation=[0.5], plateau=[5], status=status, steps=None
            )
    rows = rows_below(tmp_path, "mqar_scratch")
    points = sensitivity_points(rows)
    assert points["test_accuracy"].isna().tolist() == [False, False, False, True]
    figure = draw(rows, "mqar_scratch")
    assert crosses(panels(figure)["palimpsa_d-32"]) == {}
    assert crosses(panels(figure)["palimpsa_d-64"]) == {1e-2: "1"}


def test_runs_that_failed_before_their_first_length_are_drawn(add_run, tmp_path):
    add_run(lr=1e-3, steps=None)
    add_run(lr=1e-2, status="failed", validation=[], lengths=[], steps=None)
    figure = draw(rows_below(tmp_path))
    assert [crosses(axes) for axes in figure.axes] == [{1e-2: "1"}] * 2


def test_nothing_to_show_is_a_note(add_run, tmp_path):
    add_run(status="failed", validation=[], lengths=[], steps=None)
    rows_below(tmp_path)
    (report,) = build_runs(tmp_path / "mqar")
    assert report.paths == []
    assert "no run has a test accuracy: no figure and no table" in report.notes
    assert not list((tmp_path / "mqar").glob("sensitivity*"))


def test_drawn_twice_from_the_csv_alone_it_is_the_same_byte_for_byte(rows, tmp_path):
    rows.to_csv(tmp_path / "runs.csv", index=False)

    def drawn() -> list[bytes]:
        figure = draw(read_runs_csv(tmp_path / "runs.csv"))
        return [path.read_bytes() for path in save_figure(figure, tmp_path / "sensitivity_laptop")]

    first = drawn()
    assert [len(content) > 10_000 for content in first] == [True, True]
    assert drawn() == first
