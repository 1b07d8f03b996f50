"""The committed rows of first calls: whole, of the calls that the config asks for, and what the pages say of them."""

import csv
from pathlib import Path

import pytest

from palimpsa.benchmark.config import load

ROOT = Path(__file__).resolve().parents[2]
# Seconds of all calls, and variants of one kernel.
MOST_SECONDS = {"forward": 20, "forward_backward": 45}
MOST_VARIANTS = 3


@pytest.mark.parametrize("operator", ["palimpsa", "palimpsa_scalar"])
@pytest.mark.parametrize("passes", list(MOST_SECONDS))
def test_a_new_length_costs_nothing(monkeypatch, operator, passes):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    config = load(["benchmark=first_call"])
    rows = list(csv.DictReader((ROOT / "results/kernels/first_call_nvidia-h200.csv").read_text().splitlines()))
    (row,) = [row for row in rows if (row["operator"], row["passes"]) == (operator, passes)]
    assert int(row["num_calls"]) == len(config.lengths) + len(config.batches) + len(config.heads)
    assert float(row["first_s"]) <= float(row["total_s"]) <= MOST_SECONDS[passes]
    assert float(row["largest_later_s"]) < 0.1
    assert (int(row["num_compiled_later"]), int(row["most_variants"]) <= MOST_VARIANTS) == (0, True)
    assert len(row["git_revision"]) == 40
    assert not row["git_dirty"]
