"""The whole benchmark of pretraining, in processes of its own."""

import pytest
import torch

from palimpsa.analysis.collect.benchmark_columns import PRETRAINING_COLUMNS
from palimpsa.benchmark import isolated
from palimpsa.benchmark.config import load
from palimpsa.benchmark.isolated import measure_in_own_process
from palimpsa.benchmark.pretraining.plan import plan_pretraining
from palimpsa.benchmark.run import benchmark_main


@pytest.fixture(autouse=True)
def only_torch_beforehand(monkeypatch):
    """flash-linear-attention takes ten seconds to import without a GPU, and no model here uses it."""
    monkeypatch.setattr(isolated, "PRELOADED_ON_CPU", ())


def test_a_row_a_model_and_size_of_a_step_with_its_origin(tiny_pretraining, read_rows, capsys):
    assert benchmark_main(tiny_pretraining) == 0
    first = read_rows("pretraining")
    assert benchmark_main([*tiny_pretraining, "accumulate=2", "checkpoint_blocks=true"]) == 0
    assert benchmark_main([*tiny_pretraining, "accumulate=2", "checkpoint_blocks=true"]) == 0
    printed = capsys.readouterr().out
    assert "1 of 1 rows are there already" in printed
    assert "tokens/s" in printed
    rows = read_rows("pretraining")
    assert rows[:1] == first
    assert [(row["accumulate"], row["checkpoint_blocks"]) for row in rows] == [("1", "0"), ("2", "1")]
    for row in rows:
        assert list(row) == list(PRETRAINING_COLUMNS["pretraining"])
        assert (row["model"], row["context"], row["tokens_per_step"]) == ("lm/palimpsa_d_tiny", "32", "128")
        assert 900_000 < int(row["num_parameters"]) < 1_100_000
        assert float(row["tokens_per_s"]) > 0
        assert float(row["loss"]) < float(row["first_loss"])
        assert float(row["first_row_s"]) > 0
        assert row["mfu"] == row["peak_memory_gib"] == ""
        assert (row["tokens"], row["precision"], row["num_steps"]) == ("random", "32-true", "4")
        assert (row["git_revision"], row["command"]) == ("0" * 40, "benchmark.py")
        assert "torch " in row["versions"]
    # The same steps, to rounding.
    assert float(rows[1]["loss"]) == pytest.approx(float(rows[0]["loss"]), rel=1e-4)


def test_a_run_that_diverges_is_a_failed_row(tiny_pretraining, read_rows, capsys):
    assert benchmark_main([*tiny_pretraining, "lr=1e30", "overrides={optimizer.warmup_steps:0}"]) == 1
    assert "lm/palimpsa_d_tiny 128 tokens a step: " in capsys.readouterr().err
    assert not read_rows("pretraining")


@pytest.mark.gpu
def test_a_gpu_tells_its_share_of_the_peak_and_memory(tmp_path):
    # As it is shipped, compiled and in bf16, at a small size.
    sizes = ("scale=laptop", "trainer=gpu", "models=[lm/palimpsa_d_tiny]", "num_warmup_steps=10", "num_steps=10")
    (run,) = plan_pretraining(load(["benchmark=pretraining", f"results_dir={tmp_path}", *sizes]))
    cells = measure_in_own_process(run, lambda step: None)
    assert cells["tokens_per_s"] > 0
    assert cells["peak_memory_gib"] > 0
    # Here and not above: lightning.
    from palimpsa.training.watch.throughput import peak_flops

    if peak_flops(torch.cuda.get_device_name()) is not None:
        assert 0 < cells["mfu"] < 1
