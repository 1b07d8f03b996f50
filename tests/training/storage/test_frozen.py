"""Weights that are shared between processes, of which some are frozen and some have a rate of their own."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from palimpsa.model.build import build_model

OWN_RATES = ("optimizer.new_lr=2e-2", "optimizer.new_warmup_steps=4", "optimizer.freeze=[embedding.*,blocks.0.*]")


def test_sharded_they_train_and_resume_as_whole_ones(tiny_config, one_rank, tmp_path, monkeypatch):
    from palimpsa.training.checkpoint import read_checkpoint
    from palimpsa.training.run import run
    from palimpsa.training.storage.trained import read_trained

    sharded = tiny_config(*OWN_RATES, "trainer.strategy=fsdp", f"results_dir={tmp_path}/s")
    run(sharded)
    directory = Path(sharded.run_dir)
    losses = pd.read_csv(directory / "history.csv")["loss"]
    # The last of 19 steps come again, from the folder of 16.
    (directory / "result.json").unlink()
    folders = {path: path.stat().st_mtime_ns for path in (directory / "checkpoints").glob("step_*")}
    run(sharded)
    assert {path: path.stat().st_mtime_ns for path in (directory / "checkpoints").glob("step_*")} == folders
    pd.testing.assert_series_equal(pd.read_csv(directory / "history.csv")["loss"], losses)
    found = read_trained(directory)
    assert found.step == 16
    (optimizer,) = read_checkpoint(found.path, [])["optimizer_states"]
    num_trained = sum(len(group["params"]) for group in optimizer["param_groups"])
    first = build_model(sharded.model, sharded.seed).state_dict()
    still = {name for name in first if torch.equal(first[name], found.weights[name])}
    names = [name for name, _ in build_model(sharded.model, 1).named_parameters()]
    frozen = {name for name in names if name.startswith(("embedding.", "blocks.0."))}
    assert still & set(names) == frozen
    assert num_trained == len(names) - len(frozen)
    torch.distributed.destroy_process_group()
    for variable in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(variable)
    whole = tiny_config(*OWN_RATES, f"results_dir={tmp_path}/w")
    run(whole)
    expected = pd.read_csv(Path(whole.run_dir) / "history.csv")["loss"].dropna()
    assert losses.dropna().to_numpy() == pytest.approx(expected.to_numpy(), rel=1e-5)
