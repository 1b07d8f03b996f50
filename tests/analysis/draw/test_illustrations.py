"""The figures that need no run: they follow from what scripts/illustrate.py reads off the modules and the operator."""

import csv
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest

from palimpsa.analysis.build import build_illustrations
from palimpsa.analysis.collect.illustration_files import COLUMNS, read_illustration_csv
from palimpsa.analysis.draw.capacity import capacity_figure
from palimpsa.runs.schema import ResultError
from palimpsa.theory.capacity import RULES, capacity

ROOT = Path(__file__).resolve().parents[3]
COMMITTED = ROOT / "results/illustrations"
FILES = ("architecture.json", "recall_by_age.csv", "capacity.csv")


@pytest.fixture(scope="module")
def script():
    """scripts/illustrate.py as a module."""
    spec = importlib.util.spec_from_file_location("illustrate", ROOT / "scripts/illustrate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_capacitys_figure_has_a_line_for_every_rule_and_width():
    rows = pd.read_csv(COMMITTED / "capacity.csv")
    (axes,) = capacity_figure(rows).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    # 8 heads of K V numbers, of Palimpsa K more and of the full covariance K K more.
    more = {"linear attention": lambda K: 0, "Palimpsa": lambda K: K, "delta rule": lambda K: 0}
    more["full covariance"] = lambda K: K * K
    expected = {
        f"{rule}, {K} keys a head, state {8 * (32 * K + more[rule](K)):,}": own["accuracy"].tolist()
        for (rule, K), own in rows.groupby(["rule", "K"])
    }
    assert len(expected) == 2 * len(RULES)
    assert lines == expected


@pytest.fixture
def run(script, monkeypatch, capsys):
    """run(folder, *options): exit code, stdout and stderr."""

    def call(folder, *options):
        monkeypatch.setattr(sys, "argv", ["illustrate.py", "--results", str(folder), *options])
        capsys.readouterr()
        code = script.main()
        return code, *capsys.readouterr()

    return call


def few_capacities():
    """The committed rows, with those of up to 64 pairs computed: the others take minutes."""
    with (COMMITTED / "capacity.csv").open(newline="", encoding="utf-8") as file:
        rows = {(row["rule"], row["K"], row["num_pairs"]): row for row in csv.DictReader(file)}
    for row in capacity(nums_pairs=(32, 64)):
        rows[row["rule"], str(row["K"]), str(row["num_pairs"])] = row
    return list(rows.values())


@pytest.mark.slow
def test_committed_files_follow_from_the_modules_and_the_operator(tmp_path, script, run, monkeypatch, png_only):
    module = script.COMPUTED["capacity.csv"][1]
    monkeypatch.setitem(script.COMPUTED, "capacity.csv", (few_capacities, module))
    assert run(tmp_path / "out", "--compute")[::2] == (0, "")
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert made == {path.name: path.read_bytes() for path in COMMITTED.iterdir() if path.suffix != ".svg"}


def test_committed_illustrations_are_of_the_sources_as_they_are(script):
    """`make figures` would draw what an older theory/ or kernels/reference.py computed: `make illustrations`."""
    assert script.out_of_date(COMMITTED) == []


def damage(folder, name):
    path = folder / name
    inputs = json.loads((folder / "inputs.json").read_text())
    return {
        "edited": lambda: path.write_text(path.read_text().replace("1", "2", 1)),
        "another source": lambda: inputs[name]["sources"].update({"kernels/reference.py": "0123"}),
        "a source more": lambda: inputs[name]["sources"].update({"theory/gone.py": "0123"}),
        "a source less": lambda: inputs[name]["sources"].pop("kernels/reference.py"),
        "unknown": lambda: inputs.pop(name),
    }, inputs


@pytest.mark.parametrize("name", ["recall_by_age.csv", "capacity.csv"])
@pytest.mark.parametrize("kind", ["edited", "another source", "a source more", "a source less", "unknown"])
def test_figures_say_which_file_is_out_of_date_and_compute_alone_mends_it(
    tmp_path, script, run, monkeypatch, png_only, name, kind
):
    for path in COMMITTED.iterdir():
        shutil.copy(path, tmp_path)
    kinds, inputs = damage(tmp_path, name)
    kinds[kind]()
    (tmp_path / "inputs.json").write_text(json.dumps(inputs))
    for other in script.COMPUTED:
        rows = pd.read_csv(COMMITTED / other, dtype=str).to_dict("records")
        computed = [] if other != name else rows
        monkeypatch.setitem(script.COMPUTED, other, (lambda rows=computed: rows, script.COMPUTED[other][1]))
    monkeypatch.setattr("palimpsa.analysis.build.build_illustrations", lambda _: [])
    code, _, err = run(tmp_path)
    assert code == 1
    (line,) = err.splitlines()
    assert line.startswith(f"error: {tmp_path / name}: out of date, ")
    assert "make illustrations" in line
    assert ("kernels/reference.py" in line) == (kind in ("another source", "a source less"))
    assert run(tmp_path, "--compute") == (0, "", "")
    for file in script.COMPUTED:
        assert (tmp_path / file).read_bytes() == (COMMITTED / file).read_bytes()
    assert run(tmp_path)[0] == 0


@pytest.mark.parametrize("text", ["[]", "{", '{"capacity.csv": 1}', '{"capacity.csv": {"content": "a"}}'])
def test_inputs_that_are_not_what_compute_writes_are_named(tmp_path, run, text):
    for path in COMMITTED.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "inputs.json").write_text(text)
    code, _, err = run(tmp_path)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "inputs.json" in err


