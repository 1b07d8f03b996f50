"""The benchmark's figures from its CSV files alone."""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from palimpsa.analysis import build
from palimpsa.analysis.build import build_benchmarks, build_operator_benchmark
from palimpsa.analysis.collect.benchmark_columns import OPERATOR_COLUMNS, OPERATORS, OPERATORS_OF_CASE
from palimpsa.analysis.collect.benchmark_files import read_operator_csv
from palimpsa.analysis.draw.figure5 import figure5
from palimpsa.analysis.draw.operator_speed import cost_against_length, time_per_element
from palimpsa.runs.schema import ResultError

ROOT = Path(__file__).resolve().parents[3]
COMMITTED = ROOT / "results/kernels"
SLUG = "nvidia-h200"
LENGTHS = [512, 1024, 2048, 4096]


def write(folder: Path, kind: str, rows: list[dict], slug: str = SLUG) -> None:
    folder.mkdir(exist_ok=True)
    shared = {"H": 16, "K": 48, "V": 96, "dtype": "bfloat16", "device": "NVIDIA H200", "git_revision": "0" * 40}
    shared |= {"date": "2026-11-23T00:00:00+00:00", "versions": "torch 2.11.0", "note": "", "sizes": "h200"}
    with (folder / f"{kind}_{slug}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, OPERATOR_COLUMNS[kind], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([shared | row for row in rows])


@pytest.fixture
def folder(tmp_path) -> Path:
    """CSV files as an H200 writes them, with invented numbers."""
    rows = [{"case": "copy", "shape": "2048 MiB", "operator": "copy", "B": 1, "T": 1, "bandwidth_gb_s": 4000}]
    for place, name in enumerate(OPERATORS_OF_CASE["table"]):
        for shape in ("mqar", "170m"):
            rows.append({"case": "table", "shape": shape, "operator": name, "B": 8, "T": 4096})
            rows[-1] |= {
                "forward_ps_per_element": 0.7 / (place + 1),
                "forward_backward_ps_per_element": 3 / (place + 1),
            }
            rows[-1] |= {"limit_ps_per_element": 0.27 if name == "palimpsa" else ""}
    for place, name in enumerate(OPERATORS_OF_CASE["lengths"]):
        for T in LENGTHS:
            rows.append({"case": "lengths", "shape": "against_length", "operator": name, "B": 32768 // T, "T": T})
            rows[-1] |= {"forward_ms": 1 + place, "forward_backward_ms": 4 + place, "peak_memory_mib": 100 + place}
    write(tmp_path, "operators", rows)
    rows = []
    for name in OPERATORS_OF_CASE["throughput"]:
        speed = 10_000 if name == "palimpsa" else 30_000
        for T in LENGTHS:
            rows.append({"case": "prefill", "shape": "against_length", "operator": name, "B": 32768 // T, "T": T})
            rows[-1] |= {"thousand_tokens_per_s": speed}
        rows.append({"case": "decode", "shape": "against_length", "operator": name, "B": 64, "T": 1})
        rows[-1] |= {"thousand_tokens_per_s": speed / 20}
    write(tmp_path, "throughput", rows)
    return tmp_path


def drawn_figure5(folder: Path) -> Figure:
    return figure5(*(read_operator_csv(folder, kind, SLUG) for kind in ("throughput", "operators")))


def test_every_figure_is_drawn_and_is_the_same_file_again(folder):
    paths = build_operator_benchmark(folder, SLUG)
    stems = ("against_length", "figure5", "per_element")
    assert [path.name for path in paths] == [f"{stem}_{SLUG}.{suffix}" for stem in stems for suffix in ("png", "svg")]
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in build_operator_benchmark(folder, SLUG)] == before


def test_one_line_an_operator_on_logarithmic_axes(folder):
    rows = read_operator_csv(folder, "operators", SLUG)
    figure = cost_against_length(rows.loc[rows["case"] == "lengths"])
    assert len(figure.axes) == 3
    for axes in figure.axes:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert [line.get_label() for line in axes.lines] == list(OPERATORS_OF_CASE["lengths"])
        for line in axes.lines:
            assert list(line.get_xdata()) == LENGTHS
    assert "NVIDIA H200 · bfloat16 · 2026-11-23" in figure.get_suptitle()


def test_without_memory_its_panel_is_left_out(folder):
    rows = read_operator_csv(folder, "operators", SLUG)
    rows["peak_memory_mib"] = float("nan")
    assert len(cost_against_length(rows.loc[rows["case"] == "lengths"]).axes) == 2


def test_figure5_shows_how_many_times_slower_than_simple_gla(folder):
    ratio = drawn_figure5(folder).axes[2]
    assert "simple GLA" in ratio.get_title()
    lines = {line.get_label(): list(line.get_ydata()) for line in ratio.lines}
    assert lines["palimpsa"] == [3.0] * len(LENGTHS)
    assert lines["palimpsa_scalar"] == lines["palimpsa_without_metaplasticity"] == [1.0] * len(LENGTHS)


def test_figure5_has_the_limit_of_both_palimpsas_in_their_colours(folder):
    figure = drawn_figure5(folder)
    prefill, decode, _ = figure.axes
    lines = [{line.get_label(): line for line in axes.lines} for axes in (prefill, decode)]
    names = {"palimpsa", "palimpsa_scalar"}
    limits = {f"limit of {name}" for name in names}
    assert set(lines[0]) == set(lines[1]) == {*OPERATORS_OF_CASE["throughput"], *limits}
    for drawn in lines:
        for name in names:
            assert drawn[f"limit of {name}"].get_color() == drawn[name].get_color()
    assert list(lines[0]["limit of palimpsa"].get_xdata()) == LENGTHS
    assert lines[0]["limit of palimpsa"].get_ydata()[0] == pytest.approx(1e9 / (0.27 * 16 * 48 * 96))
    assert lines[1]["limit of palimpsa_scalar"].get_ydata()[0] == pytest.approx(4e9 / (8 * 16 * 48 * 97))
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels[-2:] == ["limit of Palimpsa", "limit of Palimpsa, one precision a head"]
    told = legend.get_title().get_text()
    assert "one reciprocal an entry" in told
    assert "with one precision a head" in told
    assert "Decode: the state at" in told


def test_figure5_is_drawn_without_the_rows_of_one_precision_a_head(folder):
    rows = read_operator_csv(folder, "throughput", SLUG)
    rows = rows.loc[rows["operator"] != "palimpsa_scalar"]
    figure = figure5(rows, read_operator_csv(folder, "operators", SLUG))
    for axes in figure.axes:
        assert not [line for line in axes.lines if "scalar" in str(line.get_label())]
    assert [line.get_label() for line in figure.axes[0].lines if "limit" in str(line.get_label())] == [
        "limit of palimpsa"
    ]
    assert "precision" not in figure.legends[0].get_title().get_text()


def test_a_cpu_has_no_limits(folder, monkeypatch):
    for kind in ("operators", "throughput"):
        (folder / f"{kind}_{SLUG}.csv").rename(folder / f"{kind}_cpu.csv")
    drawn = []
    monkeypatch.setattr(build, "save_figure", lambda figure, stem: drawn.append(figure) or [])
    build_benchmarks(folder)
    (figure,) = [figure for figure in drawn if "Figure 5" in figure.get_suptitle()]
    assert "limit" not in figure.legends[0].get_title().get_text()


def test_figure5_is_drawn_where_nothing_says_what_the_device_can_reach(folder):
    (folder / f"operators_{SLUG}.csv").unlink()
    figure = drawn_figure5(folder)
    assert [len(axes.lines) for axes in figure.axes[:2]] == [len(OPERATORS_OF_CASE["throughput"])] * 2
    assert "limit" not in figure.legends[0].get_title().get_text()


def test_without_simple_gla_the_ratio_is_to_the_control(folder):
    rows = read_operator_csv(folder, "throughput", SLUG)
    ratio = figure5(rows.loc[rows["operator"] != "simple_gla"], read_operator_csv(folder, "operators", SLUG)).axes[2]
    assert OPERATORS["palimpsa_without_metaplasticity"] in ratio.get_title()
    assert list(ratio.lines[0].get_ydata()) == [3.0] * len(LENGTHS)


def test_bars_are_the_table_and_the_line_is_the_limit(folder):
    rows = read_operator_csv(folder, "operators", SLUG)
    forward, both = time_per_element(rows.loc[rows["case"] == "table"]).axes
    assert len(forward.patches) == len(both.patches) == 2 * len(OPERATORS_OF_CASE["table"])
    assert forward.patches[0].get_height() == 0.7
    assert [line.get_ydata()[0] for line in forward.lines] == [0.27]
    assert forward.get_ylim()[0] < 0.27
    assert not both.lines


def test_what_was_not_measured_has_no_figure(folder, png_only):
    (folder / f"throughput_{SLUG}.csv").unlink()
    assert {path.stem for path in build_operator_benchmark(folder, SLUG)} == {
        f"against_length_{SLUG}",
        f"per_element_{SLUG}",
    }


def test_devices_have_figures_of_their_own(folder, png_only):
    (folder / f"operators_{SLUG}.csv").unlink()
    shutil.copy(folder / f"throughput_{SLUG}.csv", folder / "throughput_cpu.csv")
    assert {path.stem for path in build_benchmarks(folder)} == {"figure5_cpu", f"figure5_{SLUG}"}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("case,shape", "case,form", "columns"),
        (",0.7,", ",fast,", "something else than numbers"),
        (",palimpsa,", ",palimpso,", "unknown operator palimpso"),
    ],
)
def test_a_damaged_file_is_one_error_that_names_it(folder, old, new, expected):
    path = folder / f"operators_{SLUG}.csv"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ResultError, match=expected) as caught:
        build_benchmarks(folder)
    assert str(path) in str(caught.value)


def test_the_script_draws_without_torch_and_says_what_is_missing(folder, tmp_path):
    (folder / f"operators_{SLUG}.csv").unlink()
    script = [sys.executable, "-X", "importtime", str(ROOT / "scripts/plot_benchmark.py"), "--results"]
    done = subprocess.run([*script, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{folder}/figure5_{SLUG}.png" in done.stdout
    assert "| torch\n" not in done.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run([sys.executable, *script[3:], str(empty)], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_committed_figures_follow_from_the_committed_csv(tmp_path, png_only):
    for path in COMMITTED.glob("*_nvidia-*.csv"):
        shutil.copy(path, tmp_path)
    drawn = build_benchmarks(tmp_path)
    assert {path.name for path in drawn} == {path.name for path in COMMITTED.glob("*_nvidia-*.png")}
    for path in drawn:
        assert path.read_bytes() == (COMMITTED / path.name).read_bytes(), path.name
