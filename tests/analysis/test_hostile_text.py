"""Labels, errors, tasks and devices are text to figures, tables, the terminal and spreadsheets, whatever they hold."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ElementTree

import pandas as pd
import pytest
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from matplotlib.text import Text
from rich.console import Console

from palimpsa.analysis.build import build_training_benchmark
from palimpsa.analysis.collect.benchmark_columns import TEXT_COLUMNS, TRAINING_COLUMNS
from palimpsa.analysis.collect.benchmark_files import read_training_csv
from palimpsa.analysis.collect.result_files import collect, write_collected
from palimpsa.analysis.draw.canvas import figure_style, log_axis, new_figure, ratio_axis, save_figure
from palimpsa.analysis.draw.figure1 import figure1
from palimpsa.analysis.sweep_table import print_learning_rates
from palimpsa.analysis.tables import markdown_table
from palimpsa.config.text import from_cell, is_line, markdown_text, one_line, to_cell
from palimpsa.runs.read import read_runs_csv
from palimpsa.runs.schema import ResultError

LABELS = [
    r"a$_{b$",
    r"$\frac{$",
    r"\$5 and $6",
    "100% $",
    "[red]x[/nope]",
    "GLA [ours]",
    ":smile: [link=http://a.b]c[/link]",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!-- end figure2_gaps -->",
    "[click](javascript:alert(1)) ![i](http://a.b/c.png)",
    "**bold** _soft_ `code` ~~gone~~ __init__ a|b \\| c\\",
    "# heading",
    "- item",
    "1. item",
    "&amp; &lt;",
    '=HYPERLINK("http://a.b")',
    "+1+1",
    "-2+3",
    "@SUM(A1)",
    "'=quoted",
    "it's",
    "two\nlines\tand a tab",
    "nul\0 bell\a escape\x1b[31m backspace\b",
    "\u202eright to left\u202c \u05d0\u05d1\u200f",
    "\N{GRINNING FACE}\N{ZERO WIDTH JOINER}\N{PILE OF POO} e\u0301",
    "half \ud800 a pair, \uffff",
    "long " * 60,
    "L" * 300,
    "_hidden",
    "NA",
    "nan",
]
DRAWABLE = [one_line(label) for label in LABELS]
# What a result may call its model: others are refused before they are trained, and left out where they stand on a disk.
LINES = [label for label in LABELS if is_line(label)]


@pytest.fixture
def hostile(add_run, tmp_path):
    """add(labels): a folder of runs.csv and curves.csv, of each label a model of two rates, whose last run failed."""

    def add(labels, *, error="RuntimeError: a", **names):
        for place, label in enumerate(labels):
            for seed, lr, status in ((1, 1e-3, "finished"), (1, 1e-2, "finished"), (2, 1e-2, "failed")):
                folder = add_run(
                    folder=f"runs/{place}/{lr}/{seed}", model=f"m{place}", lr=lr, seed=seed, status=status, steps=100
                )
                result = json.loads((folder / "result.json").read_text())
                result["run"] |= {"label": label, **names}
                result["config"]["model"]["label"] = label
                for group, name in names.items():
                    result["config"][group]["name"] = name
                result["error"] = error if status == "failed" else None
                (folder / "result.json").write_text(json.dumps(result))
        write_collected(collect([tmp_path / "runs"], tmp_path / "mqar"), tmp_path / "mqar")
        return tmp_path / "mqar"

    return add


def shown_by(markdown: str) -> tuple[list[str], set[str]]:
    """The texts of a Markdown document's table cells and list items, and its HTML tags."""
    html = MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(markdown)
    root = ElementTree.fromstring(f"<x>{html}</x>")
    texts = ["".join(node.itertext()) for node in root.iter() if node.tag in ("td", "li")]
    return texts, {node.tag for node in root.iter()}