def test_an_altered_trace_gives_another_figure(tmp_path, png_only):
    for name in FILES:
        shutil.copy(COMMITTED / name, tmp_path)
    recall = tmp_path / "recall_by_age.csv"
    recall.write_text(recall.read_text().replace("naive,1,0.", "naive,1,9.", 1))
    build_illustrations(tmp_path)
    assert (tmp_path / "figure4.png").read_bytes() != (COMMITTED / "figure4.png").read_bytes()
    assert (tmp_path / "figure1.png").read_bytes() == (COMMITTED / "figure1.png").read_bytes()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("architecture.json", None),
        ("architecture.json", "{"),
        ("architecture.json", json.dumps([{"label": "M", "boxes": [{"name": "y", "inputs": []}]}])),
        ("recall_by_age.csv", None),
        ("recall_by_age.csv", "memory,age\nnaive,1\n"),
        ("recall_by_age.csv", ""),
        ("capacity.csv", None),
        ("capacity.csv", "rule,K\nPalimpsa,16\n"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(tmp_path, name, text):
    for other in FILES:
        shutil.copy(COMMITTED / other, tmp_path)
    (tmp_path / name).unlink() if text is None else (tmp_path / name).write_text(text)
    with pytest.raises(ResultError, match=name):
        build_illustrations(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, script, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["illustrate.py", "--results", str(tmp_path / "file" / "out")])
    assert script.main() == 1
    assert str(tmp_path / "file") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "column", "cell"),
    [
        ("recall_by_age.csv", "age", "x"),
        ("recall_by_age.csv", "similarity", ""),
        ("recall_by_age.csv", "memory", ""),
        ("capacity.csv", "rule", "another"),
        ("capacity.csv", "num_pairs", "inf"),
        ("capacity.csv", "num_candidates", "x"),
    ],
)
def test_an_odd_cell_is_one_error_that_names_its_column(tmp_path, name, column, cell):
    rows = pd.read_csv(ROOT / "results/illustrations" / name, dtype=str)
    rows.loc[1, column] = cell
    rows.to_csv(tmp_path / name, index=False)
    with pytest.raises(ResultError, match=rf"{name}: column {column} holds what"):
        read_illustration_csv(tmp_path / name, COLUMNS[name])
