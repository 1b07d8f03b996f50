"""Figures 1 and 4, and a layer's capacity: what is read off the modules and the operators, and the committed files."""

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from palimpsa.analysis.build import build_illustrations
from palimpsa.analysis.draw.capacity import capacity_figure
from palimpsa.mixers import PalimpsaD, PalimpsaM
from palimpsa.model.data_flow import data_flow
from palimpsa.runs.schema import ResultError
from palimpsa.theory.capacity import RULES, capacity
from palimpsa.theory.recall_by_age import MEMORIES, Memory, recall_by_age

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "results/illustrations"
FILES = ("architecture.json", "recall_by_age.csv", "capacity.csv")
SIZES = {"d_model": 32, "num_heads": 2, "head_k_dim": 4, "head_v_dim": 8}


def flow(mixer):
    """Boxes by name, and for each the names that its inputs come from."""
    boxes = {box["name"]: box for box in data_flow(mixer)}
    return boxes, {name: [one["from"] for one in box["inputs"]] for name, box in boxes.items()}


def operands(mixer):
    boxes, _ = flow(mixer)
    return {one["as"]: one["from"] for one in boxes["palimpsa"]["inputs"]}


def test_the_flow_of_palimpsa_d():
    boxes, sources = flow(PalimpsaD(**SIZES))
    named = operands(PalimpsaD(**SIZES))
    assert set(named) == {"q", "k", "v", "beta", "g"}
    assert boxes[named["q"]]["label"] == boxes[named["k"]]["label"] == "L2 norm"
    assert sources[named["q"]] == ["q_conv"]
    assert sources[named["k"]] == ["k_conv"]
    # One gate for what is written and how firmly.
    assert sources[named["v"]] == ["sigmoid", "v_conv"]
    assert sources[named["beta"]] == ["x", "sigmoid"]
    assert named["g"] == "decay"
    assert sources["o_norm"] == ["add", "gate_proj"]
    assert [boxes[name]["width"] for name in ("x", "q_proj", "v_conv", "y")] == [32, 8, 16, 32]
    assert boxes["o_norm"]["label"] == "RMSNorm, gate"


def test_the_flow_of_palimpsa_m():
    boxes, sources = flow(PalimpsaM(**SIZES))
    named = operands(PalimpsaM(**SIZES))
    assert named["q"] == named["k"] == "conv"
    # The step size that forgets also gates the input.
    assert sources[named["v"]] == ["decay", "conv"]
    assert sources[named["beta"]] == ["x", "decay"]
    assert boxes[named["beta"]]["label"] == "plasticity, rank 2"
    assert sources["conv"] == sources["decay"] == ["in_proj"]
    assert boxes["o_norm"]["label"] == "gate, RMSNorm"


@pytest.mark.parametrize("mixer", [PalimpsaD, PalimpsaM])
def test_without_metaplasticity_nothing_reaches_beta(mixer):
    assert set(operands(mixer(**SIZES, metaplastic=False))) == {"q", "k", "v", "g"}


@pytest.mark.parametrize("mixer", [PalimpsaD, PalimpsaM])
def test_every_box_follows_its_inputs_and_leads_to_the_output(mixer):
    boxes, sources = flow(mixer(**SIZES))
    names = list(boxes)
    assert names[0] == "x"
    assert names[-1] == "y"
    used = set()
    for place, name in enumerate(names):
        assert all(names.index(source) < place for source in sources[name])
        used.update(sources[name])
    assert used == set(names) - {"y"}


def test_weights_are_left_as_they_are():
    mixer = PalimpsaD(**SIZES)
    before = {name: x.clone() for name, x in mixer.state_dict().items()}
    data_flow(mixer)
    for name, x in mixer.state_dict().items():
        torch.testing.assert_close(x, before[name], rtol=0, atol=0, equal_nan=True)


def ends(memory, column):
    """The mean over the 16 youngest and the 16 oldest pairs."""
    rows = recall_by_age(memory, num_memories=16, num_pairs=256, K=16, V=16)
    assert [row["age"] for row in rows] == list(range(1, 257))
    values = [row[column] for row in rows]
    return sum(values[:16]) / 16, sum(values[-16:]) / 16