def test_a_folder_of_hostile_labels_is_collected_drawn_and_printed(hostile, tmp_path, run_script, png_only):
    """One label ended the plotting of all others."""
    folder = hostile(LINES)
    code, out, err = run_script("plot_figures.py", "--results", str(folder))
    assert (code, [line for line in err.splitlines() if "error" in line]) == (0, [])
    assert "GLA [ours]" in out
    assert {path.name for path in folder.glob("*.png")} == {
        f"{kind}_laptop.png" for kind in ("figure2", "figure3", "figure3_heads", "sensitivity")
    }
    texts, tags = shown_by((folder / "table_laptop.md").read_text(encoding="utf-8"))
    lines = [one_line(label) for label in LINES]
    assert set(lines) <= set(texts)
    assert tags <= {"x", "h1", "h2", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    failed = sorted(text for text in texts if text.endswith("RuntimeError: a"))
    assert failed == sorted(f"{label}, lr 0.01, seed 2: RuntimeError: a" for label in lines)
    print_learning_rates([path.parent for path in (tmp_path / "runs").rglob("result.json")], console=Console(width=400))


def test_runs_csv_holds_no_formula_and_gives_back_every_text(hostile):
    folder = hostile(LINES, error="=1+1")
    with (folder / "runs.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert not [cell for row in rows for cell in row.values() if re.match("[=+@\t\r-]", cell)]
    found = read_runs_csv(folder / "runs.csv")
    assert [found.loc[found["model"] == f"m{place}", "label"].iloc[0] for place in range(len(LINES))] == [
        one_line(label) for label in LINES
    ]
    assert set(found["error"].dropna()) == {"=1+1"}
    before = (folder / "runs.csv").read_bytes()
    write_collected(collect([folder.parent / "runs"], folder), folder)
    assert (folder / "runs.csv").read_bytes() == before


def test_numbers_stay_numbers(hostile):
    folder = hostile(["GLA"])
    frame = read_runs_csv(folder / "runs.csv")
    for name in ("runs.csv", "curves.csv"):
        text = (folder / name).read_text(encoding="utf-8")
        assert "'" not in text.replace("it's", "")
    from palimpsa.runs.read import cells_of

    cells = cells_of(frame.assign(test_loss=-0.5)).to_csv(index=False)
    assert set(pd.read_csv(io.StringIO(cells))["test_loss"]) == {-0.5}


@pytest.mark.parametrize("text", [*LABELS, "=", "''", "''=", "'", "", "\t", "+", "'-", "''''@a"])
def test_a_cell_gives_back_its_text_and_begins_no_formula(text):
    assert from_cell(to_cell(text)) == text
    assert to_cell(text)[:1] not in ("=", "+", "-", "@", "\t", "\r")


@pytest.mark.parametrize("label", LABELS)
def test_markdown_shows_a_text_as_it_is(label):
    line = one_line(label)
    document = "\n".join([*markdown_table(["a", "b"], [[label, "-"]]), "", f"- {markdown_text(label)}, lr 1"])
    texts, tags = shown_by(document)
    assert texts == [line, "-", f"{line}, lr 1"]
    assert tags == {"x", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}


@pytest.mark.parametrize("value", ["../victim", "/../../../victim", "a/b", "..", ".hidden", "mqar_$x{_<b>[a]", "a\0b"])
@pytest.mark.parametrize("name", ["task", "scale"])
def test_a_task_or_scale_that_would_lead_to_another_folder_is_left_out(hostile, name, value):
    """A run that somebody sent used to overwrite files outside of the results folder."""
    with pytest.raises(ResultError, match=rf"run\.{name} is .*expected a name for files"):
        hostile(["GLA"], **{name: value if name == "scale" else f"mqar/{value}"})


def test_a_benchmark_of_hostile_names_is_drawn(tmp_path, png_only):
    path = tmp_path / "steps_cpu.csv"
    rows = []
    for place, label in enumerate(DRAWABLE):
        for seq_len in (32, 64):
            row = dict.fromkeys(TRAINING_COLUMNS["steps"], "1") | {"model": f"m{place}", "label": label}
            row |= {"seq_len": str(seq_len), "scale": label, "device": label, "precision": label, "date": "2026-11-29"}
            rows.append({key: to_cell(text) if key in TEXT_COLUMNS else text for key, text in row.items()})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(TRAINING_COLUMNS["steps"]))
        writer.writeheader()
        writer.writerows(rows)
    assert build_training_benchmark(tmp_path, "cpu")
    assert read_training_csv(tmp_path, "cpu")["label"].drop_duplicates().tolist() == DRAWABLE


@pytest.mark.parametrize("label", DRAWABLE)
def test_every_text_of_a_figure_is_drawn_as_it_is(tmp_path, label):
    blocks = [{"label": label, "boxes": []}]
    box = {"name": "x", "label": label, "kind": "input", "width": None, "inputs": []}
    blocks[0]["boxes"] = [box, box | {"name": label, "kind": "module", "inputs": [{"from": "x", "as": label}]}]
    figure = figure1(blocks)
    png, svg = save_figure(figure, tmp_path / "figure")
    assert png.stat().st_size
    ElementTree.parse(svg)
    drawn = [text for text in figure.findobj(Text) if text.get_text() == label]
    assert len(drawn) >= 3
    assert not any(text.get_parse_math() for text in drawn)


@pytest.mark.parametrize("scale", [log_axis, ratio_axis])
def test_powers_of_ten_are_still_math(scale):
    with figure_style():
        figure = new_figure(4, 3)
        axes = figure.add_subplot()
        axes.plot([0, 1], [1, 1e9])
        scale(axes)
        figure.draw_without_rendering()
        labels = [label for label in axes.get_yticklabels() if label.get_text()]
    assert len(labels) >= 2
    assert all(label.get_parse_math() and "10^" in label.get_text() for label in labels[1:])


def test_a_figure_too_large_for_its_resolution_has_a_lower_one(tmp_path, png_only):
    """500 models ended plotting: Agg draws less than 2^16 pixels a side."""
    figure = new_figure(700, 1)
    (path,) = save_figure(figure, tmp_path / "wide")
    assert path.exists()


def test_a_legend_as_high_as_the_figure_leaves_its_panels(tmp_path, png_only):
    figure: Figure = new_figure(5, 4)
    axes = figure.add_subplot()
    names = [str(i) for i in range(200)]
    figure.legend([axes.plot([0, 1])[0] for _ in names], names, loc="outside lower center", ncols=2)
    save_figure(figure, tmp_path / "high")
    assert axes.get_position().height * figure.get_figheight() > 2
