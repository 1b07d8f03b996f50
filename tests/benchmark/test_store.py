"""The CSV files of one device."""

import csv

from palimpsa.benchmark.store import TRAINING_TABLES, Store, device_slug


def test_a_slug_is_a_part_of_a_file_name():
    assert device_slug("NVIDIA GeForce RTX 3090 (Ti)") == "nvidia-geforce-rtx-3090-ti"


def test_a_file_holds_no_formula_and_is_read_as_it_was(tmp_path):
    """A spreadsheet would have computed a model's label, or looked it up on the web."""
    origin = dict.fromkeys(TRAINING_TABLES.identity) | {"device": "=1+1", "lr": -0.5, "command": "@SUM(A1)"}
    row = {"model": "'=x", "seq_len": 32, "label": "-GLA", "ms_per_step": -1.5}
    store = Store(TRAINING_TABLES, tmp_path, "cpu", origin, fresh=False)
    store.append("steps", row)
    with (tmp_path / "steps_cpu.csv").open(newline="", encoding="utf-8") as file:
        (cells,) = csv.DictReader(file)
    assert [cells[name] for name in ("device", "command", "model", "label")] == ["'=1+1", "'@SUM(A1)", "''=x", "'-GLA"]
    assert [cells[name] for name in ("lr", "ms_per_step")] == ["-0.5", "-1.5"]
    again = Store(TRAINING_TABLES, tmp_path, "cpu", origin, fresh=False)
    assert again.rows == store.rows
    assert again.find("steps", model="'=x", seq_len=32)["label"] == "-GLA"
