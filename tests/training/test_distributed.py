"""Several processes as one run: the same numbers as one process, one set of files, and what cannot be shared."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from palimpsa.config.errors import ConfigError
from palimpsa.model.build import build_model
from palimpsa.tasks.build import build_task
from palimpsa.tasks.task import share_of
from palimpsa.training.checkpoint import read_checkpoint
from palimpsa.training.distributed import check_ranks, is_first_rank, num_ranks

ROOT = Path(__file__).resolve().parents[2]
TIMES = ["tokens_per_s"]


@pytest.fixture
def two_ranks(monkeypatch):
    """What torchrun tells the second of two processes."""
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, str(ROOT / "scripts/train.py"), *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def train(run_ranks, tiny_overrides):
    """What two processes print that train a run to its end: `train("seed=2")`."""

    def train_to_end(*arguments: str) -> str:
        return "".join(rank.err for rank in run_ranks(2, "train.py", *tiny_overrides, *arguments))

    return train_to_end


def test_two_processes_train_as_one(train, tiny_config, tiny_overrides, tmp_path):
    """DDP on gloo, at the same global batch: every logged number of one process to 1e-6, and one set of files."""
    from palimpsa.training.run import run

    alone = tiny_config("seed=2")
    run(alone)
    # Its last checkpoint stands between two rows of the curves.
    shared = (f"results_dir={tmp_path}/shared", "seed=2", "trainer.checkpoint_every=18")
    # By the command that a user gives; all others here start its processes without their imports.
    done = torchrun(*tiny_overrides, *shared)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(": finished, ") == 1
    directory = tmp_path / "shared" / Path(alone.run_dir).relative_to(tmp_path)
    histories = [pd.read_csv(folder / "history.csv") for folder in (Path(alone.run_dir), directory)]
    one, two = (history.drop(columns=TIMES) for history in histories)
    assert one["loss"].notna().sum() == 10
    pd.testing.assert_frame_equal(one, two, rtol=1e-6, atol=0)
    results = [json.loads((folder / "result.json").read_text()) for folder in (Path(alone.run_dir), directory)]
    assert results[0]["config_hash"] == results[1]["config_hash"]
    assert [stage["steps"] for stage in results[0]["stages"]] == [stage["steps"] for stage in results[1]["stages"]]
    # Resumed from its last checkpoint it has the same curves.
    (directory / "result.json").unlink()
    train(*shared)
    after = pd.read_csv(directory / "history.csv").drop(columns=TIMES)
    pd.testing.assert_frame_equal(one, after, rtol=1e-6, atol=0)
    # Again: what is finished is not trained again, by any of them.
    assert "skipped, finished earlier" in train(*shared)


def test_two_processes_of_two_parts_each_train_as_one(train, tiny_config, tmp_path):
    """Parts are added on each process before they meet: the mean over all of them is that of the step."""
    from palimpsa.training.run import run

    alone = tiny_config("seed=2")
    run(alone)
    train(f"results_dir={tmp_path}/shared", "seed=2", "trainer.accumulate=2")
    directory = tmp_path / "shared" / Path(alone.run_dir).relative_to(tmp_path)
    one, two = (pd.read_csv(folder / "history.csv").drop(columns=TIMES) for folder in (Path(alone.run_dir), directory))
    pd.testing.assert_frame_equal(one, two, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-5), ("bf16-mixed", 1e-3)])
def test_sharded_weights_train_as_whole_ones(train, tiny_config, tmp_path, precision, tolerance):
    """FSDP2 on gloo, tied embedding included; who goes on from its checkpoints is held in storage/test_resume.py."""
    from palimpsa.training.run import run

    # At a rate at which what bf16 rounds otherwise does not grow.
    options = ("seed=2", f"trainer.precision={precision}", "trainer.spike_sigmas=1000", "optimizer.lr=1e-3")
    alone = tiny_config(*options)
    run(alone)
    expected = pd.read_csv(Path(alone.run_dir) / "history.csv")["loss"].dropna()
    train(*options, f"results_dir={tmp_path}/sharded", "trainer.checkpoint_every=11", "trainer.strategy=fsdp")
    directory = tmp_path / "sharded" / Path(alone.run_dir).relative_to(tmp_path)
    found = pd.read_csv(directory / "history.csv")["loss"].dropna()
    assert len(expected) == 10
    assert found.to_numpy() == pytest.approx(expected.to_numpy(), rel=tolerance)
    saved = read_checkpoint(directory / "checkpoints/step_11", [])
    assert saved["global_step"] == 11
    assert {name: tuple(x.shape) for name, x in saved["state_dict"].items()} == {
        f"model.{name}": tuple(x.shape) for name, x in build_model(alone.model, None).state_dict().items()
    }


def test_the_shares_of_a_step_are_the_step(tiny_config):
    task = build_task(tiny_config().task, 1)
    stage, cpu = task.stages[1], torch.device("cpu")
    whole = task.batch(stage, 3, cpu)
    parts = [task.batch(stage, 3, cpu, rank=rank, num_ranks=2) for rank in range(2)]
    for name, tensor in whole._asdict().items():
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), tensor)
    with pytest.raises(ValueError, match="num_ranks: got 3, expected a divisor of the step's 4 examples"):
        share_of(torch.arange(4), 0, 3)


def test_a_step_that_does_not_divide_is_refused(tiny_config, two_ranks):
    assert num_ranks() == 2
    assert not is_first_rank()
    check_ranks(build_task(tiny_config().task, 1), uses_graphs=False)
    odd = tiny_config("task.tokens_per_step=48")
    with pytest.raises(ConfigError, match=r"a step of 3 examples \(L 16\) for 2 processes, expected a multiple"):
        check_ranks(build_task(odd.task, 1), uses_graphs=False)
    epochs = tiny_config(
        "task=mqar_scratch", "task.stages=null", "task.seq_len=16", "task.num_train_examples=9", "task.num_epochs=1"
    )
    with pytest.raises(ConfigError, match="a step of 1 examples"):
        check_ranks(build_task(epochs.task, 1), uses_graphs=False)
    with pytest.raises(ConfigError, match=r"trainer\.cuda_graphs: got true with 2 processes, expected false"):
        check_ranks(build_task(tiny_config().task, 1), uses_graphs=True)
    with pytest.raises(ConfigError, match=r"trainer\.gpus: got \[2\] with 2 processes, expected null"):
        check_ranks(build_task(tiny_config().task, 1), uses_graphs=False, gpus=[2])


def test_a_sweep_under_torchrun_is_refused(two_ranks, tmp_path):
    from palimpsa.sweeps.plan import plan_command_line

    with pytest.raises(ConfigError, match=r"^--multirun: got a sweep under torchrun, expected one run"):
        plan_command_line([f"results_dir={tmp_path}", "seed=1,2"], multirun=True)


def test_slurms_variables_make_no_rank(monkeypatch):
    for name, value in {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "WORLD_SIZE": "4", "RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    assert num_ranks() == 1
    assert is_first_rank()
