"""The committed rows of pretraining: shares of the peak follow from tokens a second, sizes are the models' own."""

import csv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
ROWS = [
    row
    for path in sorted((ROOT / "results/training").glob("pretraining_*.csv"))
    for row in csv.DictReader(path.read_text().splitlines())
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['model']}-{row['tokens_per_step']}")
def test_a_row_is_what_its_model_costs(row, compose_config):
    """With the weights on no device: 760M of them would take seconds."""
    import torch

    from palimpsa.model.build import build_skeleton
    from palimpsa.training.watch.throughput import peak_flops

    with torch.device("meta"):
        model = build_skeleton(compose_config("task=commonsense", f"model={row['model']}").model)
    assert model.num_parameters == int(row["num_parameters"])
    peak = peak_flops(row["device"])
    assert peak is not None
    flops = model.training_flops_per_token(int(row["context"]))
    assert float(row["mfu"]) == pytest.approx(float(row["tokens_per_s"]) * flops / peak, rel=0.01)
    assert float(row["loss"]) < float(row["first_loss"])
    assert row["git_revision"]