def test_what_a_memory_recalls():
    naive, metaplastic, forgetting = MEMORIES
    # Without forgetting every pair has the same weight, whatever its age.
    for memory in (naive, metaplastic):
        young, old = ends(memory, "similarity")
        assert young == pytest.approx(old, abs=0.05)
    assert min(ends(naive, "error")) > 10
    assert max(ends(metaplastic, "error")) < 1.05
    young, old = ends(forgetting._replace(window=32.0), "similarity")
    assert young > 0.5
    assert abs(old) < 0.1
    assert ends(forgetting._replace(window=32.0), "error")[0] < 0.8


def test_recall_is_of_the_seed_alone():
    memory = Memory("some", 1.0, math.inf)
    sizes = {"num_memories": 2, "num_pairs": 5, "K": 4, "V": 3}
    assert recall_by_age(memory, **sizes) == recall_by_age(memory, **sizes)
    assert recall_by_age(memory, **sizes) != recall_by_age(memory, **sizes, seed=1)


def accuracies(**sizes):
    """By rule, K and number of pairs."""
    rows = capacity(num_memories=2, num_heads=2, V=8, num_candidates=64, **sizes)
    return {(row["rule"], row["K"], row["num_pairs"]): row["accuracy"] for row in rows}


def test_what_a_layer_holds():
    found = accuracies(key_dims=(8, 16), nums_pairs=(2, 16, 32))
    assert set(found) == {(rule, K, num_pairs) for rule in RULES for K in (8, 16) for num_pairs in (2, 16, 32)}
    for rule in RULES:
        assert found[rule, 16, 2] == 1
        assert 1 / 64 < found[rule, 8, 32] < found[rule, 8, 16] < 1
        assert found[rule, 16, 32] > found[rule, 8, 32]
    # With everything that keys have in common, and with what their coordinates have.
    assert found["full covariance", 8, 16] > found["Palimpsa", 8, 16] >= found["linear attention", 8, 16]


def test_the_capacitys_figure_has_a_line_for_every_rule_and_width():
    rows = pd.read_csv(COMMITTED / "capacity.csv")
    (axes,) = capacity_figure(rows).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert set(lines) == {f"{rule}, {K} keys a head" for rule in RULES for K in (16, 32)}
    for (rule, K), own in rows.groupby(["rule", "K"]):
        assert lines[f"{rule}, {K} keys a head"] == own["accuracy"].tolist()


def test_gains_are_over_linear_attention_with_the_same_pairs():
    rows = capacity(key_dims=(8,), nums_pairs=(16,), num_memories=3, num_heads=2, V=8, num_candidates=64)
    plain = rows[0]
    assert (plain["rule"], plain["gain"], plain["gain_error"]) == ("linear attention", 0, 0)
    for row in rows[1:]:
        assert row["gain"] == pytest.approx(row["accuracy"] - plain["accuracy"], abs=2e-4)
    assert rows[-1]["gain_error"] > 0
    # Every accuracy is a number of pairs out of 3 * 16.
    assert all(abs(row["accuracy"] * 48 - round(row["accuracy"] * 48)) < 0.01 for row in rows)


def test_capacity_needs_memories_to_compare():
    with pytest.raises(ValueError, match="num_memories must be at least 2"):
        capacity(num_memories=1)


def test_capacity_is_of_the_seed_alone():
    sizes = {"key_dims": (4,), "nums_pairs": (8,)}
    assert accuracies(**sizes) == accuracies(**sizes)
    assert accuracies(**sizes) != accuracies(**sizes, seed=1)


def test_committed_files_follow_from_the_modules_and_the_operator(tmp_path):
    command = [sys.executable, "scripts/illustrate.py", "--results", str(tmp_path / "out")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    # SVG is drawn, but not committed.
    made, committed = (
        {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".svg"}
        for folder in (tmp_path / "out", COMMITTED)
    )
    assert made == committed


def test_an_altered_trace_gives_another_figure(tmp_path):
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


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("illustrate", ROOT / "scripts/illustrate.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["illustrate.py", "--results", str(tmp_path / "file" / "out")])
    assert script.main() == 1
    assert str(tmp_path / "file") in capsys.readouterr().err
