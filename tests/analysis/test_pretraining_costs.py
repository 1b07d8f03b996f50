"""GPU hours of the paper's runs, against numbers computed by hand."""

import csv

import pytest

from palimpsa.analysis.collect.benchmark_columns import PRETRAINING_COLUMNS
from palimpsa.analysis.pretraining_costs import DEVICE, pretraining_costs
from palimpsa.runs.schema import ResultError

UNMEASURED = ["not measured"] * 5


def write_rows(results, *rows: dict) -> None:
    folder = results / "training"
    folder.mkdir()
    shared = {"context": 4096, "tokens_per_step": 131072, "accumulate": 1, "checkpoint_blocks": 0, "mfu": 0.25}
    with (folder / f"pretraining_{DEVICE}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, PRETRAINING_COLUMNS["pretraining"], restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([shared | {"peak_memory_gib": 60.04, "label": row["model"][3:]} | row for row in rows])


def table(text: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in text.split("\n")][2:]


def test_without_measurements_it_says_so(tmp_path):
    assert table(pretraining_costs(tmp_path)) == [
        ["Palimpsa-D 170M", "15", *UNMEASURED],
        ["Palimpsa-D 760M", "30", *UNMEASURED],
    ]


def test_a_models_hours_are_those_of_its_fastest_row(tmp_path):
    write_rows(
        tmp_path,
        {"model": "lm/palimpsa_d_170m", "tokens_per_s": 200_000, "mfu": 0.3},
        {"model": "lm/palimpsa_d_170m", "tokens_per_s": 100_000, "accumulate": 4, "checkpoint_blocks": 1},
        {"model": "lm/mamba2_170m", "tokens_per_s": 150_000, "accumulate": 2, "checkpoint_blocks": 1},
        {"model": "lm/palimpsa_d_44m", "tokens_per_s": 500_000},
    )
    assert table(pretraining_costs(tmp_path)) == [
        # 15e9 / 200,000 / 3,600 and 15e9 / 150,000 / 3,600.
        ["palimpsa_d_170m", "15", "131,072, 1", "200,000", "30.0%", "60.0", "21"],
        ["mamba2_170m", "15", "131,072, 2, blocks again", "150,000", "25.0%", "60.0", "28"],
        ["Palimpsa-D 760M", "30", *UNMEASURED],
        ["palimpsa_d_44m", "-", "131,072, 1", "500,000", "25.0%", "60.0", "-"],
    ]


def test_a_file_of_another_version_is_named(tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / f"pretraining_{DEVICE}.csv").write_text("model\nx\n")
    with pytest.raises(ResultError, match=r"pretraining_nvidia-h200\.csv: its columns are not those"):
        pretraining_costs(tmp_path)
